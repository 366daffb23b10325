"""The Train tab: its form, the training's folder and job, and what the page says of it, without a browser."""

import errno
import json
import re
import shutil
import time
from dataclasses import asdict, replace
from pathlib import Path

import gradio as gr
import pytest

from engine.checkpoint import CHECKPOINT_FILES, Checkpoint, find_checkpoints, load_checkpoint, read_card
from engine.errors import EditingError, FactError, NonFiniteError
from engine.fact_readers import write_csv
from engine.facts import FactBatch
from engine.train_settings import TrainSettings
from engine.trainer import Trainer
from studio import trainings
from studio.components.checkpoint_card import card_html
from studio.components.fact_sheet import FactSheet
from studio.components.sidebar import Sidebar
from studio.components.training_form import COMMON, OTHERS, STRUCTURE, TrainingForm, read_files, read_settings
from studio.components.training_plot import read_log
from studio.components.training_state import state_html
from studio.components.training_view import TrainingView
from studio.jobs import Snapshot
from studio.records import record_path
from studio.store import Store
from studio.studio import Studio
from studio.tabs import history, train
from studio.training_job import last_training, new_request, resume_request, start_training
from tests.engine.tiny import FACTS
from tests.studio.wiring import comes_back, emptied_by

SHORT = TrainSettings(
    steps=3, validate_every=2, rank=4, smallest_batch=1, largest_batch=4, valid_facts=4, cache_gb=0.01, warmup=1
)
BATCH = FactBatch(FACTS, "tiny facts.csv", "studio")


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
    assert len(read_files([str(tmp_path / "a.csv")], " ", "training", local=False)) == 1
    with pytest.raises(FactError, match="open to other computers"):
        read_files([str(tmp_path / "a.csv")], str(tmp_path / "b.csv"), "training", local=False)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"rank": 0}, "rank is 0: it has to be at least 1"),
        ({"rounds": 0}, "rounds is 0: it has to be at least 1"),
        ({"steps": -1}, "steps is -1"),
        ({"eta": 0.0}, "eta is 0.0: it has to be more than 0"),
        ({"learning_rate": float("nan")}, "learning_rate is nan"),
        ({"kappa": -0.1}, "kappa is -0.1: it has to be 0 or more"),
        ({"old_keys": -5.0}, "old_keys is -5.0: it has to be 0 or more"),
        ({"old_keys": float("nan")}, "old_keys is nan"),
        ({"clip": float("inf")}, "clip is inf"),
        ({"lam": 100.0}, "lam is 100.0: it has to be from −50 to 50"),
        ({"lam": float("nan")}, "lam is nan"),
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
        ("checkpoint", "card.json"), ("checkpoint", "hypernet.safetensors"),
        ("record", record_path(studio.store, row["id"]).name), ("training log", trainings.LOG),
    ]  # fmt: skip
    card = json.loads((folder / "card.json").read_text())
    shown = card_html(card, folder)
    assert "AGRADE" in shown and "My-first" in shown and "tiny-facts" in shown and "What was tried" not in shown
    assert "<li>λ &lt; 3</li>" in card_html(card | {"tried": ["λ < 3"]}, folder)
    one = {"data": {"own": {"train": 1, "valid": 1}}}
    assert "own: 1 fact, validated on 1" in card_html(card | one, folder)
    assert "2 × for 1 fact, 1.5 × for 8 facts" in card_html(card | {"step_scales": [[1, 2.0], [8, 1.5]]}, folder)
    assert "Step of few facts" not in shown


def test_an_aborted_training_keeps_its_checkpoint_and_goes_on_later(studio):
    job = begin(studio, replace(SHORT, steps=10_000))
    while not any(key.endswith(" Score") for one in job.snapshot().log for key in one) and not job.ended.is_set():
        time.sleep(0.05)
    with pytest.raises(EditingError, match="still going on"):
        begin(studio, name="second")
    studio.jobs.cancel(job.id)
    shot = wait(job)
    assert shot.state == "cancelled" and last_training(studio).id == job.id
    row = studio.store.runs(kind="train")[0]
    names = {Path(one["path"]).name for one in studio.store.run(row["id"]).artifacts}
    assert row["status"] == "cancelled" and names == {trainings.LOG, *CHECKPOINT_FILES}
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
    log = read_log(root(studio) / "first" / trainings.LOG)  # one of a validation made up for has no loss
    assert [record["step"] for record in log if "loss" in record] == list(range(1, end + 1))


def test_a_training_begins_with_a_trained_hypernetwork_in_its_structure(studio):
    with gr.Blocks():
        form = TrainingForm()
    assert wait(begin(studio, replace(SHORT, layers="1-2", scope="all", old_keys=5.0))).state == "done"
    card = read_card(root(studio) / "first")
    updates = form.begin_with(card)
    shown = {name: updates[form.controls[name]]["value"] for name in STRUCTURE}
    assert (shown["layers"], shown["scope"], shown["rank"], shown["old_keys"]) == ("1,2", "all", 4, 5.0)
    assert updates[form.method]["value"] == "agrade"
    chosen = replace(SHORT, **shown)
    request = new_request(studio, [BATCH], [], 0.4, chosen, "second", "first")
    assert request.start == root(studio) / "first"
    assert wait(start_training(studio, studio.workspace("w"), request)).state == "done"
    card = read_card(root(studio) / "second")
    assert card["start"] == {"checkpoint": "first", "steps": read_card(root(studio) / "first")["steps"]}
    assert card["settings"]["old_keys"] == 5.0
    assert "Began with" in card_html(card, root(studio) / "second")
    with pytest.raises(FactError, match="no trained hypernetwork nobody"):
        new_request(studio, [BATCH], [], 0.4, chosen, "third", "nobody")
    refused = new_request(studio, [BATCH], [], 0.4, replace(chosen, rank=5), "third", "first")
    shot = wait(start_training(studio, studio.workspace("w"), refused))
    assert shot.state == "failed" and "first has rank 4" in shot.error
    assert not (root(studio) / "third").exists()  # the name is free for another try


def test_malmen_goes_on_later_too(studio):
    assert wait(begin(studio, replace(SHORT, method="malmen"))).state == "done"
    shot = wait(start_training(studio, studio.workspace("w"), resume_request(studio, "first", 4)))
    assert shot.state == "done", shot.error


def test_a_failed_training_is_a_row_with_its_sentence_and_its_log(studio, monkeypatch):
    step = Trainer.train_step

    def fails(trainer, recorder=None):
        if trainer.step == 1:
            raise NonFiniteError("The outer loss is not finite: lower the learning rate or η, then resume.")
        return step(trainer, recorder)

    monkeypatch.setattr(Trainer, "train_step", fails)
    shot = wait(begin(studio))
    row = studio.store.runs(kind="train")[0]
    assert shot.state == row["status"] == "failed" and shot.error == row["error"] and "not finite" in shot.error
    assert [Path(one["path"]).name for one in studio.store.run(row["id"]).artifacts] == [trainings.LOG]
    assert "failed at step 1" in state_html(shot) and "No checkpoint had been saved" in state_html(shot)
    assert not (root(studio) / "first" / "data").exists()
    assert trainings.resumable(root(studio), studio.model.sha256) == []
    monkeypatch.undo()
    assert wait(begin(studio)).state == "done", "the name is free for another try"


def test_a_training_that_half_wrote_a_checkpoint_leaves_its_log_alone(studio, monkeypatch):
    def full(checkpoint, folder, dtype=None):
        folder.mkdir(parents=True)
        (folder / "hypernet.safetensors").write_bytes(b"half")
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Checkpoint, "save", full)
    shot = wait(begin(studio))
    assert shot.state == "failed" and "No space left on device. Free some room" in shot.error
    assert [path.name for path in (root(studio) / "first").iterdir()] == [trainings.LOG]
    assert trainings.new_folder(root(studio), "first") == root(studio) / "first"
    assert trainings.free_name(root(studio), "first") == "first"


def test_a_training_whose_data_find_no_room_is_a_row_and_leaves_its_name_free(studio, monkeypatch):
    write, written = Path.write_text, []

    def full(path, *given, **named):
        if written:
            raise OSError(errno.ENOSPC, "No space left on device")
        written.append(write(path, *given, **named))

    request = new_request(studio, [BATCH], [], 0.4, SHORT, "first")
    monkeypatch.setattr(Path, "write_text", full)
    shot = wait(start_training(studio, studio.workspace("w"), request))
    [row] = studio.store.runs()
    assert written and shot.state == row["status"] == "failed" and shot.error == row["error"]
    assert "No space left on device. Free some room" in shot.error
    assert row["kind"] == "train" and not (root(studio) / "first").exists()


@pytest.fixture
def full(monkeypatch):
    """No room for a card's copy."""

    def copy(source, goal):
        if Path(source).name == "card.json":
            raise OSError(errno.ENOSPC, "No space left on device")
        return Path(goal).write_bytes(Path(source).read_bytes())

    monkeypatch.setattr(shutil, "copyfile", copy)


def test_a_checkpoint_that_found_no_room_when_the_training_ended_is_published_later(studio, full, monkeypatch):
    shot = wait(begin(studio))
    folder = root(studio) / "first"
    assert shot.state == "failed" and "No space left on device. Free some room" in shot.error
    assert f"is whole, in {folder / 'best'}" in shot.error and "Its best checkpoint so far is saved" in state_html(shot)
    assert studio.store.runs(kind="train")[0]["status"] == "done"
    trainings.publish_late(root(studio))
    assert not [path.name for path in folder.iterdir() if path.name in CHECKPOINT_FILES or path.suffix == ".part"]
    monkeypatch.undo()
    trainings.publish_late(root(studio))
    assert load_checkpoint(folder).card == read_card(folder / "best")
    (folder / "card.json").write_text((folder / "card.json").read_text() + "\n")
    trainings.publish_late(root(studio))
    assert (folder / "card.json").read_text().endswith("\n\n"), "what is published stays as it is"


def test_a_damaged_best_checkpoint_does_not_take_the_place_of_a_published_one(studio):
    wait(begin(studio))
    folder = root(studio) / "first"
    whole = load_checkpoint(folder).card
    assert trainings.best_saved(folder) == folder / "best"
    (folder / "best" / "card.json").write_text("")
    assert trainings.best_saved(folder) == folder / "latest"
    (folder / "latest" / "card.json").unlink()
    trainings.publish_late(root(studio))
    assert load_checkpoint(folder).card == whole


def test_no_room_for_the_checkpoint_does_not_hide_why_the_training_failed(studio, full, monkeypatch):
    step = Trainer.train_step

    def fails(trainer, recorder=None):
        if trainer.step == 2:
            raise NonFiniteError("The outer loss is not finite.")
        return step(trainer, recorder)

    monkeypatch.setattr(Trainer, "train_step", fails)
    shot = wait(begin(studio))
    assert (shot.state, shot.error) == ("failed", "The outer loss is not finite.")
    assert trainings.best_saved(root(studio) / "first")


def test_a_training_needs_a_model_and_a_sensible_share(studio):
    for share in (0.0, 1.0, 10.0):
        with pytest.raises(FactError, match="between 0 and 1"):
            new_request(studio, [BATCH], [], share, SHORT, "")
    own = new_request(studio, [BATCH], [BATCH], 0.0, SHORT, " ")
    assert own.folder.name == "agrade-tiny-facts" and own.valid == own.train
    studio.model = None
    with pytest.raises(EditingError, match="not loaded yet"):
        new_request(studio, [BATCH], [], 0.4, SHORT, "")


# The page


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"settings": "x"}, "settings is 'x': give it as dict"),
        ({"held_out": "much"}, "held_out is 'much': give it as float"),
        ({"valid": ["facts.csv"]}, "valid is .'facts.csv'.: give it as list"),
        ({"settings": {"momentum": 1}}, "There is no setting momentum; there are method, layers"),
    ],
    ids=lambda given: "-".join(given) if isinstance(given, dict) else "",
)
def test_a_program_that_asks_for_what_is_no_training_is_told_in_a_sentence(studio, given, said):
    with pytest.raises(gr.Error, match=said):
        train.train_endpoint(studio)(None, **{"files": [], **given})


def test_a_step_that_is_no_whole_number_is_named(tab):
    (told,) = tab._resume("w", "first", 2.5)
    assert "Train until step: a whole number from 0 on is needed, not 2.5" in told[tab.problem].value


def test_the_view_follows_a_training_to_its_card(studio):
    with gr.Blocks():
        view = TrainingView()
    updates = list(view.follow(studio.jobs, begin(studio).id))
    last = updates[-1]
    assert "first is trained" in last[view.state] and "first" in last[view.card].value
    assert last[view.plot].visible and "L_equiv" in last[view.plot].value["plot"]
    assert "best" in last[view.table].value


@pytest.fixture
def tab(studio) -> train.TrainTab:
    with gr.Blocks():
        session = gr.State("w")
        sidebar = Sidebar(studio, session)
        with gr.Tab():
            return train.TrainTab(studio, session, sidebar)


def test_a_page_that_is_come_back_to_shows_the_training_of_another_one(studio, tab):
    nothing = [{tab.choice: gr.skip()}]
    (opened,) = tab._attach()
    assert list(tab._look_again(None)) == list(tab._look_again(opened[tab.seen])) == nothing
    job = begin(studio)
    first, *_, last = tab._look_again(opened[tab.seen])
    assert not first[tab.start].interactive and last[tab.start].interactive
    assert wait(job).state == "done" and list(tab._look_again(last[tab.seen])) == nothing
    again = list(tab._look_again(first[tab.seen]))
    assert again[-1][tab.seen] == last[tab.seen] and any("first is trained" in one.get(tab.view.state, "") for one in again)
    job = begin(studio, name="second")
    assert wait(job).state == "done" and list(tab._look_again(last[tab.seen])) != nothing


def test_a_page_that_follows_a_training_itself_is_left_alone(studio, tab):
    follows = tab._follow(begin(studio))
    seen = next(follows)[tab.seen]
    if not last_training(studio).ended:
        assert list(tab._look_again(seen)) == [{tab.choice: gr.skip()}]
    list(follows)


def test_a_page_is_looked_at_again_when_a_person_comes_back_to_it_or_to_the_tab(tab):
    back = {(tab.top.parent._id, "select"), (tab.sidebar.returned._id, "click")}
    assert comes_back(tab.problem, "_look_again") == back


def test_what_was_said_of_other_answers_goes_with_them_before_a_file_is_read(tab):
    form, emptied = tab.form, emptied_by(tab.problem)
    assert {(form.files._id, event) for event in ("upload", "clear", "delete")} <= emptied
    assert (form.files._id, "change") not in emptied, "its summary would come first"
    assert {(one._id, "change") for one in (form.paths, form.method, form.controls["layers"])} <= emptied


def test_the_tabs_can_be_built_and_name_everything_once(studio):
    with gr.Blocks() as page:
        session = gr.State("")
        with gr.Tab("Train"):
            train.build(studio, session, Sidebar(studio, session))
        with gr.Tab("History"):
            history.build(studio, session, FactSheet(studio, session))
    config = page.get_config_file()
    ids = [part["props"].get("elem_id") for part in config["components"] if part["props"].get("elem_id")]
    assert len(ids) == len(set(ids)) and {"train-start", "train-abort", "history-table"} <= set(ids)
    public = {one["api_name"] for one in config["dependencies"] if one["api_visibility"] == "public"}
    assert public == {"train", "history"}
