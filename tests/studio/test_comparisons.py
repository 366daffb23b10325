"""A comparison in the database: every part is kept as it ends, also beside failures, a cancel and a killed process."""

import gc
import os
import subprocess
import sys
import weakref
from pathlib import Path

import pytest

from engine.comparison import Entry
from engine.editors import EDITORS
from engine.errors import Cancelled, EditingError
from engine.facts import FactBatch
from engine.metrics import Output, ask
from studio.comparison_record import read_comparison, read_questions, read_verdicts
from studio.comparisons import CompareRequest, entries_of, execute_comparison
from studio.connection import StoreError
from studio.store import INTERRUPTED, Store
from studio.studio import Studio
from tests.engine.test_comparison import Broken
from tests.engine.tiny import FACTS

ROOT = Path(__file__).parents[2]
SETTINGS = {"ft": {"steps": 3, "learning_rate": 0.05}, "ultraedit": {"layers": "1-3", "eta": 0.05}}


@pytest.fixture
def studio(store, tiny_model, tmp_path, monkeypatch):
    monkeypatch.setenv("AGRADE_STUDIO_CACHE", str(tmp_path / "cache"))
    studio = Studio(store)
    studio.model = tiny_model("llama")
    return studio


def request(*keys: str, sizes: tuple[int, ...] = (), generate: int = 1) -> CompareRequest:
    return CompareRequest(FactBatch(FACTS, "five.csv", "studio"), entries_of(keys, SETTINGS, {}), sizes, generate)


def compare(studio: Studio, asked: CompareRequest, *more) -> int:
    return execute_comparison(studio, studio.store.start_session("test"), asked, *more)


def test_everything_comes_back(studio):
    ended = []
    number = compare(studio, request("ft", "ultraedit", sizes=(2,)), lambda *_: None, lambda *part: ended.append(part))
    found = read_comparison(studio.store, number)
    assert [(line.key, line.name, line.n_facts, line.status) for line in (*found.lines, *found.sweep)] == [
        (key, name, size, "done")
        for size in (5, 2)
        for key, name in (("", "Unedited model"), ("ft", "FT"), ("ultraedit", "UltraEdit"))
    ]
    assert found.facts == list(FACTS) and found.row["status"] == "done" and not found.waiting
    assert found.row["title"] == "five.csv: 5 facts by 2 methods" and found.plan["sizes"] == [2]
    results = [(run, result) for run, _, result in ended if result]
    assert [run for run, _ in results] == [line.run for line in (*found.lines, *found.sweep)]
    for line, (_, result) in zip((*found.lines, *found.sweep), results):
        assert line.metrics == result.outcome.metrics
        if result.run:
            assert (line.seconds, line.relative_norm) == (result.run.seconds, result.relative_norm)
            assert line.seconds_per_100 == pytest.approx(100 * result.run.seconds / line.n_facts)
            assert line.memory_bytes == result.run.peak_memory_bytes - result.run.base_memory_bytes
            assert line.settings == result.run.settings and line.modules == result.run.per_module
    for line, (_, result) in zip(found.lines, results):
        assert studio.store.run(line.run).outcome == result.outcome, "the outputs before are the unedited model's"
    assert all(not studio.store.run(line.run).outcome.instances for line in found.sweep)


def test_a_part_that_cannot_be_kept_does_not_end_the_others(studio, monkeypatch):
    record, ended = Store.record_metrics, []

    def locked_once(store, run, metrics):
        if store.run(run).row["method"] == "ft":
            raise StoreError("The database is kept locked.")
        record(store, run, metrics)

    monkeypatch.setattr(Store, "record_metrics", locked_once)
    number = compare(studio, request("ft", "ultraedit"), lambda *_: None, lambda *part: ended.append(part))
    found = read_comparison(studio.store, number)
    assert [(line.name, line.status) for line in found.lines] == [
        ("Unedited model", "done"), ("FT", "failed"), ("UltraEdit", "done"),
    ]  # fmt: skip
    assert found.lines[1].error == "The database is kept locked." and found.row["status"] == "done"
    assert ended[3][2].run.method == "ft", "who waits is shown it all the same"


def test_without_the_unedited_models_outputs_nothing_is_compared(studio, monkeypatch):
    def locked(store, run, metrics):
        raise StoreError("The database is kept locked.")

    monkeypatch.setattr(Store, "record_metrics", locked)
    with pytest.raises(StoreError, match="kept locked"):
        compare(studio, request("ft"))
    [row] = studio.store.runs()
    assert [one["status"] for one in (row, *studio.store.run(row["id"]).children)] == ["failed", "failed"]


def test_a_methods_weight_shift_is_gone_before_the_next_one_begins(studio):
    shifts, alive = [], []

    def part(run, step, result):
        if result is None:
            gc.collect()
            alive.append(sum(shift() is not None for shift in shifts))
        elif result.run is not None:
            shifts.append(weakref.ref(result.run.delta))

    compare(studio, request("ft", "ultraedit", sizes=(2,)), lambda *_: None, part)
    assert len(shifts) == 4 and alive == [0] * 6


def test_sizes_beyond_the_facts_are_said():
    assert request("ft", sizes=(2, 5)).left_out == ""
    assert request("ft", sizes=(2, 512, 1024)).left_out == "No sweep at 512, 1,024: there are 5 facts."
    alone = CompareRequest(FactBatch(FACTS[:1], "one.csv", "studio"), (), (2,))
    assert alone.left_out == "No sweep at 2: there is 1 fact."


def test_the_unedited_models_outputs_are_kept_once(studio):
    number = compare(studio, request("ft", "ultraedit"))
    instances = sum(1 + len(fact.equivalent) + len(fact.unrelated) for fact in FACTS)
    rows = studio.store.query("SELECT phase, count(*) AS n FROM outputs GROUP BY phase ORDER BY phase", {})
    assert rows == [{"phase": "after", "n": 2 * instances}, {"phase": "before", "n": instances}]
    assert [row["id"] for row in studio.store.runs()] == [number], "the parts are no runs of the list"
    assert [row["id"] for row in studio.store.runs(search="Denmark")] == [number]


def test_a_facts_outputs_stand_side_by_side(studio):
    number = compare(studio, request("ft", "ultraedit"))
    lines, verdicts = read_comparison(studio.store, number).lines, read_verdicts(studio.store, number)
    outcomes = {line.run: studio.store.run(line.run).outcome for line in lines}
    for position, fact in enumerate(FACTS):
        questions = read_questions(studio.store, number, position)
        assert [one.prompt for one in questions] == [fact.prompt, *fact.equivalent, *(p for p, _ in fact.unrelated)]
        for run, outcome in outcomes.items():
            own = [one for one in outcome.instances if one.fact == position]
            assert [(one.after, one.success) for one in own] == [
                (one.answers[run].output, one.answers[run].success) for one in questions
            ]
            for kind, verdict in verdicts[run][position].items():
                protocol = "agreement" if kind == "unrelated" else "exact"
                values = [one.success[protocol] for one in own if one.kind == kind]
                assert (verdict.good, verdict.n) == (sum(values), len(values))
            assert set(verdicts[run][position]) == {one.kind for one in own}
    unedited = ask(studio.model, FACTS, 1).outcome(studio.model)
    first = read_questions(studio.store, number, 0)[0].answers[lines[0].run]
    assert isinstance(first.output, Output) and first.output == unedited.instances[0].before


def test_a_failure_stands_beside_what_went_well(studio, monkeypatch):
    monkeypatch.setitem(EDITORS, "broken", Broken)
    number = compare(studio, request("broken", "ft"))
    _, failed, done = read_comparison(studio.store, number).lines
    assert (failed.status, failed.error) == ("failed", "Unexpected error: ZeroDivisionError: no luck")
    assert (failed.seconds, failed.memory_bytes, failed.metrics) == (None, None, [])
    assert not studio.store.run(failed.run).outcome.instances, "the outputs before are not those of a failed edit"
    assert done.done and studio.store.run(number).row["status"] == "done"


def test_when_all_fail_so_does_the_comparison(studio, monkeypatch):
    monkeypatch.setitem(EDITORS, "broken", Broken)
    with pytest.raises(EditingError, match="No method could edit"):
        compare(studio, request("broken"))
    found = read_comparison(studio.store, 1)
    assert found.row["status"] == "failed" and "No method could edit" in found.row["error"]
    assert [line.status for line in found.lines] == ["done", "failed"]


def test_cancel_keeps_what_is_finished_and_tells_what_was_not_begun(studio):
    def progress(stage, done, total):
        if stage.startswith("UltraEdit"):
            raise Cancelled

    with pytest.raises(Cancelled):
        compare(studio, request("ft", "ultraedit", "ft-batched"), progress)
    found = read_comparison(studio.store, 1)
    assert [(line.name, line.status) for line in found.lines] == [
        ("Unedited model", "done"), ("FT", "done"), ("UltraEdit", "cancelled")
    ]  # fmt: skip
    assert found.waiting == [EDITORS["ft-batched"].title]
    assert found.row["status"] == "cancelled" and found.edited[0].metrics


KILLED = """
import sys
from pathlib import Path
from engine.editors import EDITORS, Editor
from engine.loading import load_model
from studio.store import Store
from studio.studio import Studio
from tests.engine.test_comparison import Room
from tests.studio.test_comparisons import compare, request

class Stuck(Editor):
    title, Settings = "Stuck", Room
    def __init__(self, settings): pass
    def edit(self, model, facts, progress):
        print("at work", flush=True)
        sys.stdin.read()

EDITORS["stuck"] = Stuck
studio = Studio(Store(sys.argv[1]))
studio.model = load_model(sys.argv[2], "cpu")
compare(studio, request("ft", "stuck", "ultraedit"))
"""


def test_a_killed_process_loses_nothing_that_was_finished(tmp_path, model_folder):
    path = tmp_path / "studio.db"
    environment = os.environ | {"PYTHONPATH": str(ROOT), "AGRADE_STUDIO_CACHE": str(tmp_path), "OMP_NUM_THREADS": "1"}
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    command = [sys.executable, "-c", KILLED, str(path), str(model_folder)]
    process = subprocess.Popen(command, text=True, env=environment, cwd=ROOT, **pipes)
    try:
        assert process.stdout.readline() == "at work\n"
    finally:
        process.kill()
        process.communicate()
    with Store(path) as store:
        found = read_comparison(store, 1)
        assert [(line.name, line.status, line.error) for line in found.lines] == [
            ("Unedited model", "done", ""), ("FT", "done", ""), ("Stuck", "failed", INTERRUPTED)
        ]  # fmt: skip
        assert (found.row["status"], found.row["error"], found.waiting) == ("failed", INTERRUPTED, ["UltraEdit"])
        outcome = store.run(found.edited[0].run).outcome
        assert len(outcome.instances) == sum(1 + len(fact.equivalent) + len(fact.unrelated) for fact in FACTS)
        assert found.edited[0].metrics == outcome.metrics and found.edited[0].value("ES", "exact") is not None
        assert read_verdicts(store, 1)[found.edited[0].run].keys() == set(range(len(FACTS)))


def test_another_kind_of_run_is_no_comparison(store, run):
    with pytest.raises(StoreError, match="Run 1 is no comparison"):
        read_comparison(store, run)


def test_entries_are_read_from_their_keys():
    paths = {"agrade": Path("own")}
    entries = entries_of(["agrade", "agrade:no-c", "ft"], SETTINGS | {"agrade": {"step_scale": 2.0}}, paths)
    assert entries == (
        Entry("agrade", "", {"step_scale": 2.0}, Path("own")),
        Entry("agrade", "no-c", {"step_scale": 2.0}, Path("own")),
        Entry("ft", "", SETTINGS["ft"]),
    )
    keys = [entry.key for entry in entries_of(["ft", "agrade", "memit", "agrade:no-c"], {}, {})]
    assert keys == ["ft", "agrade", "agrade:no-c", "memit"]
    assert [entry.key for entry in entries_of(["ft", "agrade:no-c"], {}, {})] == ["ft", "agrade:no-c"]
    with pytest.raises(EditingError, match="Unknown method 'wishful'"):
        entries_of(["wishful"], {}, {})
