"""The studio loads models: the present one stays until the new one is there, where both have room."""

import pytest
import torch

import studio.studio
from engine.delta import WeightDelta
from engine.errors import ModelError
from studio.store import Store
from studio.studio import Studio
from studio.workspace import AppliedEdit


@pytest.fixture
def loaded(tmp_path, tiny_model):
    """A studio with a tiny GPT-2, and a workspace with an edit of it."""
    opened = Studio(Store(tmp_path / "studio.db"))
    opened.model = tiny_model("gpt2")
    opened.workspace("w").apply(AppliedEdit(1, WeightDelta({}, opened.model.sha256, "ft"), "1 fact by FT"))
    yield opened
    opened.close()


class Card:
    """A graphics card that has room for one model beside no other."""

    def __init__(self, owner: Studio, new, enough: bool = True):
        self.owner, self.new, self.enough, self.asked = owner, new, enough, []

    def __call__(self, name, *_wanted):
        self.asked.append(self.owner.model)
        if self.owner.model is not None or not self.enough:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 13.00 GiB.")
        return self.new


def test_where_two_models_have_no_room_the_present_one_goes_first(loaded, tiny_model, monkeypatch):
    before, new = loaded.model, tiny_model("llama")
    card = Card(loaded, new)
    monkeypatch.setattr(studio.studio, "load_model", card)
    assert loaded.load_model("large") is new is loaded.model
    assert card.asked == [before, None] and loaded.workspace("w").current is None


def test_where_not_even_one_has_room_that_is_said_and_there_is_none(loaded, tiny_model, monkeypatch):
    card = Card(loaded, tiny_model("llama"), enough=False)
    monkeypatch.setattr(studio.studio, "load_model", card)
    with pytest.raises(torch.OutOfMemoryError):
        loaded.load_model("too large")
    with pytest.raises(ModelError, match="not enough memory"):
        loaded.require_model()
    with pytest.raises(torch.OutOfMemoryError):
        loaded.load_model("too large")
    assert card.asked[1:] == [None, None]


def test_a_model_that_cannot_be_loaded_for_another_reason_leaves_the_present_one(loaded, monkeypatch):
    def refuse(*_wanted):
        raise ModelError("There is no such folder.")

    before = loaded.model
    monkeypatch.setattr(studio.studio, "load_model", refuse)
    with pytest.raises(ModelError):
        loaded.load_model("nowhere")
    assert loaded.require_model() is before and loaded.workspace("w").current is not None
