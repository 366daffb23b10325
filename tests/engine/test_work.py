"""What editors say they are going to run is what they run, within a factor of two: counted at the layers, not timed."""

from contextlib import contextmanager
from dataclasses import dataclass, fields, replace

import pytest
import torch

from engine.checkpoint import Checkpoint
from engine.editors import EDITORS
from engine.errors import CheckpointError, EditingError, FactError
from engine.forecast import forecast
from engine.model import EditableModel
from engine.work import Work, summing
from tests.engine import tiny
from tests.engine.test_editors import QUICK, SMALL, make

FACTS = tiny.FACTS
FACTOR = 2


@pytest.fixture
def model(tiny_model) -> EditableModel:
    return tiny_model("llama")


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("AGRADE_STUDIO_CACHE", str(tmp_path / "cache"))


@dataclass
class Counted:
    """Tokens times layers, and passes over single tokens: the steps of a text that is written."""

    forward: int = 0
    backward: int = 0
    steps: int = 0


@contextmanager
def counted(model: EditableModel):
    """What really goes through the layers. One that only hands on what is known (`engine.forward`) does no work."""
    seen = Counted()

    def look(layer, _args, output):
        states = output[0] if isinstance(output, tuple) else output
        if "forward" in layer.__dict__:
            return
        tokens = states.shape[0] * states.shape[1]
        seen.forward += tokens
        seen.steps += layer is model.layers[0] and states.shape[1] == 1
        if states.requires_grad:
            states.register_hook(lambda gradient: setattr(seen, "backward", seen.backward + tokens))

    hooks = [layer.register_forward_hook(look) for layer in model.layers]
    try:
        yield seen
    finally:
        for hook in hooks:
            hook.remove()


def near(told: float, found: float) -> bool:
    return found / FACTOR <= told <= found * FACTOR


@pytest.mark.parametrize("method", EDITORS)
def test_an_edit_runs_about_what_was_told(model, method):
    editor = make(method, model)
    editor.edit(model, FACTS[:1])  # what is prepared is there
    assert editor.preparation(model) == Work()
    told = editor.work(model, FACTS)
    with counted(model) as found:
        delta = editor.edit(model, FACTS).delta
    assert near(told.forward, found.forward), (told, found)
    assert near(told.backward, found.backward), (told, found)
    assert near(told.steps + 1, found.steps + 1), (told, found)
    assert told.at_most == (method in QUICK or "covariance" in EDITORS[method].needs)
    assert [module.name for module in editor.modules(model)] == list(delta.shifts)
    assert editor.work(model, FACTS[:1]).forward < told.forward


@pytest.mark.parametrize("text", ["", "a file"])
def test_what_is_prepared_is_told_until_it_is_there(model, tmp_path, text):
    if text:
        text = tmp_path / "text.txt"
        text.write_text("The river in Ulm is the Danube, and the capital of France is Paris. " * 40, "utf-8")
    editor = make("memit", model, covariance_text=str(text), layers="0-1")
    told = editor.preparation(model)
    with counted(model) as found:
        editor.edit(model, FACTS[:1])
    with counted(model) as again:
        editor.edit(model, FACTS[:1])
    assert near(told.forward, found.forward - again.forward) and told.backward == 0
    assert near(told.steps + 1, found.steps - again.steps + 1)
    assert told.bytes > 0 and not told.at_most
    assert editor.preparation(model) == Work()


def test_a_cancelled_preparation_is_told_only_for_what_is_left(model):
    half, whole = (make("memit", model, covariance_tokens=tokens) for tokens in (2048, 4096))
    assert 1.5 < whole.preparation(model).forward / half.preparation(model).forward < 3
    calls = []

    def stop(stage, done, total):
        calls.append(stage)
        if stage == "Covariance" and done > 2500:
            raise KeyboardInterrupt

    before = whole.preparation(model)
    with pytest.raises(KeyboardInterrupt):
        whole.edit(model, FACTS[:1], stop)
    assert 0 < whole.preparation(model).forward < before.forward


def test_sums_and_what_they_hold(model):
    [module] = [replace(one, d_h=8, d_g=4) for one in model.edit_modules([1])]
    work = summing([module, module], rows=10)
    assert work.bytes == 2 * 4 * (2 * 64 + 3 * 32)
    assert work.operations == pytest.approx(2 * (2 * 10 * 64 + 4 * 10 * 32 + 512 / 3 + 2 * 64 * 4))


def test_few_rows_are_held_themselves(model):
    wide, slim = ([replace(one, d_h=d_h, d_g=d_h) for one in model.edit_modules([1])] for d_h in (4096, 64))
    assert summing(wide, rows=3).bytes < 4 * 2 * 4096**2 < summing(wide, rows=600).bytes
    assert summing(wide, rows=3).operations < summing(wide, rows=600).operations / 1000
    assert summing(slim, rows=100).bytes == 4 * 5 * 64**2


def test_work_adds_up_and_holds_what_its_larger_part_holds():
    assert Work(1, 2, 3, 4, 50) + Work(1, 1, 1, 1, 7, True) == Work(2, 3, 4, 5, 50, True)


def test_a_forecast_needs_no_weights_of_the_hypernetwork(model, tmp_path):
    checkpoint = tiny.random_checkpoint(model)
    folder = checkpoint.save(tmp_path / "net")
    (folder / "hypernet.safetensors").write_bytes(b"no weights")
    found = forecast(model, FACTS, "agrade", hypernet=folder)
    assert found.modules == list(checkpoint.hypernet.modules_edited)
    assert found.work == make("agrade", model, checkpoint).work(model, FACTS) and found.preparation == Work()
    card = checkpoint.card | {"modules": [{"name": "x"}]}
    broken = Checkpoint("broken", checkpoint.hypernet, card).save(tmp_path / "broken")
    text = (broken / "card.json").read_text().replace('"d_h"', '"width"')
    (broken / "card.json").write_text(text)
    with pytest.raises(CheckpointError, match="card.json is damaged"):
        forecast(model, FACTS, "agrade", hypernet=broken)


def test_a_forecast_tells_what_was_guessed_and_what_cannot_be(model):
    known = {item.name for item in fields(EDITORS["memit"].Settings)}
    settings = {name: value for name, value in SMALL.items() if name in known}
    nameless = [replace(fact, subject="") for fact in FACTS[:1]]
    found = forecast(model, nameless, "memit", settings)
    assert found.preparation.forward > 0 and "row 1 “France”" in found.notes[0]
    with pytest.raises(FactError, match="Row 1: the subject is missing"):
        forecast(model, [replace(FACTS[2], prompt="water boils at", subject="")], "memit", settings)
    with pytest.raises(EditingError, match="Unknown method"):
        forecast(model, FACTS, "magic")
    with pytest.raises(FactError, match="were not understood"):
        forecast(model, FACTS, "ft", {"layers": "few"})


def test_nothing_runs_for_a_forecast(model):
    with counted(model) as found, torch.no_grad():
        for method in ("ft", "lora", "ultraedit", "memit", "pmet", "emmet", "alphaedit"):
            forecast(model, FACTS, method)
    assert found == Counted()
