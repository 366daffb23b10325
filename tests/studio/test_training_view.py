"""What the page says of a training: its data, its log as a figure and a table, where its job stands."""

from dataclasses import replace

import pytest

from engine.facts import Fact, FactBatch
from studio.components.checkpoint_card import spans
from studio.components.training_plot import NAMES, curve_of, loss_figure, read_log, running_mean, validation_table
from studio.components.training_state import data_html, left, state_html
from studio.jobs import Snapshot
from tests.engine.tiny import FACTS

EVIL = "<img src=x onerror=alert(1)>"
SNAPSHOT = Snapshot(
    id="1", title="Training x", model="m", workspace="training", state="running", position=0, stage="Training",
    done=4, total=10, eta=None, seconds=8.0, cancelling=False, log=(), result=None, error="", traceback="",
)  # fmt: skip


def record(step: int, **more) -> dict:
    return {"step": step, "loss_equivalent": 5.0 - step, "loss_unrelated": 0.1 * step, "facts": 8} | more


SCORED = record(2, **{f"{EVIL} ES": 0.5, f"{EVIL} GS": 0.25, f"{EVIL} LS": None, f"{EVIL} Score": None})


def test_a_log_is_read_up_to_the_line_a_crash_cut_short(tmp_path):
    path = tmp_path / "log.jsonl"
    assert read_log(path) == []
    path.write_text('{"step": 1}\n[]\n\n{"step": 2, "lo', encoding="utf-8")
    assert read_log(path) == [{"step": 1}]


def test_the_best_validation_is_the_one_the_trainer_keeps():
    scores = [(2, 0.1), (4, 0.3), (6, 0.3), (8, None)]
    curve = curve_of([{"step": step, "a Score": value, "b Score": value} for step, value in scores])
    assert curve.best.step == 6 and curve.steps == []
    table = validation_table(curve)
    assert table.index(">8<") < table.index(">6 ") < table.index(">2<") and table.count("best</span>") == 1


def test_facts_without_equivalent_prompts_have_their_best_validation_by_ES_and_LS():
    values = [(50, 0.9, 0.9), (100, 0.1, 0.2)]
    records = [{"step": n, "a ES": es, "a GS": None, "a LS": ls, "a Score": None} for n, es, ls in values]
    assert curve_of(records).best.step == 50, "as engine.trainer keeps it"


def test_names_of_data_sets_are_escaped():
    curve = curve_of([record(1), SCORED])
    assert EVIL not in validation_table(curve) and EVIL not in loss_figure(curve).to_json()
    assert "0.250" in validation_table(curve) and "–" in validation_table(curve)


def test_the_figure_shows_both_losses_and_every_metric():
    losses_only = loss_figure(curve_of([record(1)]))
    assert {trace.name for trace in losses_only.data} >= set(NAMES.values())
    alone = curve_of([record(1) | {"loss_unrelated": 0.0}, record(2) | {"loss_unrelated": 0.0}])
    assert NAMES["L_unrel"] not in {trace.name for trace in loss_figure(alone).data}, "no such prompts were there"
    full = loss_figure(curve_of([record(1), SCORED]))
    by_name = {trace.name: trace for trace in full.data if trace.name}
    assert list(by_name["ES"].y) == [0.5] and list(by_name["ES"].x) == [2] and list(by_name["Score"].y) == [None]
    assert list(by_name[NAMES["L_unrel"]].y) == pytest.approx([0.1, 0.15])


def test_running_mean():
    assert running_mean([1.0, 3.0, 5.0], span=2) == [1.0, 2.0, 4.0]
    assert running_mean([]) == []


def test_spans():
    assert spans([14, 12, 13, 18, 13]) == "12–14, 18"


def test_the_time_left_counts_this_jobs_own_pace():
    steps = [record(step) for step in (101, 102, 103, 104)]
    assert left(SNAPSHOT, steps, 110) == pytest.approx(12.0)
    assert left(SNAPSHOT, steps[:1], 110) is None


def test_the_state_says_where_a_training_stands(tmp_path):
    head = {"name": f"x{EVIL}", "folder": str(tmp_path), "steps": 10}
    log = (head, record(3), record(4))
    running = replace(SNAPSHOT, log=log)
    assert "Training step · 4 of 10" in state_html(running) and "24 s left" in state_html(running)
    scoring = replace(running, stage="Scoring", done=5, total=20)
    assert "Scoring the validation facts, 25% · 4 of 10" in state_html(scoring)
    assert "Reading the training set" in state_html(replace(SNAPSHOT, log=(head,), stage=""))
    assert "waiting" in state_html(replace(SNAPSHOT, state="queued", position=2))
    assert "Stopping" in state_html(replace(running, cancelling=True)) and "Stopping" not in state_html(running)
    assert "aborted before its first step" in state_html(replace(SNAPSHOT, state="cancelled"))
    stopped = replace(running, state="cancelled")
    assert "aborted at step 4" in state_html(stopped) and "No checkpoint" in state_html(stopped)
    (tmp_path / "card.json").touch()
    assert "Edit tab offers" in state_html(stopped)
    failed = replace(running, state="failed", error=f"{EVIL}\nsecond line")
    done = replace(running, state="done", result=tmp_path)
    assert "second line" in state_html(failed) and f"It lies in {tmp_path}" in state_html(done)
    for shot in (running, stopped, failed, done):
        assert EVIL not in state_html(shot)


def test_what_was_read_is_told_with_what_is_missing():
    fact = Fact("A", "b", ("C",), (("D", ""),))
    html = data_html([FactBatch((fact,), f"{EVIL}.csv", "zsre"), FactBatch(FACTS, "b.csv", "studio")])
    assert "6 facts to learn from" in html and "1 fact (zsRE), 1 equivalent prompt and 0 unrelated" in html
    assert EVIL not in html and "No unrelated prompt has an answer" not in html
    assert "No unrelated prompt has an answer" in data_html([FactBatch((fact,), "a.csv", "studio")])
