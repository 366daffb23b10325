"""A fingerprint changes with every name, shape, dtype and bit of the weights, and with nothing else."""

import pytest
import torch
from safetensors.torch import load_file
from torch import nn
from transformers import GPT2Config, GPT2LMHeadModel

from engine.fingerprint import weights_sha256


def tensors() -> dict[str, torch.Tensor]:
    torch.manual_seed(0)
    return {
        "b.weight": torch.randn(3, 4),
        "a.weight": torch.randn(4, 5).to(torch.bfloat16),
        "a.scale": torch.tensor(0.5),
        "a.empty": torch.empty(0, 4),
        "a.mask": torch.tensor([True, False]),
    }


def test_is_the_same_for_equal_tensors_in_any_order():
    assert weights_sha256(tensors()) == weights_sha256(dict(reversed(tensors().items())))


def test_is_the_same_for_any_memory_layout():
    transposed = tensors()
    transposed["b.weight"] = transposed["b.weight"].T.contiguous().T
    assert not transposed["b.weight"].is_contiguous()
    assert weights_sha256(transposed) == weights_sha256(tensors())


@pytest.mark.parametrize("name", sorted(tensors()))
def test_depends_on_every_name(name):
    renamed = tensors()
    renamed["z"] = renamed.pop(name)
    assert weights_sha256(renamed) != weights_sha256(tensors())


@pytest.mark.parametrize("name", ["b.weight", "a.weight", "a.scale"])
def test_depends_on_a_single_bit(name):
    flipped = tensors()
    flipped[name].view(-1).view(torch.uint8)[0] ^= 1
    assert weights_sha256(flipped) != weights_sha256(tensors())


def test_depends_on_shape_and_dtype():
    reshaped, retyped = tensors(), tensors()
    reshaped["b.weight"] = reshaped["b.weight"].reshape(4, 3)
    retyped["b.weight"] = retyped["b.weight"].view(torch.int32)
    assert len({weights_sha256(state) for state in (tensors(), reshaped, retyped)}) == 3


def test_a_tied_model_and_its_saved_file_agree(tmp_path):
    config = GPT2Config(n_layer=1, n_head=2, n_embd=8, vocab_size=16, n_positions=8)
    model = GPT2LMHeadModel(config)
    assert model.lm_head.weight is model.transformer.wte.weight
    model.save_pretrained(tmp_path)
    saved = load_file(tmp_path / "model.safetensors")
    assert "lm_head.weight" not in saved
    assert weights_sha256(saved) == weights_sha256(model.state_dict())


def test_two_equal_tensors_that_are_not_shared_both_count():
    state = nn.ModuleDict({"a": nn.LayerNorm(4), "b": nn.LayerNorm(4)}).state_dict()
    without = {name: tensor for name, tensor in state.items() if name != "a.weight"}
    assert weights_sha256(state) != weights_sha256(without)
