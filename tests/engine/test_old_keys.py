"""K₀ is what the keys at the answers of unrelated prompts are: all their directions, or those that hold most."""

import pytest
import torch

from engine import old_keys as module
from engine.errors import FactError
from engine.facts import Fact
from engine.model import FAMILIES
from engine.old_keys import old_keys
from engine.prompts import encode
from engine.training_data import TrainingData
from tests.engine import tiny
from tests.engine.test_trace import slow

LAYERS = [1, 3]
WEIGHT = 7.0


def data(model, facts=tiny.FACTS) -> TrainingData:
    return TrainingData(model, facts, model.edit_modules(LAYERS), "equivalent", 0)


@pytest.mark.parametrize("family", FAMILIES)
def test_their_moment_is_that_of_each_prompt_alone(tiny_model, family):
    model = tiny_model(family)
    modules = model.edit_modules(LAYERS)
    pairs = [pair for fact in tiny.FACTS for pair in fact.unrelated if pair[1]]
    encoded = encode(model.tokenizer, pairs, tiny.CONTEXT, ["a test"] * len(pairs))
    for l, found in enumerate(old_keys(model, modules, data(model), WEIGHT, seed=0)):
        keys = torch.cat([slow(model, modules, item)[0][l][item.start :] for item in encoded])
        assert found.dtype is torch.float32 and found.shape[0] <= min(len(keys), modules[l].d_h)
        torch.testing.assert_close(found.T @ found, WEIGHT * keys.T @ keys / len(keys), rtol=1e-3, atol=1e-4)


def test_the_leading_directions_are_kept_and_prompts_are_drawn_by_the_seed(tiny_model, monkeypatch):
    model = tiny_model("llama")
    modules = model.edit_modules(LAYERS)
    whole = old_keys(model, modules, data(model), WEIGHT, seed=0)
    monkeypatch.setattr(module, "DIRECTIONS", 2)
    for few, all_of_them in zip(old_keys(model, modules, data(model), WEIGHT, seed=0), whole):
        wanted = torch.linalg.eigvalsh(all_of_them.T @ all_of_them)[-2:]
        torch.testing.assert_close(few.square().sum(1), wanted, rtol=1e-3, atol=1e-5)
    monkeypatch.setattr(module, "PROMPTS", 1)
    drawn = {seed: old_keys(model, modules, data(model), WEIGHT, seed)[0] for seed in (0, 0, 1, 2, 3)}
    assert torch.equal(drawn[0], old_keys(model, modules, data(model), WEIGHT, 0)[0])
    assert len({keys.abs().sum().item() for keys in drawn.values()}) > 1


def test_facts_without_unrelated_prompts_are_named(tiny_model):
    model = tiny_model("llama")
    facts = [Fact("The capital of France is", "Rome")]
    with pytest.raises(FactError, match="old_keys needs unrelated prompts"):
        old_keys(model, model.edit_modules(LAYERS), data(model, facts), WEIGHT, seed=0)
