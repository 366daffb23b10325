"""The database: round trips, search, migrations, several threads and processes, crashes, and unusable files."""

import hashlib
import json
import math
import os
import sqlite3
import subprocess
import sys
import tempfile
import threading
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import psutil
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sqlite_utils import Database

from engine.facts import Fact
from engine.generation import Probe, ProbeSide
from engine.metrics import Instance, Metric, Output
from studio.connection import StoreError
from studio.migrations import migrations, unknown_steps
from studio.store import INTERRUPTED, Store

ROOT = Path(__file__).parents[2]
PARIS = Fact(
    "The capital of France is",
    "Lyon",
    equivalent=("France's capital city is", "France is governed from"),
    unrelated=(("The capital of Italy is", "Rome"), ("Water boils at", "")),
    subject="France",
    old_target="Paris",
    row=7,
)
PLAIN = Fact("The Eiffel Tower is in", "Rome")
INSTANCES = [
    Instance(
        0,
        "edit",
        PARIS.prompt,
        "Lyon",
        Output("Paris", "Paris, of course"),
        Output("Lyon", "Lyon, since today"),
        {"exact": 1.0, "token": 1.0, "generated": 1.0},
        {"exact": 0.0, "token": 0.5, "generated": None},
    ),
    Instance(0, "unrelated", "Water boils at", "100", Output("100"), Output("90"), {"label": None}, {"label": None}),
    Instance(1, "edit", PLAIN.prompt, "Rome", Output("Paris"), Output("Rome"), {"exact": 1.0}, {"exact": 0.0}),
]
METRICS = [Metric("ES", "exact", 1.0, 0.0, 2, 0.34, 1.0), Metric("Score", "exact+agreement", None, None, 0, None, None)]
TEXTS = st.text(st.characters(), max_size=20)  # lone surrogates and NUL among them


@dataclass(frozen=True)
class Settings:
    eta: float = 1e-4
    layers: tuple[int, ...] = (4, 5)


@pytest.fixture
def store(tmp_path):
    with Store(tmp_path / "studio.db") as store:
        yield store


@pytest.fixture
def run(store):
    return store.start_run(store.start_session("studio", "w1"), "edit", method="agrade")


def plain(store):
    """The same file as anyone with sqlite-utils reads it."""
    return Database(store.path)


def edit(store, session, facts=(PARIS, PLAIN), **columns):
    """A finished edit with its facts."""
    run = store.start_run(session, "edit", **columns)
    store.record_facts(run, facts)
    store.finish_run(run)
    return run


# Round trips


def test_a_run_is_a_row_before_its_work_begins(store):
    run = store.start_run(
        store.start_session("studio", "w1"),
        "edit",
        title="2 facts by AGRADE",
        method="agrade",
        hparams=Settings(),
        model="embedded",
        model_sha="ab12",
        seed=3,
    )
    row = plain(store)["runs"].get(run)
    assert (row["status"], row["ended"], row["duration"], row["error"]) == ("running", None, None, "")
    assert json.loads(row["hparams_json"]) == {"eta": 1e-4, "layers": [4, 5]}
    kept = store.run(run).row
    columns = ("title", "model", "model_sha", "seed")
    assert [kept[name] for name in columns] == ["2 facts by AGRADE", "embedded", "ab12", 3]
    assert kept["hparams"] == {"eta": 1e-4, "layers": [4, 5]}
    assert kept["versions"]["python"] and kept["versions"]["torch"]


def test_everything_of_a_run_comes_back(store, run, tmp_path):
    file = tmp_path / "delta.safetensors"
    file.write_bytes(b"weights")
    store.record_facts(run, [PARIS, PLAIN])
    store.record_outputs(run, INSTANCES)
    store.record_metrics(run, METRICS)
    store.add_artifact(run, "delta", file)
    store.finish_run(run, peak_memory_bytes=123, result={"notes": ["skipped"], "seconds": 2.5})
    whole = store.run(run)
    assert whole.facts == [PARIS, PLAIN]
    assert whole.outcome.instances == INSTANCES
    assert whole.outcome.metrics == METRICS
    assert whole.row["result"] == {"notes": ["skipped"], "seconds": 2.5}
    assert (whole.row["status"], whole.row["peak_memory_bytes"]) == ("done", 123)
    assert whole.row["ended"].endswith("+00:00") and whole.row["started"] <= whole.row["ended"]
    assert 0 <= whole.row["duration"] < 60
    [artifact] = whole.artifacts
    assert artifact["path"] == str(file) and artifact["bytes"] == 7
    assert artifact["sha256"] == hashlib.sha256(b"weights").hexdigest()


def test_probes_come_back_and_are_no_instances(store, run):
    side = ProbeSide("Lyon, since", [("Lyon", 0.75), (" Paris", 0.25)])
    store.record_facts(run, [PARIS])
    store.record_probe(run, "Where?", Probe(side, None))
    store.record_outputs(run, INSTANCES[:1])
    store.record_probe(run, "And now?", Probe(side, replace(side, text="Paris")))
    whole = store.run(run)
    assert whole.outcome.instances == INSTANCES[:1]
    shown = {"text": "Lyon, since", "top": [("Lyon", 0.75), (" Paris", 0.25)]}
    assert whole.probes == [
        {"prompt": "Where?", "before": shown, "after": None},
        {"prompt": "And now?", "before": shown, "after": shown | {"text": "Paris"}},
    ]


@settings(deadline=None)  # the disk may be slow
@given(
    facts=st.lists(
        st.builds(
            Fact,
            TEXTS,
            TEXTS,
            st.lists(TEXTS, max_size=2).map(tuple),
            st.lists(st.tuples(TEXTS, TEXTS), max_size=2).map(tuple),
            TEXTS,
            TEXTS,
            st.integers(0, 10**6),
        ),
        max_size=3,
    )
)
def test_any_text_is_kept_and_what_utf8_cannot_hold_becomes_a_question_mark(shared, facts):
    run = shared.start_run(1, "edit")
    shared.record_facts(run, facts)
    shared.record_outputs(
        run,
        [
            Instance(n, "edit", f.prompt, f.target, Output(f.subject), Output("", f.old_target), {}, {})
            for n, f in enumerate(facts)
        ],
    )
    whole, utf8 = shared.run(run), lambda text: text.encode("utf-8", "replace").decode()
    assert whole.facts == [
        Fact(
            utf8(f.prompt),
            utf8(f.target),
            tuple(map(utf8, f.equivalent)),
            tuple((utf8(prompt), utf8(answer)) for prompt, answer in f.unrelated),
            utf8(f.subject),
            utf8(f.old_target),
            f.row,
        )
        for f in facts
    ]
    assert [(one.before.argmax, one.after.generated) for one in whole.outcome.instances] == [
        (utf8(f.subject), utf8(f.old_target)) for f in facts
    ]


@pytest.fixture(scope="module")
def shared(tmp_path_factory):
    """One database for all examples of a property; it only grows."""
    with Store(tmp_path_factory.mktemp("shared") / "studio.db") as store:
        store.start_session("studio")
        yield store


def test_numbers_of_numpy_and_torch_are_kept_and_what_json_cannot_hold_is_null(store, run):
    import torch

    numbers = {"a": np.float32(0.5), "b": torch.tensor(3), "c": math.nan, "d": [math.inf], "e": Path("x"), 6: True}
    store.record_metrics(run, [Metric("ES", "exact", np.float64(0.5), math.nan, np.int64(4), None, None)])
    store.finish_run(run, result=numbers)
    whole = store.run(run)
    assert whole.row["result"] == {"a": 0.5, "b": 3, "c": None, "d": [None], "e": "x", "6": True}
    assert whole.outcome.metrics == [Metric("ES", "exact", 0.5, None, 4, None, None)]
    assert plain(store).execute("SELECT json_extract(result_json, '$.a') FROM runs").fetchone() == (0.5,)


def test_a_metric_recorded_again_takes_the_old_ones_place(store, run):
    store.record_metrics(run, METRICS)
    store.record_metrics(run, [replace(METRICS[0], value=0.5)])
    assert {m.name: m.value for m in store.run(run).outcome.metrics} == {"ES": 0.5, "Score": None}


def test_failed_and_cancelled_runs_are_kept_with_what_they_had(store):
    session = store.start_session("command line", "edit facts.csv")
    failed, cancelled = (store.start_run(session, "edit") for _ in range(2))
    store.record_facts(failed, [PARIS])
    store.fail_run(failed, "Row 7: the prompt is too long.", peak_memory_bytes=9)
    store.cancel_run(cancelled)
    whole = store.run(failed)
    assert (whole.row["status"], whole.row["error"]) == ("failed", "Row 7: the prompt is too long.")
    assert whole.facts == [PARIS] and whole.row["peak_memory_bytes"] == 9
    assert store.run(cancelled).row["status"] == "cancelled" and store.run(cancelled).row["duration"] >= 0


def test_the_parts_of_a_comparison_share_its_facts(store):
    session = store.start_session("studio")
    parent = store.start_run(session, "compare")
    store.record_facts(parent, [PARIS, PLAIN])
    parts = [store.start_run(session, "edit", method=name, parent=parent) for name in ("agrade", "malmen")]
    for part in parts:
        store.record_outputs(part, INSTANCES)
        store.record_metrics(part, METRICS)
        store.finish_run(part)
    store.finish_run(parent)
    assert store.run(parts[1]).facts == [PARIS, PLAIN]
    assert store.run(parts[1]).outcome.instances == INSTANCES
    whole = store.run(parent)
    children = [(child["method"], child["metrics"]) for child in whole.children]
    assert children == [("agrade", METRICS), ("malmen", METRICS)]
    assert [row["id"] for row in store.runs()] == [parent], "parts are listed with their comparison only"
    assert plain(store)["facts"].count == 2


# All or nothing


def test_a_transaction_keeps_all_or_nothing(store, run):
    with pytest.raises(ZeroDivisionError), store.transaction():
        store.record_facts(run, [PARIS])
        store.record_metrics(run, METRICS)
        raise ZeroDivisionError
    assert store.run(run).facts == [] and store.run(run).outcome.metrics == []
    store.record_facts(run, [PLAIN])
    assert store.run(run).facts == [PLAIN]


@pytest.mark.parametrize(
    "write",
    [
        lambda store: store.start_run(99, "edit"),
        lambda store: store.record_facts(99, [PARIS]),
        lambda store: store.record_outputs(99, INSTANCES),
        lambda store: store.record_metrics(99, METRICS),
        lambda store: store.record_probe(99, "?", Probe(ProbeSide("", []), None)),
        lambda store: store.add_artifact(99, "delta", __file__),
        lambda store: store.finish_run(99),
        lambda store: store.run(99),
    ],
)
def test_an_unknown_run_or_session_is_named(store, write):
    with pytest.raises(StoreError, match="There is no (run|session) 99"):
        write(store)


def test_outputs_without_their_facts_are_refused(store, run):
    with pytest.raises(StoreError, match="no facts yet"):
        store.record_outputs(run, INSTANCES)
    store.record_facts(run, [PARIS])
    with pytest.raises(StoreError, match="belongs to fact 1, but facts 0 to 0"):
        store.record_outputs(run, INSTANCES)
    assert store.run(run).outcome.instances == []


def test_a_missing_artifact_and_a_huge_seed_are_named(store, run, tmp_path):
    with pytest.raises(StoreError, match="gone.bin cannot be read"):
        store.add_artifact(run, "delta", tmp_path / "gone.bin")
    with pytest.raises(StoreError, match="seed 9223372036854775808"):
        store.start_run(1, "edit", seed=2**63)
    assert store.run(store.start_run(1, "edit", seed=2**63 - 1)).row["seed"] == 2**63 - 1


# Finding


def test_runs_are_newest_first_with_counts_and_metrics_and_can_be_paged(store):
    session = store.start_session("studio", "w1")
    ids = [edit(store, session) for _ in range(5)]
    store.record_metrics(ids[4], METRICS)
    rows = store.runs(limit=2)
    assert [row["id"] for row in rows] == [ids[4], ids[3]]
    assert [row["id"] for row in store.runs(limit=2, offset=4)] == [ids[0]]
    assert store.count_runs() == 5
    assert (rows[0]["fact_count"], rows[0]["metrics"], rows[1]["metrics"]) == (2, METRICS, [])
    assert (rows[0]["origin"], rows[0]["session_name"], rows[0]["hparams"]) == ("studio", "w1", {})


def test_filters_narrow_together(store):
    one, two = store.start_session("studio"), store.start_session("command line")
    first = edit(store, one)
    train = store.start_run(one, "train")
    failed = store.start_run(two, "edit")
    store.fail_run(failed, "No.")
    found = lambda **filters: [row["id"] for row in store.runs(**filters)]  # noqa: E731
    assert found(kind="edit") == [failed, first]
    assert found(status="running") == [train]
    assert found(session=one) == [train, first]
    assert found(kind="edit", status="done") == [first]
    assert store.count_runs(kind="edit", session=two) == 1
    assert found(kind="edit", session=one, search="Eiffel") == [first]


def test_search_looks_into_prompts_targets_and_outputs(store):
    session = store.start_session("studio")
    first = edit(store, session, [PARIS])
    store.record_outputs(first, INSTANCES[:2])
    second = edit(store, session, [PLAIN], title="My 100% edit", method="agrade")
    part = store.start_run(session, "edit", parent=second)
    store.record_outputs(part, [replace(INSTANCES[2], fact=0, after=Output("Rome", "déjà vu"))])
    failed = store.start_run(session, "train", model="gpt_neox")
    store.fail_run(failed, "Out of patience.")
    for words, hits in {
        "France": [first],
        "france's capital": [first],
        "capital italy": [first],
        "governed": [first],
        "of course": [first],
        "Eiffel": [second],
        "eif": [second],
        "0% ed": [second],
        "agra": [second],
        "DEJA": [second],
        "gpt_neox": [failed],
        "patience": [failed],
        "Rome": [second, first],
        "Eiffel France": [],
        "x' OR 1=1 --": [],
    }.items():
        assert [row["id"] for row in store.runs(search=words)] == hits, words
        assert store.count_runs(search=words) == len(hits), words
    assert store.count_runs(search="  ") == 3


@settings(deadline=None)
@given(words=TEXTS | st.text('"*():^-+ NEAROT', max_size=12))
def test_no_search_text_is_an_error(shared, words):
    assert shared.count_runs(search=words) == len(shared.runs(search=words, limit=10**6))


@settings(deadline=None, max_examples=40)
@given(word=st.from_regex(r"[a-z]{3,8}", fullmatch=True), script=st.sampled_from(["", "ö", "한국", "हिन्दी", "日本"]))
def test_a_recorded_word_is_found_by_it_and_by_its_beginning(shared, word, script):
    run = edit(shared, 1, [Fact(f"say {script}{word} now", "yes")])
    for search in (f"{script}{word}", f"{script}{word[:-1]}"):
        assert run in [row["id"] for row in shared.runs(search=search, limit=10**6)]


def test_the_search_index_follows_changes_and_deletions(store):
    run = edit(store, store.start_session("studio"), [PARIS])
    store.record_outputs(run, INSTANCES[:1])
    with store.transaction() as db:
        db["facts"].update(1, {"prompt": "The capital of Spain is"})
    assert store.count_runs(search="Spain") == 1
    with store.transaction() as db:
        db["sessions"].delete(1)
    for table in ("runs", "facts", "outputs"):
        assert plain(store)[table].count == 0
    for index in ("facts_fts", "outputs_fts"):
        plain(store).execute(f"INSERT INTO {index} ({index}, rank) VALUES ('integrity-check', 1)")


def test_sessions_are_listed_with_their_runs(store):
    one, two = store.start_session("studio", "w1"), store.start_session("command line")
    parent = edit(store, one)
    store.start_run(one, "edit", parent=parent)
    rows = store.sessions()
    assert [(row["id"], row["name"], row["run_count"]) for row in rows] == [(two, "", 0), (one, "w1", 1)]
    assert rows[1]["last_run"] == store.run(parent).row["started"] and rows[0]["last_run"] is None


# The file


def test_the_file_is_plain_sqlite_in_the_shape_promised(store):
    db = plain(store)
    assert db.journal_mode == "wal"
    tables = {"sessions", "runs", "facts", "outputs", "metrics", "artifacts"}
    assert tables | {"facts_fts", "outputs_fts"} <= set(db.table_names())
    assert all(db[name].strict for name in tables)
    with store.transaction() as own:
        assert own.execute("PRAGMA foreign_keys").fetchone() == (1,)
    with pytest.raises(StoreError, match="could not be used"), store.transaction() as own:
        own["runs"].update(store.start_run(store.start_session("studio"), "edit"), {"status": "paused"})


def test_folders_on_the_way_are_made_and_a_file_opens_again(tmp_path):
    path = tmp_path / "a" / "b" / "studio 1%?#.db"
    with Store(path) as store:
        run = edit(store, store.start_session("studio"))
    with Store(path) as store:
        assert store.run(run).facts == [PARIS, PLAIN]
    assert path.exists()


def apply_until(path, step):
    """A database as the studio made it before `step`."""
    db = Database(path)
    migrations.apply(db, stop_before=step)
    db.execute("PRAGMA foreign_keys = ON")
    return db


def test_a_database_from_before_search_is_brought_up_to_date_with_its_rows(tmp_path):
    path = tmp_path / "old.db"
    old = apply_until(path, "m002_search")
    assert "facts_fts" not in old.table_names()
    times = {"started": "2026-01-01T00:00:00.000+00:00"}
    old["sessions"].insert({"id": 1, "origin": "studio", "name": "", **times})
    old["runs"].insert(
        {"id": 1, "session": 1, "kind": "edit", "title": "", "method": "agrade", "hparams_json": "{}", "model": "m"}
        | {"model_sha": "", "status": "done", "versions_json": "{}", "pid": 1, "process_started": 0.0, **times}
    )
    old["facts"].insert(
        {"run": 1, "position": 0, "prompt": "Old prompt", "target": "Old target", "equivalent_json": '["Again"]'}
        | {"unrelated_json": '[["Other", "way"]]', "subject": "", "old_target": "", "source_row": 2}
    )
    sides = [("before", "ancient", '{"exact": 0.0}'), ("after", "modern", '{"exact": 1.0}')]
    old["outputs"].insert_all(
        {"run": 1, "fact": 1, "instance": 0, "phase": phase, "kind": "edit", "prompt": "Old prompt", "target": "t"}
        | {"argmax": said, "success_json": success}
        for phase, said, success in sides
    )
    old.close()
    with Store(path) as store:
        whole = store.run(1)
        assert whole.facts == [Fact("Old prompt", "Old target", ("Again",), (("Other", "way"),), row=2)]
        assert whole.outcome.instances[0].after == Output("modern")
        assert [store.count_runs(search=word) for word in ("again", "ancient", "nothing")] == [1, 1, 0]
        edit(store, 1, [PARIS])
        assert store.count_runs(search="France") == 1


def test_a_step_on_the_way_up_leaves_the_same_schema_as_from_blank(tmp_path, store):
    apply_until(tmp_path / "old.db", "m002_search").close()
    with Store(tmp_path / "old.db") as risen:
        assert plain(risen).schema == plain(store).schema
        assert [step.name for step in migrations.applied(plain(risen))] == ["m001_sessions_to_artifacts", "m002_search"]


def test_a_migration_that_fails_leaves_the_file_as_it_was(tmp_path, monkeypatch):
    path = tmp_path / "old.db"
    apply_until(path, "m002_search").close()
    before = Database(path).schema

    def apply(db):
        db.execute("CREATE TABLE half (a)")
        raise sqlite3.OperationalError("disk I/O error")

    monkeypatch.setattr(migrations, "apply", apply)
    with pytest.raises(StoreError, match="disk I/O error"):
        Store(path)
    assert Database(path).schema == before


def test_a_file_of_a_newer_studio_is_refused_and_left_alone(tmp_path):
    path = tmp_path / "new.db"
    Store(path).close()
    db = Database(path)
    db["_sqlite_migrations"].insert({"migration_set": "agrade-studio", "name": "m999_later", "applied_at": ""})
    assert unknown_steps(db) == ["m999_later"]
    db.close()
    with pytest.raises(StoreError, match="newer AGRADE Studio.*m999_later.*Update"):
        Store(path)


def test_a_file_of_another_program_is_refused_and_left_alone(tmp_path):
    path = tmp_path / "recipes.db"
    db = Database(path)
    db["recipes"].insert({"title": "Bread"})
    db.close()
    before = path.read_bytes()
    with pytest.raises(StoreError, match="another program.*recipes"):
        Store(path)
    assert path.read_bytes() == before


@pytest.mark.parametrize(
    "content", [b"prompt,target\nA,B\n" * 200, bytes(range(256)) * 20, b"SQLite format 3\0" + b"x" * 4096]
)
def test_a_file_that_is_not_a_database_is_refused_and_left_alone(tmp_path, content):
    path = tmp_path / "facts.csv"
    path.write_bytes(content)
    with pytest.raises(StoreError, match="facts.csv is not a SQLite database.*--db"):
        Store(path)
    assert path.read_bytes() == content


def test_an_empty_file_becomes_a_database(tmp_path):
    (tmp_path / "empty.db").touch()
    with Store(tmp_path / "empty.db") as store:
        assert store.runs() == []


def test_a_folder_and_a_path_through_a_file_are_named(tmp_path):
    with pytest.raises(StoreError, match="cannot be opened: it is a folder"):
        Store(tmp_path)
    (tmp_path / "file").touch()
    with pytest.raises(StoreError, match="folder .*file for the database cannot be made"):
        Store(tmp_path / "file" / "studio.db")


@pytest.mark.skipif(os.name != "posix", reason="rights are POSIX's")
def test_a_read_only_database_is_named_and_left_alone():
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "studio.db"
        Store(path).close()
        path.chmod(0o444)
        Path(folder).chmod(0o555)
        try:
            said = _as_nobody(lambda: Store(path))
        finally:
            Path(folder).chmod(0o755)
    assert "is read-only" in said and "right to write" in said


def _as_nobody(action):
    """The StoreError that a user without root's powers gets."""
    if os.geteuid() != 0:
        with pytest.raises(StoreError) as caught:
            action()
        return str(caught.value)
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            os.setuid(65534)
            action()
            said = "nothing"
        except BaseException as error:
            said = f"{type(error).__name__}: {error}"
        os.write(write, said.encode())
        os._exit(0)
    os.waitpid(child, 0)
    os.close(write)
    with os.fdopen(read) as pipe:
        return pipe.read().removeprefix("StoreError: ")


def test_a_database_damaged_while_open_is_named(tmp_path):
    path = tmp_path / "studio.db"
    with Store(path) as store:
        edit(store, store.start_session("studio"))
    size = path.stat().st_size
    with path.open("r+b") as file:
        file.seek(4096)
        file.write(b"x" * (size - 4096))
    with pytest.raises(StoreError, match="is damaged"):
        Store(path)


def test_a_closed_store_says_so(tmp_path):
    store = Store(tmp_path / "studio.db")
    store.close()
    with pytest.raises(StoreError, match="could not be used: .*closed"):
        store.runs()


# Threads, processes, crashes


def test_many_threads_write_and_read_one_store(store):
    session, errors = store.start_session("studio"), []

    def work(number):
        try:
            run = store.start_run(session, "edit", seed=number)
            with store.transaction():
                store.record_facts(run, [replace(PARIS, row=number), PLAIN])
                store.record_outputs(run, INSTANCES)
            store.runs(search="France")
            store.finish_run(run)
            whole = store.run(run)
            assert whole.facts[0].row == number == whole.row["seed"] and whole.outcome.instances == INSTANCES
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(12)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not errors
    assert store.count_runs(status="done") == 12


def python(code, path):
    """A process of its own that runs `code` with `store` open on `path`, from when it is sent a line."""
    start = f"import sys\nfrom studio.store import Store\nsys.stdin.readline()\nstore = Store(sys.argv[1])\n{code}"
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    return subprocess.Popen([sys.executable, "-c", start, str(path)], text=True, env=environment, **pipes)


def test_many_open_a_new_file_at_once(tmp_path):
    errors = []

    def work(path, barrier):
        barrier.wait(60)
        try:
            with Store(path) as store:
                store.finish_run(store.start_run(store.start_session("studio"), "edit"))
        except BaseException as error:
            errors.append(error)

    for attempt in range(5):
        path, barrier = tmp_path / f"{attempt}.db", threading.Barrier(6)
        threads = [threading.Thread(target=work, args=(path, barrier)) for _ in range(6)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert not errors
        assert Database(path)["runs"].count == 6


@pytest.mark.parametrize(("code", "tries"), [(sqlite3.SQLITE_BUSY, 3), (sqlite3.SQLITE_IOERR, 1)])
def test_a_file_that_another_is_just_switching_to_wal_is_tried_again(tmp_path, monkeypatch, code, tries):
    # The real collision is rare: seen 3 times in 300 rounds of six threads opening one new file.
    enable_wal, seen = Database.enable_wal, []

    def collide(db):
        seen.append(db)
        if len(seen) < 3:
            error = sqlite3.OperationalError("collision")
            error.sqlite_errorcode = code
            raise error
        enable_wal(db)

    monkeypatch.setattr(Database, "enable_wal", collide)
    try:
        Store(tmp_path / "studio.db").close()
    except StoreError as error:
        assert code == sqlite3.SQLITE_IOERR and "collision" in str(error)
    assert len(seen) == tries


def test_two_processes_write_to_one_file(tmp_path):
    path = tmp_path / "studio.db"
    code = """
session = store.start_session('command line')
for _ in range(20):
    store.finish_run(store.start_run(session, 'edit'))
"""
    workers = [python(code, path) for _ in range(2)]
    for worker in workers:
        worker.communicate("go\n", timeout=300)
    assert [worker.returncode for worker in workers] == [0, 0]
    with Store(path) as store:
        assert store.count_runs(status="done") == 40 and len(store.sessions()) == 2


def test_runs_stay_running_while_their_process_lives_and_are_marked_once_it_was_killed(tmp_path):
    path = tmp_path / "studio.db"
    code = """
from engine.facts import Fact
session = store.start_session('studio')
run = store.start_run(session, 'compare')
store.record_facts(run, [Fact('kept', 'too')])
store.start_run(session, 'edit', parent=run)
store.finish_run(store.start_run(session, 'edit'))
print('at work', flush=True)
sys.stdin.readline()
transaction = store.transaction()
db = transaction.__enter__()
db['runs'].insert(db['runs'].get(1) | {'id': 99})
print('in the middle of a write', flush=True)
sys.stdin.read()
"""
    process = python(code, path)
    try:
        process.stdin.write("go\n")
        process.stdin.flush()
        assert process.stdout.readline() == "at work\n"
        with Store(path) as store:
            assert store.interrupted() == []
            assert store.count_runs(status="running") == 1
        process.stdin.write("go on\n")
        process.stdin.flush()
        assert process.stdout.readline() == "in the middle of a write\n"
    finally:
        process.kill()
        process.communicate()
    with Store(path) as store:
        rows = {row["id"]: row for row in plain(store)["runs"].rows}
        assert sorted(rows) == [1, 2, 3], "the write in hand is gone, the finished ones stay"
        assert [rows[id]["status"] for id in (1, 2, 3)] == ["failed", "failed", "done"]
        assert [rows[id]["error"] for id in (1, 2, 3)] == [INTERRUPTED, INTERRUPTED, ""]
        assert rows[1]["ended"] is None and rows[1]["duration"] is None
        assert store.run(1).facts == [Fact("kept", "too")]
        assert store.interrupted() == []


def test_a_later_process_with_the_same_number_is_not_taken_for_the_old_one(store, run):
    with store.transaction() as db:
        db["runs"].update(run, {"process_started": psutil.Process().create_time() - 60})
    assert store.interrupted() == [run]
    assert store.run(run).row["error"] == INTERRUPTED


def test_a_run_wrongly_marked_is_put_right_by_the_process_that_ends_it(store, run):
    with store.transaction() as db:
        db["runs"].update(run, {"process_started": 0.0})
    store.interrupted()
    store.finish_run(run)
    assert (store.run(run).row["status"], store.run(run).row["error"]) == ("done", "")


def test_a_reader_of_its_own_sees_a_whole_transaction_or_nothing_of_it(store, run):
    reader = plain(store)
    with store.transaction():
        store.record_facts(run, [PARIS, PLAIN])
        assert reader["facts"].count == 0
    assert reader["facts"].count == 2
