"""A weight shift is finite, bound to its model, and comes back from its files as it went."""

import json

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from engine.delta import WeightDelta
from engine.errors import CheckpointError, NonFiniteError
from tests.engine.test_model import random_delta

SHA = "ab" * 32


@settings(max_examples=30)
@given(
    shapes=st.dictionaries(
        st.text("abc.0123", min_size=1), st.tuples(st.integers(1, 4), st.integers(1, 4)), min_size=1, max_size=3
    ),
    method=st.text(min_size=1),
    info=st.dictionaries(st.text(), st.one_of(st.integers(), st.text(), st.booleans())),
)
def test_file_gives_back_what_was_saved(tmp_path_factory, shapes, method, info):
    shifts = {name: torch.randn(shape) for name, shape in shapes.items()}
    stem = tmp_path_factory.mktemp("delta") / "my edit 1.2"
    paths = WeightDelta(shifts, SHA, method, info).save(stem)
    assert [path.name for path in paths] == ["my edit 1.2.safetensors", "my edit 1.2.json"]
    assert paths[0].stat().st_mode == paths[1].stat().st_mode  # whoever may read the one may read the other
    for start in (stem, *paths):
        loaded = WeightDelta.load(start)
        assert (loaded.model_sha256, loaded.method, loaded.info) == (SHA, method, info)
        assert loaded.shifts.keys() == shifts.keys()
        assert all(torch.equal(loaded.shifts[name], shift) for name, shift in shifts.items())


def test_card_says_what_a_reader_needs(tiny_model, tmp_path):
    model = tiny_model("gpt2")
    delta = random_delta(model)
    _, card = delta.save(tmp_path / "delta")
    body = json.loads(card.read_text())
    assert body["model_sha256"] == model.sha256 and "Conv1D" in body["layout"]
    assert body["norms"] == pytest.approx(delta.norms)


def test_loaded_delta_edits_as_the_one_saved(tiny_model, tmp_path):
    model = tiny_model("llama")
    delta = random_delta(model)
    stem, _ = delta.save(tmp_path / "delta")
    with model.edited(delta) as wanted, torch.no_grad():
        wanted = {name: weight.clone() for name, weight in wanted.items()}
    with model.edited(WeightDelta.load(stem)) as found:
        assert all(torch.equal(found[name], weight) for name, weight in wanted.items())


def test_norms_are_frobenius():
    delta = WeightDelta({"a": torch.tensor([[3.0, 4.0]]), "b": torch.tensor([[12.0]])}, SHA, "x")
    assert delta.norms == {"a": 5.0, "b": 12.0}
    assert delta.norm == 13.0
    assert WeightDelta({}, SHA, "x").norm == 0


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_shift_that_is_not_finite_is_named(value):
    with pytest.raises(NonFiniteError, match="weight shift of layer.3 is not finite, so nothing was edited"):
        WeightDelta({"layer.2": torch.ones(2, 2), "layer.3": torch.tensor([[1.0, value]])}, SHA, "x")


def damage(what: str, tensors, card) -> None:
    body = json.loads(card.read_text())
    if what == "no card":
        card.unlink()
    elif what == "no tensors":
        tensors.unlink()
    elif what == "tensors cut short":
        tensors.write_bytes(tensors.read_bytes()[:40])
    elif what == "card is no JSON":
        card.write_text("{")
    elif what == "card is no text":
        card.write_bytes(b"\xff\xfe\xfa")
    elif what == "card is a list":
        card.write_text("[]")
    elif what == "card of something else":
        card.write_text(json.dumps(body | {"format": "another"}))
    elif what == "card without its model":
        del body["model_sha256"]
        card.write_text(json.dumps(body))


@pytest.mark.parametrize(
    "what",
    [
        "no card",
        "no tensors",
        "tensors cut short",
        "card is no JSON",
        "card is no text",
        "card is a list",
        "card of something else",
        "card without its model",
    ],
)
def test_damaged_delta_is_named(tmp_path, what):
    damage(what, *WeightDelta({"a": torch.ones(2, 3)}, SHA, "x").save(tmp_path / "mine"))
    with pytest.raises(CheckpointError, match="mine.* is not "):
        WeightDelta.load(tmp_path / "mine")


def test_delta_file_with_infinity_is_named(tmp_path):
    tensors, _ = WeightDelta({"a": torch.ones(2, 3)}, SHA, "x").save(tmp_path / "mine")
    save_file({name: shift / 0 for name, shift in load_file(tensors).items()}, tensors)
    with pytest.raises(NonFiniteError, match="weight shift of a"):
        WeightDelta.load(tmp_path / "mine")
