"""The database: everything of a run comes back, all or nothing is written, and runs are found."""

import hashlib
import json
import math
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.facts import Fact
from engine.generation import Probe, ProbeSide
from engine.metrics import Instance, Metric, Output
from studio.connection import StoreError
from studio.store import Store
from tests.studio.records import INSTANCES, METRICS, PARIS, PLAIN, edit, plain

TEXTS = st.text(st.characters(), max_size=20)  # lone surrogates and NUL among them


@dataclass(frozen=True)
class Settings:
    eta: float = 1e-4
    layers: tuple[int, ...] = (4, 5)


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
    assert whole.probes == [("Where?", Probe(side, None)), ("And now?", Probe(side, replace(side, text="Paris")))]


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


def test_a_number_larger_than_any_is_no_run(store):
    for read in (lambda: store.run(10**30), lambda: store.runs(offset=10**30)):
        with pytest.raises(StoreError, match="No run has so large a number"):
            read()


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
    assert found(kind="edit", status="done") == [first]
    assert store.count_runs(kind="edit", status="failed") == 1
    assert found(kind="edit", search="Eiffel") == [first]


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
