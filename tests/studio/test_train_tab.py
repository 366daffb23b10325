"""The Train tab: its form, the training's folder and job, and what the page says of it, without a browser."""

import json
import re
import time
from dataclasses import asdict, replace
from pathlib import Path

import gradio as gr
import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.checkpoint import find_checkpoints, load_checkpoint
from engine.errors import CheckpointError, EditingError, FactError, NonFiniteError
from engine.fact_readers import read_facts, write_csv
from engine.facts import Fact, FactBatch
from engine.trainer import Trainer, TrainSettings
from studio import trainings
from studio.components.checkpoint_card import card_html, spans
from studio.components.training_form import COMMON, OTHERS, read_files, read_settings
from studio.components.training_plot import curve_of, loss_figure, read_log, running_mean, validation_table
from studio.components.training_state import data_html, left, state_html
from studio.components.training_view import TrainingView
from studio.jobs import Snapshot
from studio.store import Store
from studio.studio import Studio
from studio.tabs import history, train
from studio.training_job import last_training, new_request, resume_request, start_training
from tests.engine.tiny import FACTS

EVIL = "<img src=x onerror=alert(1)>"
SHORT = TrainSettings(
    steps=3, validate_every=2, rank=4, smallest_batch=1, largest_batch=4, valid_facts=4, cache_gb=0.01, warmup=1
)
BATCH = FactBatch(FACTS, "tiny facts.csv", "studio")
SNAPSHOT = Snapshot(
    id="1", title="Training x", model="m", workspace="training", state="running", position=0, stage="Training",
    done=4, total=10, eta=None, seconds=8.0, cancelling=False, log=(), result=None, error="", traceback="",
)  # fmt: skip


@pytest.fixture
def studio(tmp_path, tiny_model):
    """A studio over a tiny model, whose cache is the test's own folder."""
    studio = Studio(Store(tmp_path / "studio.db"))
    studio.cache, studio.model = tmp_path / "cache", tiny_model("llama")
    yield studio
    studio.close()


def root(studio: Studio) -> Path:
    return studio.hypernet_folders[0]


def begin(studio: Studio, settings: TrainSettings = SHORT, name: str = "first"):
    request = new_request(studio, [BATCH], [], 0.4, settings, name)
    return start_training(studio, studio.workspace("w"), request)


def wait(job) -> Snapshot:
    assert job.ended.wait(120)
    return job.snapshot()


# The form


def test_the_form_has_every_setting_once():
    assert sorted((*COMMON, *OTHERS, "method")) == sorted(asdict(TrainSettings()))


def test_the_form_reads_its_own_defaults():
    values = asdict(TrainSettings())
    assert read_settings("malmen", [values[name] for name in (*COMMON, *OTHERS)]) == TrainSettings(method="malmen")


def test_a_blank_number_is_named():
    values = asdict(TrainSettings()) | {"rank": None}
    with pytest.raises(EditingError, match="Rank: a number is needed"):
        read_settings("agrade", [values[name] for name in (*COMMON, *OTHERS)])


def test_files_come_from_uploads_and_from_paths(tmp_path):
    for name in ("a", "b"):
        write_csv(FACTS, tmp_path / f"{name}.csv")
    batches = read_files([str(tmp_path / "a.csv")], f"\n {tmp_path / 'b.csv'} \n", "training")
    assert [batch.source for batch in batches] == ["a.csv", "b.csv"] and len(batches[1]) == len(FACTS)
    with pytest.raises(FactError, match="no validation facts: upload"):
        read_files(None, " \n", "validation")
    with pytest.raises(FactError, match="missing.csv: cannot be read"):
        read_files(None, str(tmp_path / "missing.csv"), "training")


def test_what_was_read_is_told_with_what_is_missing():
    fact = Fact("A", "b", ("C",), (("D", ""),))
    html = data_html([FactBatch((fact,), f"{EVIL}.csv", "zsre"), FactBatch(FACTS, "b.csv", "studio")])
    assert "6 facts to learn from" in html and "1 fact (zsRE), 1 equivalent prompt and 0 unrelated" in html
    assert EVIL not in html and "No unrelated prompt has an answer" not in html
    assert "No unrelated prompt has an answer" in data_html([FactBatch((fact,), "a.csv", "studio")])


# Names and data


@given(st.text())
def test_a_name_is_a_plain_folder_name(text):
    try:
        name = trainings.clean_name(text)
    except FactError:
        return
    assert re.fullmatch(r"[A-Za-z0-9_](?:[A-Za-z0-9_-]*[A-Za-z0-9])?", name) and len(name) <= trainings.LONGEST_NAME
    assert trainings.clean_name(name) == name


@pytest.mark.parametrize(
    ("text", "name"),
    [("My facts 1", "My-facts-1"), ("../../etc/passwd", "etc-passwd"), ("Zürich\\é", "Zurich-e"), ("a.b", "a-b")],
)
def test_names_keep_what_can_be_kept(text, name):
    assert trainings.clean_name(text) == name


@pytest.mark.parametrize("text", ["", "  ", "../..", "北京", "---"])
def test_a_name_of_nothing_is_refused(text):
    with pytest.raises(FactError, match="no name"):
        trainings.clean_name(text)


def test_a_taken_name_is_refused_and_a_free_one_offered(tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine-2").mkdir()
    with pytest.raises(FactError, match="already a training named mine.*mine-3 is free"):
        trainings.new_folder(tmp_path, "mine")
    assert trainings.new_folder(tmp_path, "mine-3") == tmp_path / "mine-3"


def test_sets_are_named_by_form_or_file():
    files = {"a.json": "zsre", "x y.csv": "studio", "c1.json": "counterfact", "c2.json": "counterfact"}
    batches = [FactBatch(FACTS, name, form) for name, form in files.items()]
    assert list(trainings.name_sets(batches)) == ["zsre", "x-y", "c1", "c2"]
    twins = [FactBatch(FACTS, "same.csv", "studio")] * 2
    assert list(trainings.name_sets(twins)) == ["same", "same-2"]


def test_held_out_prompts_are_not_trained_on():
    facts = [Fact(f"prompt {n // 2}", f"target {n}") for n in range(100)]
    train_part, valid = trainings.hold_out({"a": facts}, 0.2, 512, seed=1)
    assert len(valid["a"]) == 20 and sorted([*train_part["a"], *valid["a"]], key=facts.index) == facts
    assert not {fact.prompt for fact in train_part["a"]} & {fact.prompt for fact in valid["a"]}
    assert trainings.hold_out({"a": facts}, 0.2, 512, seed=1)[1] == valid
    assert trainings.hold_out({"a": facts}, 0.2, 512, seed=2)[1] != valid
    assert len(trainings.hold_out({"a": facts}, 0.5, 3, seed=1)[1]["a"]) == 6  # 3 prompts


def test_too_few_facts_to_hold_out():
    with pytest.raises(FactError, match="alone: 1 facts are too few"):
        trainings.hold_out({"alone": FACTS[:1]}, 0.1, 10, 0)


def test_kept_data_come_back_as_they_were(tmp_path):
    contradicting = (*FACTS, Fact(FACTS[0].prompt, "Madrid"), Fact("Two || bars", "a [b]", ("[1]", "c || d")))
    sets = {"a-b": contradicting, "zsre": FACTS}
    trainings.keep_data(tmp_path, sets, {"zsre": FACTS[:1]})
    train_part, valid = trainings.kept_data(tmp_path)
    strip = lambda part: {name: [replace(fact, row=0) for fact in facts] for name, facts in part.items()}  # noqa: E731
    assert list(train_part) == ["a-b", "zsre"] and strip(train_part) == strip(sets)
    assert strip(valid) == strip({"zsre": FACTS[:1]})
    assert len(read_facts(tmp_path / "data" / "train" / "1-a-b.json").require()) == len(contradicting)
    (tmp_path / "data" / "train" / "1-a-b.json").write_text("[{")
    with pytest.raises(CheckpointError, match="cannot be read"):
        trainings.kept_data(tmp_path)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"rank": 0}, "rank is 0: it has to be at least 1"),
        ({"steps": -1}, "steps is -1"),
        ({"eta": 0.0}, "eta is 0.0: it has to be more than 0"),
        ({"learning_rate": float("nan")}, "learning_rate is nan"),
        ({"kappa": -0.1}, "kappa is -0.1: it has to be 0 or more"),
        ({"smallest_batch": 9, "largest_batch": 8}, "swap the two"),
        ({"layers": "2-9"}, "layers 0 to 3"),
        ({"layers": "last"}, "not understood"),
    ],
)
def test_settings_that_cannot_work_are_named(tiny_model, change, words):
    with pytest.raises(EditingError, match=re.escape(words)):
        trainings.check(replace(SHORT, **change), tiny_model("llama"))


# The job


def test_a_training_ends_as_a_checkpoint_the_studio_offers(studio):
    shot = wait(begin(studio, name="My first"))
    folder = root(studio) / "My-first"
    assert (shot.state, shot.result) == ("done", folder), shot.error
    assert [path for _label, path in studio.hypernets("agrade")][:1] == [folder]
    assert load_checkpoint(folder).card["steps"] <= 3
    assert len(read_log(folder / trainings.LOG)) == 3
    row = studio.store.runs(kind="train")[0]
    assert (row["status"], row["method"], row["seed"]) == ("done", "agrade", 0)
    assert row["session"] == studio.workspace("w").session
    kinds = [(one["kind"], Path(one["path"]).name) for one in studio.store.run(row["id"]).artifacts]
    assert sorted(kinds) == [
        ("checkpoint", "card.json"), ("checkpoint", "hypernet.safetensors"), ("training log", trainings.LOG),
    ]  # fmt: skip
    card = card_html(json.loads((folder / "card.json").read_text()), folder)
    assert "AGRADE" in card and "My-first" in card and "tiny-facts" in card


def test_an_aborted_training_keeps_its_checkpoint_and_goes_on_later(studio):
    job = begin(studio, replace(SHORT, steps=10_000))
    while not (root(studio) / "first" / "training.safetensors").exists() and not job.ended.is_set():
        time.sleep(0.05)
    with pytest.raises(EditingError, match="still going on"):
        begin(studio, name="second")
    studio.jobs.cancel(job.id)
    shot = wait(job)
    assert shot.state == "cancelled" and last_training(studio).id == job.id
    row = studio.store.runs(kind="train")[0]
    names = {Path(one["path"]).name for one in studio.store.run(row["id"]).artifacts}
    assert row["status"] == "cancelled" and names == {trainings.LOG, *trainings.CHECKPOINT_FILES}
    assert find_checkpoints(studio.model.sha256, studio.hypernet_folders)[-1][0] == root(studio) / "first"
    assert "best checkpoint so far" in state_html(shot)

    found = trainings.resumable(root(studio), studio.model.sha256)
    assert [(one.name, one.settings.steps) for one in found] == [("first", 10_000)] and found[0].step >= 2
    assert trainings.resumable(root(studio), "another model") == []
    assert re.fullmatch(r"first: step \d+ of 10000, Score 0\.\d{3}", train.resume_label(found[0]))
    with pytest.raises(FactError, match=f"at step {found[0].step} already"):
        resume_request(studio, "first", found[0].step)
    with pytest.raises(FactError, match="Choose a training"):
        resume_request(studio, "nobody", 99)
    end = found[0].step + 1
    shot = wait(start_training(studio, studio.workspace("w"), resume_request(studio, "first", end)))
    assert shot.state == "done", shot.error
    assert [record["step"] for record in read_log(root(studio) / "first" / trainings.LOG)] == list(range(1, end + 1))


def test_malmen_goes_on_later_too(studio):
    assert wait(begin(studio, replace(SHORT, method="malmen"))).state == "done"
    shot = wait(start_training(studio, studio.workspace("w"), resume_request(studio, "first", 4)))
    assert shot.state == "done", shot.error


def test_a_failed_training_is_a_row_with_its_sentence_and_its_log(studio, monkeypatch):
    step = Trainer.train_step

    def fails(trainer):
        if trainer.step == 1:
            raise NonFiniteError("The outer loss is not finite: lower the learning rate or η, then resume.")
        return step(trainer)

    monkeypatch.setattr(Trainer, "train_step", fails)
    shot = wait(begin(studio))
    row = studio.store.runs(kind="train")[0]
    assert shot.state == row["status"] == "failed" and shot.error == row["error"] and "not finite" in shot.error
    assert [Path(one["path"]).name for one in studio.store.run(row["id"]).artifacts] == [trainings.LOG]
    assert "failed at step 1" in state_html(shot) and "No checkpoint had been saved" in state_html(shot)
    assert not (root(studio) / "first" / "data").exists()
    assert trainings.resumable(root(studio), studio.model.sha256) == []
    with pytest.raises(FactError, match="first. It was stopped early. Choose another name: first-2"):
        new_request(studio, [BATCH], [], 0.4, SHORT, "first")


def test_a_training_needs_a_model_and_a_sensible_share(studio):
    for share in (0.0, 1.0, 10.0):
        with pytest.raises(FactError, match="between 0 and 1"):
            new_request(studio, [BATCH], [], share, SHORT, "")
    own = new_request(studio, [BATCH], [BATCH], 0.0, SHORT, " ")
    assert own.folder.name == "agrade-tiny-facts" and own.valid == own.train
    studio.model = None
    with pytest.raises(EditingError, match="not loaded yet"):
        new_request(studio, [BATCH], [], 0.4, SHORT, "")


# What the page says


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


def test_names_of_data_sets_are_escaped():
    curve = curve_of([record(1), SCORED])
    assert EVIL not in validation_table(curve) and EVIL not in loss_figure(curve).to_json()
    assert "0.250" in validation_table(curve) and "–" in validation_table(curve)


def test_the_figure_shows_both_losses_and_every_metric():
    losses_only = loss_figure(curve_of([record(1)]))
    assert {trace.name for trace in losses_only.data} >= {"L_equiv", "L_unrel"}
    full = loss_figure(curve_of([record(1), SCORED]))
    by_name = {trace.name: trace for trace in full.data if trace.name}
    assert list(by_name["ES"].y) == [0.5] and list(by_name["ES"].x) == [2] and list(by_name["Score"].y) == [None]
    assert list(by_name["L_unrel"].y) == pytest.approx([0.1, 0.15])


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
    assert "stopped before its first step" in state_html(replace(SNAPSHOT, state="cancelled"))
    stopped = replace(running, state="cancelled")
    assert "stopped at step 4" in state_html(stopped) and "No checkpoint" in state_html(stopped)
    (tmp_path / "card.json").touch()
    assert "Edit tab offers" in state_html(stopped)
    failed = replace(running, state="failed", error=f"{EVIL}\nsecond line")
    done = replace(running, state="done", result=tmp_path)
    assert "second line" in state_html(failed) and f"It lies in {tmp_path}" in state_html(done)
    for shot in (running, stopped, failed, done):
        assert EVIL not in state_html(shot)


def test_the_view_follows_a_training_to_its_card(studio):
    with gr.Blocks():
        view = TrainingView()
    updates = list(view.follow(studio.jobs, begin(studio).id))
    last = updates[-1]
    assert "first is trained" in last[view.state] and "first" in last[view.card].value
    assert last[view.plot].visible and "L_equiv" in last[view.plot].value["plot"]
    assert "best" in last[view.table].value


def test_the_tabs_can_be_built_and_name_everything_once(studio):
    with gr.Blocks() as page:
        session = gr.State("")
        with gr.Tab("Train"):
            train.build(studio, session)
        with gr.Tab("History"):
            history.build(studio, session)
    config = page.get_config_file()
    ids = [part["props"].get("elem_id") for part in config["components"] if part["props"].get("elem_id")]
    assert len(ids) == len(set(ids)) and {"train-start", "train-abort", "history-table"} <= set(ids)
    public = {one["api_name"] for one in config["dependencies"] if one["api_visibility"] == "public"}
    assert public == {"train", "history"}
