"""What a training goes on from: its own last save, to the unbroken one's weights, or a trained hypernetwork."""

import json
from dataclasses import replace

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

import engine.trainer
from engine.checkpoint import load_checkpoint
from engine.errors import Cancelled, CheckpointError
from engine.trainer import Trainer
from engine.training_state import STATE
from tests.engine import tiny
from tests.engine.test_trainer import SETTINGS, StopAt, assert_same, network, trainer


@pytest.fixture
def model(tiny_model):
    return tiny_model("llama")


@pytest.mark.parametrize(
    ("error", "saved", "rounds", "every"),
    [(Cancelled, 5, 1, 120), (Cancelled, 5, 2, 120), (KeyboardInterrupt, 3, 1, 120), (KeyboardInterrupt, 5, 1, 0)],
)
def test_resumed_training_is_the_unbroken_one(model, tmp_path, monkeypatch, error, saved, rounds, every):
    monkeypatch.setattr(engine.trainer, "SAVE_SECONDS", every)
    whole = trainer(model, tmp_path / "whole", rounds=rounds)
    whole.run()
    first = trainer(model, tmp_path / "broken", rounds=rounds)
    with pytest.raises(error):
        first.run(StopAt(5, error))
    assert load_checkpoint(tmp_path / "broken" / "latest").card["steps"] == saved
    second = trainer(model, tmp_path / "broken", rounds=rounds)
    second.resume()
    assert second.step == saved
    second.run()
    assert_same(network(tmp_path / "broken"), network(tmp_path / "whole"))
    assert [score | {"step": 0} for score in second.scores] == [score | {"step": 0} for score in whole.scores]
    steps = [json.loads(line)["step"] for line in (tmp_path / "broken" / "log.jsonl").read_text().splitlines()]
    assert steps == list(range(1, 10))


def test_more_steps_may_be_added_to_a_finished_training(model, tmp_path):
    trainer(model, tmp_path, steps=3).run()
    longer = trainer(model, tmp_path, steps=5)
    longer.resume()
    longer.run()
    assert load_checkpoint(tmp_path / "latest").card["steps"] == 5
    assert [score["step"] for score in longer.scores] == [3, 5]


def test_settings_changed_on_resume_are_told_by_the_card(model, tmp_path):
    trainer(model, tmp_path, steps=1, validate_every=1).run()
    again = trainer(model, tmp_path, steps=2, validate_every=1, kappa=3.0)
    again.resume()
    again.run()
    kappa = SETTINGS.kappa
    assert load_checkpoint(tmp_path / "latest").card["resumed"][-1]["changed"]["kappa"] == [kappa, 3.0]


@pytest.mark.parametrize(
    ("changes", "said"),
    [({"rank": 8}, "rank"), ({"seed": 1, "scope": "all"}, "scope, seed"), ({"method": "malmen"}, "method, projection")],
)
def test_resuming_with_other_settings_is_refused(model, tmp_path, changes, said):
    trainer(model, tmp_path, steps=1).run()
    with pytest.raises(CheckpointError, match=f"started with other settings: {said}"):
        trainer(model, tmp_path, steps=1, **changes).resume()


def test_resuming_for_another_model_or_other_facts_is_refused(model, tiny_model, tmp_path):
    trainer(model, tmp_path, steps=1).run()
    with pytest.raises(CheckpointError, match="other settings: the model"):
        trainer(tiny_model("qwen2"), tmp_path, steps=1).resume()
    with pytest.raises(CheckpointError, match="other settings: the training facts"):
        trainer(model, tmp_path, tiny.FACTS[:4], steps=1).resume()
    others = [*tiny.FACTS[:4], replace(tiny.FACTS[4], target="Lyon")]
    with pytest.raises(CheckpointError, match="other settings: the training facts"):
        trainer(model, tmp_path, others, steps=1).resume()


def test_a_training_from_before_facts_had_a_fingerprint_goes_on_with_as_many(model, tmp_path):
    whole = trainer(model, tmp_path, steps=1)
    del whole.card["data"]["tiny"]["train_sha256"]
    whole.run()
    again = trainer(model, tmp_path, steps=2)
    again.resume()
    assert again.step == 1
    with pytest.raises(CheckpointError, match="the training facts"):
        trainer(model, tmp_path, tiny.FACTS[:4], steps=2).resume()


def test_a_training_from_before_there_were_rounds_goes_on(model, tmp_path):
    trainer(model, tmp_path, steps=1).run()
    with safe_open(tmp_path / STATE, "pt") as file:
        meta = file.metadata()
    card = json.loads(meta["card"])
    del card["settings"]["rounds"]
    save_file(load_file(tmp_path / STATE), tmp_path / STATE, meta | {"card": json.dumps(card)})
    again = trainer(model, tmp_path, steps=2)
    again.resume()
    again.run()
    assert again.step == 2 and "rounds" not in again.card["resumed"][0]["changed"]


@pytest.mark.parametrize("at", [2, 4])
def test_a_validation_that_was_cancelled_is_made_up_for(model, tmp_path, monkeypatch, at):
    def training(folder):
        return trainer(model, folder, steps=4, validate_every=2)

    training(tmp_path / "whole").run()
    first, validate = training(tmp_path / "broken"), Trainer._validate

    def cancelled(self, progress):
        if self.step == at:
            raise Cancelled
        return validate(self, progress)

    monkeypatch.setattr(Trainer, "_validate", cancelled)
    told = []
    with pytest.raises(Cancelled):
        first.run(on_step=told.append)
    assert told[-1]["step"] == load_checkpoint(tmp_path / "broken" / "latest").card["steps"] == at
    monkeypatch.setattr(Trainer, "_validate", validate)
    again = training(tmp_path / "broken")
    again.resume()
    again.run(on_step=told.append)
    whole, resumed = (load_checkpoint(tmp_path / name / "latest").card["validation"] for name in ("whole", "broken"))
    assert resumed == whole and [record["step"] for record in whole] == [2, 4]
    assert [json.loads(line) for line in (tmp_path / "broken" / "log.jsonl").read_text().splitlines()] == told
    losses, scores = ([one["step"] for one in told if key in one] for key in ("loss", "tiny Score"))
    assert losses == [1, 2, 3, 4] and scores == [2, 4]


def test_a_validation_can_be_cancelled_while_it_edits_and_a_killed_one_costs_no_step(model, tmp_path):
    stages = []

    def progress(stage, *_far):
        stages.append(stage)
        if stage == "Editing":
            assert load_checkpoint(tmp_path / "latest").card["steps"] == 2, "saved before"
            raise Cancelled

    with pytest.raises(Cancelled):
        trainer(model, tmp_path, steps=4, validate_every=2).run(progress)
    assert stages[-1] == "Editing"
    again = trainer(model, tmp_path, steps=4, validate_every=2)
    again.resume()
    assert again.step == 2 and not again.scores


def test_nothing_to_resume_and_damaged_state_are_named(model, tmp_path):
    with pytest.raises(CheckpointError, match="no training to resume"):
        trainer(model, tmp_path).resume()
    (tmp_path / STATE).write_bytes(b"\x00" * 100)
    with pytest.raises(CheckpointError, match="training.safetensors is damaged"):
        trainer(model, tmp_path).resume()


def test_a_training_can_begin_with_a_trained_hypernetwork(model, tmp_path):
    trainer(model, tmp_path / "first", steps=3).run()
    trained = load_checkpoint(tmp_path / "first" / "latest")
    second = trainer(model, tmp_path / "second", facts=tiny.FACTS[1:], steps=2, validate_every=1, scope="all")
    second.start_from(trained)
    assert_same(second.hypernet.state_dict(), trained.hypernet.state_dict())
    with pytest.raises(Cancelled):
        second.run(StopAt(1))
    again = trainer(model, tmp_path / "second", facts=tiny.FACTS[1:], steps=2, validate_every=1, scope="all")
    again.resume()
    again.run()
    card = load_checkpoint(tmp_path / "second" / "latest").card
    assert (card["start"], card["steps"]) == ({"checkpoint": "latest", "steps": 3}, 2)
    moved = [not torch.equal(one, other) for one, other in zip(again.hypernet.parameters(), trained.hypernet.parameters())]
    assert all(moved)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"rank": 8}, "latest has rank 4: set rank to 4"),
        ({"layers": "1,3"}, "set layers to 1,2,3"),
        ({"method": "mend"}, "set the method to agrade"),
    ],
)
def test_beginning_with_a_hypernetwork_of_another_structure_is_refused(model, tiny_model, tmp_path, changes, said):
    trainer(model, tmp_path / "first", steps=1).run()
    trained = load_checkpoint(tmp_path / "first" / "latest")
    other = trainer(model, tmp_path / "second", **changes)
    with pytest.raises(CheckpointError, match=said):
        other.start_from(trained)
    with pytest.raises(CheckpointError, match="another model's weights"):
        trainer(tiny_model("qwen2"), tmp_path / "third").start_from(trained)


def test_log_line_cut_short_by_a_crash_does_not_stop_a_resume(model, tmp_path):
    trainer(model, tmp_path, steps=3).run()
    with (tmp_path / "log.jsonl").open("a") as log:
        log.write('{"step": 4}\n{"step": 5, "lo')
    again = trainer(model, tmp_path, steps=4)
    again.resume()
    again.run()
    steps = [json.loads(line)["step"] for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert steps == [1, 2, 3, 4]
