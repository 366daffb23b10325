"""What arrives of a module's output in its layer's is measured: whole, by a factor, or otherwise."""

import pytest
import torch

from engine.contributions import arriving
from engine.errors import NonFiniteError
from engine.model import FAMILIES
from tests.engine import tiny

EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2}
EXPERTS |= {"moe_intermediate_size": 8, "shared_expert_intermediate_size": 24}
DTYPES = [torch.float32, torch.bfloat16, torch.float16]
NORMALISED = ("gemma2", "gemma3_text", "glm4", "olmo2", "olmo3")


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("family", FAMILIES)
def test_families_add_what_their_module_gives_as_it_is_or_normalise_it(tiny_tokenizer, family, dtype):
    model = tiny.build(family, tiny_tokenizer, dtype)
    found = [arriving(model, module) for module in model.edit_modules()]
    assert found == [None if family in NORMALISED else 1.0] * tiny.LAYERS
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.lm.modules())


@pytest.mark.parametrize("dtype", DTYPES)
def test_factor_is_found(tiny_tokenizer, dtype):
    model = tiny.build("granite", tiny_tokenizer, dtype, residual_multiplier=0.22)
    assert [arriving(model, module) for module in model.edit_modules()] == pytest.approx([0.22] * tiny.LAYERS, rel=0.01)


@pytest.mark.parametrize(
    ("family", "pattern", "changes"),
    [
        ("opt", None, {"do_layer_norm_before": False}),  # as opt-350m: a norm of another name
        ("qwen2_moe", "model.layers.{}.mlp.shared_expert.down_proj", EXPERTS),  # gated, token by token
        ("llama", "model.layers.{}.self_attn.o_proj", {}),  # the layer's feed-forward reads it
        ("llama", "model.layers.{}.mlp.up_proj", {}),  # of another width
    ],
)
def test_what_does_not_arrive_by_one_factor_is_told(tiny_tokenizer, family, pattern, changes):
    model = tiny.build(family, tiny_tokenizer, pattern=pattern, **changes)
    assert arriving(model, model.edit_modules([1])[0]) is None


def test_overflow_is_named(tiny_tokenizer):
    model = tiny.build("llama", tiny_tokenizer)
    model.layers[0].mlp.up_proj.weight.data.fill_(float("inf"))
    with pytest.raises(NonFiniteError, match="overflows in torch.float32. Load it with --dtype float32. Nothing was"):
        arriving(model, model.edit_modules([1])[0])
