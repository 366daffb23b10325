"""Trunk and suffix together are the whole model, for every family, and logits at answers are the full ones."""

from dataclasses import replace

import pytest
import torch
from torch.testing import assert_close

from engine.forward import answer_logits, final_hidden, states_at, trunk
from engine.model import FAMILIES, EditableModel
from engine.prompts import TokenBatch, batches, collate, encode
from engine.trunk import TrunkCache
from tests.engine import tiny
from tests.engine.test_model import random_delta

PAIRS = [(fact.prompt, fact.target) for fact in tiny.FACTS]


@pytest.fixture(scope="module")
def encoded(tiny_tokenizer):
    return encode(tiny_tokenizer, PAIRS, tiny.CONTEXT, ["a test"] * len(PAIRS))


@pytest.fixture(scope="module")
def batch(encoded) -> TokenBatch:
    batch = collate(encoded, range(len(encoded)), "cpu")
    assert len(set(batch.lengths)) > 1  # padding is part of the test
    return batch


def alone(model: EditableModel, item) -> torch.Tensor:
    """Logits (S, V) of one prompt by itself, without padding, by the model's own forward."""
    return model.lm(torch.tensor([item.ids])).logits[0].float()


@pytest.mark.parametrize("family", FAMILIES)
@torch.no_grad()
def test_answer_logits_are_those_of_each_prompt_alone(tiny_model, encoded, batch, family):
    model = tiny_model(family)
    wanted = torch.cat([alone(model, item)[item.start :] for item in encoded])
    found = answer_logits(model, batch)
    assert found.dtype is torch.float32
    assert_close(found, wanted, rtol=1e-4, atol=1e-4)
    assert batch.labels.tolist() == [token for item in encoded for token in item.answer]


@pytest.mark.parametrize("family", FAMILIES)
@torch.no_grad()
def test_states_are_those_of_each_prompt_alone_and_nothing_above_runs(tiny_model, encoded, batch, family):
    model = tiny_model(family)
    module, layer = model.lm.get_submodule(model.edit_modules([1])[0].name), model.layers[2]
    hidden, ran = trunk(model, batch, 1), []
    hook = model.layers[3].register_forward_hook(lambda *_: ran.append(3))
    parts = states_at(model, batch, [module, layer], 1, hidden)
    hook.remove()
    assert not ran and not any(one._forward_hooks for one in model.lm.modules())
    for row, index in enumerate(batch.members):
        seen = {}

        def look(one, args, out):  # a copy: Falcon adds to it in place
            seen[one] = args, (out[0] if isinstance(out, tuple) else out).clone()

        hooks = [one.register_forward_hook(look) for one in (module, layer)]
        alone(model, encoded[index])
        for hook in hooks:
            hook.remove()
        first, length = row * batch.ids.shape[1], batch.lengths[row]
        args, out = seen[module]
        assert_close(parts[0][0][first : first + length], args[0].flatten(0, -2), rtol=1e-4, atol=1e-4)
        assert_close(parts[0][1][first : first + length], out.flatten(0, -2), rtol=1e-4, atol=1e-4)
        assert_close(parts[1][1][first : first + length], seen[layer][1].flatten(0, -2), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("family", FAMILIES)
@torch.no_grad()
def test_trunk_and_suffix_are_the_whole_forward_at_every_layer(tiny_model, batch, family):
    model = tiny_model(family)
    whole = final_hidden(model, batch)
    real = batch.tokens
    for layer in range(model.layer_count):
        hidden = trunk(model, batch, layer)
        assert hidden.shape == (*batch.ids.shape, tiny.WIDTH)
        states = final_hidden(model, batch, layer, hidden)
        assert_close(states.flatten(0, 1)[real], whole.flatten(0, 1)[real], rtol=1e-5, atol=1e-5)
    assert not any("forward" in layer.__dict__ for layer in model.layers)


@pytest.mark.parametrize("family", FAMILIES)
@torch.no_grad()
def test_suffix_starts_from_the_hidden_states_given(tiny_model, batch, family):
    """What a split hands over is used from its layer on: other ids below change nothing, another hidden state does."""
    model, layer = tiny_model(family), 2
    hidden = trunk(model, batch, layer)
    states = final_hidden(model, batch, layer, hidden)
    ran = []
    hooks = [module.register_forward_hook(lambda *_, l=l: ran.append(l)) for l, module in enumerate(_mlps(model))]
    elsewhere = TokenBatch(batch.ids * 0 + 7, *(getattr(batch, name) for name in list(batch.__dataclass_fields__)[1:]))
    assert torch.equal(final_hidden(model, elsewhere, layer, hidden), states)
    for hook in hooks:
        hook.remove()
    assert ran == [2, 3]
    assert not torch.allclose(final_hidden(model, batch, layer, hidden + 0.1 * hidden.roll(1, 0)), states, atol=1e-3)


def _mlps(model: EditableModel):
    return [model.lm.get_submodule(module.name) for module in model.edit_modules(range(model.layer_count))]


@pytest.mark.parametrize("family", ["gpt2", "gptj", "llama"])
@torch.no_grad()
def test_trunk_below_an_edit_serves_the_edited_model(tiny_model, encoded, batch, family):
    model = tiny_model(family)
    delta, layer = random_delta(model, [2, 3], scale=1.0), 2
    hidden = trunk(model, batch, layer)
    before = answer_logits(model, batch, layer, hidden)
    with model.edited(delta):
        found = answer_logits(model, batch, layer, hidden)
        wanted = torch.cat([alone(model, item)[item.start :] for item in encoded])
    assert_close(found, wanted, rtol=1e-4, atol=1e-4)
    assert not torch.allclose(found, before, atol=1e-2)


def test_a_failing_suffix_leaves_the_layers_as_they_were(tiny_model, batch):
    model = tiny_model("gptj")
    with pytest.raises(RuntimeError):
        final_hidden(model, batch, 2, torch.zeros(*batch.ids.shape, tiny.WIDTH + 1))
    assert not any("forward" in layer.__dict__ for layer in model.layers)


def test_soft_capped_logits_are_the_models_own(tiny_tokenizer, batch, encoded):
    model = tiny.build("gemma2", tiny_tokenizer, final_logit_softcapping=0.5)
    with torch.no_grad():
        wanted = torch.cat([alone(model, item)[item.start :] for item in encoded])
        assert_close(answer_logits(model, batch), wanted, rtol=1e-4, atol=1e-4)
    assert wanted.abs().max() <= 0.5


def test_autocast_gives_float32_logits_near_the_exact_ones(tiny_model, batch):
    model = tiny_model("llama")
    placement = replace(model.placement, dtype=torch.bfloat16, autocast=True)
    half = EditableModel(model.lm, model.tokenizer, "half", placement)
    with torch.no_grad():
        exact, found = answer_logits(model, batch), answer_logits(half, batch)
        hidden = trunk(half, batch, 2)
        assert torch.equal(answer_logits(half, batch, 2, hidden), found)
    assert found.dtype is torch.float32
    assert 0 < (found - exact).abs().max() < 0.1 * exact.abs().max()


@pytest.mark.parametrize("limit", [0, 700, 10**9], ids=["keeps nothing", "keeps some", "keeps all"])
def test_trunk_cache_gives_what_the_trunk_gives(tiny_model, encoded, limit, monkeypatch):
    model, layer = tiny_model("gpt2"), 2
    runs = []
    monkeypatch.setattr("engine.trunk.trunk", lambda *args: runs.append(args[1].members) or trunk(*args))
    cache = TrunkCache(model, layer, encoded, limit)
    for members in ([0, 3], [3, 1, 0], [1, 2, 4], [0, 1, 2, 3, 4]):
        part = collate(encoded, members, "cpu")
        rows = part.tokens
        found, wanted = cache(part), trunk(model, part, layer)
        assert found.shape == wanted.shape
        assert_close(found.flatten(0, 1)[rows], wanted.flatten(0, 1)[rows], rtol=1e-5, atol=1e-5)
        padding = torch.ones(found.shape[:2].numel(), dtype=torch.bool).index_fill(0, rows, False)
        assert torch.count_nonzero(found.flatten(0, 1)[padding]) == 0
    passes = sum(map(len, runs))
    assert {0: passes == 13, 700: 5 < passes < 13, 10**9: passes == 5}[limit]


def test_batches_hold_every_prompt_once_by_length(encoded):
    for limit in (1, 40, 96, 10**6):
        found = list(batches(encoded, limit))
        members = [index for batch in found for index in batch.members]
        assert sorted(members) == list(range(len(encoded)))
        lengths = [len(encoded[index].ids) for index in members]
        assert lengths == sorted(lengths)
        assert all(batch.ids.numel() <= limit or len(batch.members) == 1 for batch in found)
        assert sum(len(batch.labels) for batch in found) == sum(len(item.answer) for item in encoded)
    (some,) = batches(encoded, 10**6, members=[4, 1])
    assert set(some.members) == {1, 4} and set(some.owner.tolist()) == {1, 4}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    ("family", "shape"),
    [
        ("gpt2", {"n_embd": 256, "n_inner": 1024}),
        ("gptj", {"n_embd": 256, "n_inner": 1024, "rotary_dim": 64}),
        ("llama", {"hidden_size": 256, "intermediate_size": 688}),
        ("qwen2", {"hidden_size": 256, "intermediate_size": 1408}),
    ],
)
def test_activations_are_about_what_autograd_keeps(tiny_tokenizer, batch, family, shape, dtype):
    """In the proportions of the published models; everything that is not a weight, each block of memory once."""
    model = tiny.build(family, tiny_tokenizer, dtype, **shape)
    weights = {parameter.untyped_storage().data_ptr() for parameter in model.lm.parameters()}
    kept = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        block = tensor.untyped_storage()
        if block.data_ptr() not in weights:
            kept[block.data_ptr()] = block  # held, so that no other can come to lie there
        return tensor

    for layer in (1, 3):
        hidden = trunk(model, batch, layer).detach().requires_grad_()
        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            final_hidden(model, batch, layer, hidden)
        found = sum(block.nbytes() for block in kept.values()) / batch.ids.numel()
        assert 0.5 < found / model.activation_bytes(layer) < 1.5
        kept.clear()
