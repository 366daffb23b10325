"""An edit is swapped in and out bit for bit, and a module that cannot be edited is named."""

import threading

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close
from transformers import BioGptConfig, BioGptForCausalLM

from engine.covariance import Text
from engine.delta import WeightDelta
from engine.errors import CheckpointError, ModelError
from engine.forward import answer_logits
from engine.model import FAMILIES, LLAMA, EditableModel, EditModule
from engine.placement import choose_placement
from engine.prompts import collate
from engine.training_data import TrainingData
from tests.engine import tiny


def random_delta(
    model: EditableModel, layers: list[int] | None = None, seed: int = 0, scale: float = 0.1
) -> WeightDelta:
    generator = torch.Generator().manual_seed(seed)
    shifts = {
        module.name: scale * torch.randn(module.d_h, module.d_g, generator=generator)
        for module in model.edit_modules(layers)
    }
    return WeightDelta(shifts, model.sha256, "random")


def weights(model: EditableModel) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in model.lm.state_dict().items()}


def assert_untouched(model: EditableModel, before: dict[str, Tensor]) -> None:
    after = model.lm.state_dict()
    assert before.keys() == after.keys()
    for name, tensor in before.items():
        assert torch.equal(tensor.view(torch.uint8), after[name].view(torch.uint8)), name


def test_every_family_of_the_table_is_tested():
    assert set(FAMILIES) == set(tiny.CONFIGS)


@pytest.mark.parametrize("family", FAMILIES)
def test_edited_shifts_the_declared_modules_and_restores_bit_for_bit(tiny_model, family):
    model = tiny_model(family)
    before, delta = weights(model), random_delta(model, [1, 3])
    parameters = dict(model.lm.named_parameters())
    with model.edited(delta) as shifted:
        during = model.lm.state_dict()
        assert set(shifted) == set(delta.shifts)
        for module in model.edit_modules([1, 3]):
            shift = delta.shifts[module.name].T if module.transposed else delta.shifts[module.name]
            assert torch.equal(during[f"{module.name}.weight"], before[f"{module.name}.weight"] + shift)
        changed = {name for name in before if not torch.equal(before[name], during[name])}
        assert changed == {f"{name}.weight" for name in delta.shifts}
    assert_untouched(model, before)
    assert all(parameters[name] is parameter for name, parameter in model.lm.named_parameters())
    assert not any(parameter.requires_grad for parameter in model.lm.parameters())


def test_edited_restores_after_an_exception(tiny_model):
    model = tiny_model("gpt2")
    before = weights(model)
    with pytest.raises(KeyboardInterrupt), model.edited(random_delta(model)):
        raise KeyboardInterrupt
    assert_untouched(model, before)


def test_bfloat16_weights_are_restored_bit_for_bit(tiny_tokenizer):
    model = tiny.build("llama", tiny_tokenizer, dtype=torch.bfloat16)
    before, delta = weights(model), random_delta(model, scale=3.0)
    with model.edited(delta) as shifted:
        module = model.edit_modules()[0]
        exact = before[f"{module.name}.weight"].float() + delta.shifts[module.name].T
        assert torch.equal(shifted[module.name], exact.to(torch.bfloat16))
        # Why copies are put back: what was added in bfloat16 cannot be subtracted again.
        subtracted = (shifted[module.name].float() - delta.shifts[module.name].T).to(torch.bfloat16)
        assert not torch.equal(subtracted, before[f"{module.name}.weight"])
    assert_untouched(model, before)


def test_no_delta_is_no_edit(tiny_model):
    model = tiny_model("llama")
    before = weights(model)
    with model.edited(None) as shifted:
        assert shifted == {}
        assert_untouched(model, before)


def test_delta_for_another_model_is_refused(tiny_model):
    delta = random_delta(tiny_model("mistral"))
    model = tiny_model("llama")
    other = WeightDelta(delta.shifts, "0" * 64, "random")
    with pytest.raises(CheckpointError, match=r"another model \(000000000000…\).*tiny llama"), model.edited(other):
        pass


@pytest.mark.parametrize(
    ("name", "shape", "error", "said"),
    [
        ("model.layers.9.mlp.down_proj", (24, 16), ModelError, r"no module 'model.layers.9.mlp.down_proj'"),
        ("model.layers.1.input_layernorm", (16, 1), ModelError, "only Linear and Conv1D"),
        ("model.layers.1.mlp.down_proj", (16, 24), CheckpointError, r"is \(16, 24\), but the module takes \(24, 16\)"),
    ],
)
def test_delta_that_does_not_fit_changes_nothing(tiny_model, name, shape, error, said):
    model = tiny_model("llama")
    before = weights(model)
    shifts = {"model.layers.0.mlp.down_proj": torch.ones(24, 16), name: torch.ones(shape)}
    with pytest.raises(error, match=said), model.edited(WeightDelta(shifts, model.sha256, "random")):
        pass
    assert_untouched(model, before)


def test_edit_modules_are_those_asked_for_shallow_to_deep(tiny_tokenizer):
    model = tiny.build("gpt2", tiny_tokenizer, n_layer=8)
    assert [module.layer for module in model.edit_modules()] == [2, 3, 4, 5, 6, 7]
    assert [module.layer for module in model.edit_modules([5, 1, 5])] == [1, 5]
    assert model.edit_modules([1]) == [EditModule("transformer.h.1.mlp.c_proj", 1, 24, 16, transposed=False)]
    assert model.edit_modules_named(["transformer.h.5.mlp.c_proj"]) == model.edit_modules([5])


@pytest.mark.parametrize(
    ("layers", "said"),
    [([4], r"layers 0 to 3; asked for \[4\]"), ([-1, 2], r"asked for \[-1, 2\]"), ([], "name at least one")],
)
def test_unknown_layer_is_named(tiny_model, layers, said):
    with pytest.raises(ModelError, match=said):
        tiny_model("llama").edit_modules(layers)


def test_first_layer_is_the_shallowest_touched(tiny_model):
    model = tiny_model("gpt2")
    at = lambda *names: model.first_layer(WeightDelta(dict.fromkeys(names, torch.ones(1, 1)), "", ""))  # noqa: E731
    assert at("transformer.h.3.mlp.c_proj", "transformer.h.2.attn.c_attn") == 2
    assert at("transformer.h.3.mlp.c_proj", "lm_head") == 0
    assert at() == 0


def unknown_family(tokenizer) -> BioGptForCausalLM:
    config = BioGptConfig(
        vocab_size=len(tokenizer), hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=24
    )
    return BioGptForCausalLM(config)


def test_unknown_family_says_which_modules_it_has(tiny_tokenizer):
    placement = choose_placement("cpu", "float32")
    lm = unknown_family(tiny_tokenizer)
    with pytest.raises(ModelError, match=r"'biogpt' .*--module-pattern.*biogpt\.layers\.\{\}\.fc2"):
        EditableModel(lm, tiny_tokenizer, "a biogpt", placement)
    model = EditableModel(lm, tiny_tokenizer, "a biogpt", placement, "biogpt.layers.{}.fc2")
    assert [module.d_h for module in model.edit_modules()] == [24, 24]


def test_a_language_model_within_another_is_asked_for_its_own_context_widths_and_cap(
    tiny_tokenizer, tmp_path, monkeypatch
):
    """Gemma 4 with a vision tower: its outer config has none of them."""
    monkeypatch.setenv("AGRADE_STUDIO_CACHE", str(tmp_path))
    model = tiny.seeing(tiny_tokenizer)
    assert not set(model.lm.config.to_dict()) & {"max_position_embeddings", "vocab_size", "hidden_size"}
    assert model.context == tiny.CONTEXT
    assert [len(row) for row in Text(model, "", 128, 0).part(0)] == [tiny.CONTEXT] * 2
    data = TrainingData(model, tiny.FACTS, model.edit_modules([1, 2]), "equivalent", 10**6)
    batch = collate(data.edits, [0], "cpu")
    with torch.no_grad():
        wanted = model.lm(batch.ids).logits.flatten(0, 1)[batch.positions]
        assert_close(answer_logits(model, batch), wanted)


def test_mpt_says_its_context_by_another_name(tiny_model):
    config = tiny_model("mpt").lm.config
    assert tiny_model("mpt").context == config.max_seq_len == tiny.CONTEXT
    assert not hasattr(config, "max_position_embeddings")


@pytest.mark.parametrize("family", ["arcee", "ernie4_5", "seed_oss"])
def test_family_that_names_its_matrices_as_llama_does_needs_no_pattern(tiny_tokenizer, family):
    model = tiny.build(family, tiny_tokenizer)
    assert family not in FAMILIES
    assert [module.name for module in model.edit_modules([0, 3])] == [LLAMA.format(0), LLAMA.format(3)]
    before, delta = weights(model), random_delta(model, [1, 3])
    with model.edited(delta) as shifted:
        assert set(shifted) == {LLAMA.format(1), LLAMA.format(3)}
    assert_untouched(model, before)


def test_module_that_only_some_layers_have_is_edited_there_and_the_others_are_told(tiny_tokenizer):
    """DeepSeek's first layers are dense, the others have experts."""
    shape = {"first_k_dense_replace": 2, "n_routed_experts": 4, "moe_intermediate_size": 8, "n_group": 1}
    shape |= {"topk_group": 1, "num_experts_per_tok": 2, "kv_lora_rank": 8, "q_lora_rank": 8, "qk_rope_head_dim": 4}
    shape |= {"qk_nope_head_dim": 4, "v_head_dim": 8, "head_dim": 4}
    model = tiny.build("deepseek_v3", tiny_tokenizer, pattern=LLAMA, **shape)
    assert [module.layer for module in model.edit_modules()] == [0, 1]
    with pytest.raises(ModelError, match=r"no model.layers.\{\}.mlp.down_proj in layer 2-3, but in layer 0-1: choose among"):
        model.edit_modules([1, 2, 3])


def test_model_of_experts_needs_a_pattern(tiny_tokenizer):
    """Mixtral's experts are one tensor, of which no matrix is a module of its own."""
    with pytest.raises(ModelError, match=r"'mixtral' .*not named as LLaMA's.*Experts that are stacked .* cannot be edited.*--module-pattern.*self_attn\.o_proj"):
        tiny.build("mixtral", tiny_tokenizer, num_local_experts=2)


@pytest.mark.parametrize("pattern", ["model.blocks.{}.mlp", "model.layers", "model.layers.3.mlp.down_proj", "lm_head"])
def test_module_pattern_that_does_not_fit_names_the_layer_lists(tiny_model, pattern):
    model = tiny_model("llama")
    with pytest.raises(ModelError, match=r"does not fit.*model\.layers") as caught:
        EditableModel(model.lm, model.tokenizer, "x", model.placement, pattern).edit_modules()
    assert pattern in str(caught.value)


def test_pattern_of_a_module_that_is_not_there(tiny_model):
    model = tiny_model("llama")
    with pytest.raises(ModelError, match=r"x has no module 'model\.layers\.3\.mlp\.wrong'; give another module pattern"):
        EditableModel(model.lm, model.tokenizer, "x", model.placement, "model.layers.{}.mlp.wrong")


def test_lock_may_be_taken_again_by_its_own_thread_only(tiny_model):
    model, taken = tiny_model("llama"), []
    with model.lock, model.lock:
        thread = threading.Thread(target=lambda: taken.append(model.lock.acquire(blocking=False)))
        thread.start()
        thread.join()
    assert taken == [False]
