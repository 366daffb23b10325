"""What a model's first token tells of it is so, and a model that would be misread is refused before any work."""

import pytest
import torch
from transformers import BertConfig, BertLMHeadModel

from engine.errors import ModelError
from engine.first_pass import FirstPass
from engine.forward import final_hidden, trunk
from engine.model import EditableModel
from engine.placement import choose_placement
from engine.prompts import collate, encode_facts
from tests.engine import tiny

DOWN = "model.layers.{}.mlp.down_proj"
IN_TUPLES = ("gptj", "gpt_neo", "bloom", "falcon", "mpt")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("family", tiny.CONFIGS)
def test_every_known_familys_logits_are_understood(tiny_tokenizer, family, dtype):
    """Also those that scale or cap them, and those of OPT, which asks not its base model but what is in it."""
    changes = {"final_logit_softcapping": 0.5} if family == "gemma2" else {}
    model = tiny.build(family, tiny_tokenizer, dtype, **changes)
    assert model.first_pass == FirstPass(layers_return_tuples=family in IN_TUPLES, layers_keep_keys=True, masks_padding=True)
    assert not any(module._forward_hooks for module in model.lm.modules())


@pytest.mark.parametrize(
    ("family", "changes"),
    [("hyperclovax", {"logits_scaling": 4.0}), ("granite", {"logits_scaling": 8.0, "logit_scale": 2.0})],
)
def test_family_that_does_something_else_to_its_logits_is_refused(tiny_tokenizer, family, changes):
    """HyperCLOVA X multiplies by what Granite divides by; a Granite does not multiply by what Cohere does."""
    with pytest.raises(ModelError, match=f"tiny {family} .{family}. does something to its logits that the studio does"):
        tiny.build(family, tiny_tokenizer, pattern=DOWN, **changes)


def test_head_that_is_more_than_one_matrix_is_refused(tiny_tokenizer):
    shape = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 24}
    lm = BertLMHeadModel(BertConfig(vocab_size=len(tiny_tokenizer), is_decoder=True, **shape))
    placement = choose_placement("cpu", "float32")
    with pytest.raises(ModelError, match="a bert .bert. does something to its logits.*Load a model of another family"):
        EditableModel(lm, tiny_tokenizer, "a bert", placement, "bert.encoder.layer.{}.output.dense")


def test_model_without_last_hidden_states_is_refused(tiny_tokenizer):
    pattern = "model.layers.{}.feed_forward.shared_expert.down_proj"
    with pytest.raises(ModelError, match="llama4_text. does not show its last hidden states.*of another family"):
        tiny.build("llama4_text", tiny_tokenizer, pattern=pattern)


def test_model_that_wants_more_than_text_and_layers_that_read_none_are_refused(tiny_tokenizer):
    model = tiny.seeing(tiny_tokenizer)
    own = "model.language_model.layers.{}.mlp.down_proj"
    tower = "model.vision_tower.encoder.layers.{}.mlp.down_proj"
    with pytest.raises(ModelError, match="not those through which a gemma reads text. Give the pattern of"):
        EditableModel(model.lm, tiny_tokenizer, "a gemma", model.placement, tower)
    model.config.pad_token_id = None
    with pytest.raises(ModelError, match="a gemma .gemma4. cannot be run on text alone: TypeError: .*needs nothing"):
        EditableModel(model.lm, tiny_tokenizer, "a gemma", model.placement, own)


def test_layers_that_hand_on_a_list_are_known_and_those_that_hand_on_more_are_refused(tiny_tokenizer):
    """The first GPT's layers return lists; RWKV's what the next one needs beside the hidden states."""
    shape = {"n_layer": 2, "n_embd": 16, "n_head": 2, "n_positions": 64}
    model = tiny.build("openai-gpt", tiny_tokenizer, pattern="transformer.h.{}.mlp.c_proj", **shape)
    assert model.first_pass.layers_return_tuples
    items = encode_facts(model, tiny.FACTS)
    batch = collate(items, range(len(items)), "cpu")
    with torch.no_grad():
        hidden = trunk(model, batch, 1)
        torch.testing.assert_close(final_hidden(model, batch, 1, hidden), final_hidden(model, batch))
    shape = {"hidden_size": 16, "attention_hidden_size": 16, "context_length": 64, "num_hidden_layers": 2}
    with pytest.raises(ModelError, match="layers of tiny rwkv .rwkv. hand on more than hidden states.*another family"):
        tiny.build("rwkv", tiny_tokenizer, pattern="rwkv.blocks.{}.feed_forward.value", **shape)


def test_model_whose_logits_overflow_is_not_called_unknown(tiny_tokenizer):
    model = tiny.build("llama", tiny_tokenizer)
    model.lm.lm_head.weight.data[3:5] = torch.tensor([[float("inf")], [float("nan")]])
    assert EditableModel(model.lm, tiny_tokenizer, "x", model.placement).first_pass == model.first_pass
