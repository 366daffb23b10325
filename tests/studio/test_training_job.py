"""The training's folder and job: begun, aborted, resumed, failed, published, without a browser."""

import errno
import json
import re
import shutil
import time
from dataclasses import replace
from pathlib import Path

import gradio as gr
import pytest

from engine.checkpoint import CHECKPOINT_FILES, Checkpoint, find_checkpoints, load_checkpoint, read_card
from engine.errors import EditingError, FactError, NonFiniteError
from engine.trainer import Trainer
from studio import trainings
from studio.components.checkpoint_card import card_html
from studio.components.training_form import STRUCTURE, TrainingForm
from studio.components.training_plot import read_log
from studio.components.training_state import state_html
from studio.records import record_path
from studio.store import Store
from studio.studio import Studio
from studio.tabs import train
from studio.training_job import last_training, new_request, resume_request, start_training
from tests.studio.small_training import BATCH, SHORT, begin, root, wait


@pytest.fixture
def studio(tmp_path, tiny_model):
    """A studio over a tiny model, whose cache is the test's own folder."""
    studio = Studio(Store(tmp_path / "studio.db"))
    studio.cache, studio.model = tmp_path / "cache", tiny_model("llama")
    yield studio
    studio.close()


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
