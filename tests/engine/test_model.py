"""An edit is swapped in and out bit for bit, and whatever cannot be loaded or edited is named."""

import json
import shutil
import threading

import pytest
import torch
from torch import Tensor, nn
from transformers import BertConfig, BertLMHeadModel

from engine.delta import WeightDelta
from engine.errors import CheckpointError, ModelError
from engine.model import FAMILIES, EditableModel, EditModule, load_model
from engine.placement import choose_placement
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


def unknown_family(tokenizer) -> BertLMHeadModel:
    config = BertConfig(
        vocab_size=len(tokenizer),
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=24,
        is_decoder=True,
    )
    return BertLMHeadModel(config)


def test_unknown_family_says_which_modules_it_has(tiny_tokenizer):
    placement = choose_placement("cpu", "float32")
    lm = unknown_family(tiny_tokenizer)
    with pytest.raises(ModelError, match=r"'bert' .*--module-pattern.*bert\.encoder\.layer\.\{\}\.output\.dense"):
        EditableModel(lm, tiny_tokenizer, "a bert", placement)
    model = EditableModel(lm, tiny_tokenizer, "a bert", placement, "bert.encoder.layer.{}.output.dense")
    assert [module.d_h for module in model.edit_modules()] == [24, 24]


@pytest.mark.parametrize("pattern", ["model.blocks.{}.mlp", "model.layers", "model.layers.3.mlp.down_proj", "lm_head"])
def test_module_pattern_that_does_not_fit_names_the_layer_lists(tiny_model, pattern):
    model = tiny_model("llama")
    with pytest.raises(ModelError, match=r"does not fit.*model\.layers") as caught:
        EditableModel(model.lm, model.tokenizer, "x", model.placement, pattern).edit_modules()
    assert pattern in str(caught.value)


def test_pattern_of_a_module_that_is_not_there(tiny_model):
    model = tiny_model("llama")
    other = EditableModel(model.lm, model.tokenizer, "x", model.placement, "model.layers.{}.mlp.wrong")
    with pytest.raises(ModelError, match=r"no module 'model\.layers\.0\.mlp\.wrong'"):
        other.edit_modules()


@pytest.mark.parametrize(
    ("device", "dtype", "said"),
    [
        ("gpu", "auto", "Unknown device 'gpu'"),
        ("meta", "auto", "Unknown device 'meta'"),
        ("cpu", "int8", "Unknown dtype 'int8'.*bfloat16"),
        ("cuda:99", "auto", "torch sees [0-9]+ CUDA devices"),
    ],
)
def test_bad_devices_and_dtypes_are_named(device, dtype, said):
    with pytest.raises(ModelError, match=said):
        choose_placement(device, dtype)


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
def test_gpus_that_are_not_there_are_named():
    with pytest.raises(ModelError, match="none was found"):
        choose_placement("balanced")
    with pytest.raises(ModelError, match="0 CUDA devices"):
        choose_placement("cuda")


@pytest.mark.parametrize(("amx", "dtype"), [(True, torch.bfloat16), (False, torch.float32)])
def test_cpu_dtype_follows_its_matrix_units_and_says_so(monkeypatch, amx, dtype):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"amx_bf16": amx})
    placement = choose_placement("cpu", "auto")
    assert (placement.dtype, placement.autocast, placement.weight_dtype) == (dtype, amx, torch.float32)
    assert "AMX" in placement.reason


@pytest.fixture(scope="module")
def saved(tiny_tokenizer, tmp_path_factory):
    """A folder that save_pretrained wrote, and the model in it."""
    folder, model = tmp_path_factory.mktemp("saved"), tiny.build("llama", tiny_tokenizer)
    model.lm.save_pretrained(folder)
    tiny_tokenizer.save_pretrained(folder)
    return folder, model


def test_folder_loads_as_it_was_saved(saved):
    folder, original = saved
    calls = []
    model = load_model(str(folder), "cpu", "float32", progress=lambda *call: calls.append(call))
    assert model.sha256 == original.sha256
    assert (model.family, model.layer_count, model.context) == ("llama", tiny.LAYERS, tiny.CONTEXT)
    assert (model.device.type, model.dtype, model.name) == ("cpu", torch.float32, str(folder))
    assert not model.lm.training and not any(p.requires_grad for p in model.lm.parameters())
    assert calls == [("Loading the model", 0, 1), ("Loading the model", 1, 1)]


def test_bfloat16_on_the_cpu_keeps_float32_weights(saved):
    folder, original = saved
    model = load_model(str(folder), "cpu", "bfloat16")
    assert model.sha256 == original.sha256 and model.dtype is torch.bfloat16
    with model.autocast():
        assert (nn.Linear(2, 2)(torch.ones(1, 2))).dtype is torch.bfloat16


@pytest.mark.parametrize("what", ["empty", "no weights", "damaged weights", "no config"])
def test_folder_that_cannot_be_loaded_is_named(saved, tmp_path, what):
    for path in saved[0].iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    if what == "empty":
        for path in list(tmp_path.iterdir()):
            path.unlink()
    elif what == "no weights":
        (tmp_path / "model.safetensors").unlink()
    elif what == "damaged weights":
        (tmp_path / "model.safetensors").write_bytes(b"\x00" * 1000)
    else:
        (tmp_path / "config.json").unlink()
    with pytest.raises(ModelError, match="could not be loaded: .*Give a hub id"):
        load_model(str(tmp_path), "cpu", "float32")


def changed_config(folder, **values):
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | values))


@pytest.mark.parametrize(
    ("config", "said"),
    [
        ({"num_hidden_layers": tiny.LAYERS + 1}, "its files lack 9 of its weights, such as model.layers.4.input_layernorm"),
        ({"intermediate_size": 5}, "model.layers.0.mlp.down_proj.weight has the shape .*, where its config says"),
        ({"quantization_config": {"quant_method": "bitsandbytes", "load_in_4bit": True}}, "its weights are quantised"),
        ({"hidden_size": "wide"}, "hidden_size"),
        ({"model_type": "own", "auto_map": {"AutoConfig": "own.Config"}}, "custom code"),
    ],
)
def test_folder_whose_config_does_not_fit_is_refused_not_filled_at_random(saved, tmp_path, config, said):
    shutil.copytree(saved[0], tmp_path / "model")
    changed_config(tmp_path / "model", **config)
    with pytest.raises(ModelError, match=f"could not be loaded: .*{said}.*Give a hub id"):
        load_model(str(tmp_path / "model"), "cpu", "float32")


def test_pickled_weights_that_are_none_are_refused_without_advice_to_run_them(saved, tmp_path):
    shutil.copytree(saved[0], tmp_path / "model")
    (tmp_path / "model" / "model.safetensors").unlink()
    (tmp_path / "model" / "pytorch_model.bin").write_text("version https://git-lfs.github.com/spec/v1")
    with pytest.raises(ModelError, match="a file of its weights is damaged, or is not the file itself"):
        load_model(str(tmp_path / "model"), "cpu", "float32")


def test_folder_that_is_not_there_is_named_without_the_network():
    with pytest.raises(ModelError, match="'/no/such/folder' could not be loaded: there is no such folder"):
        load_model("/no/such/folder", "cpu", "float32")


def test_hub_that_cannot_be_reached_is_told_at_once_unless_the_model_is_in_the_cache(monkeypatch):
    asked = []

    def refuse(address, seconds):
        asked.append(address)
        raise OSError(-2, "Name or service not known")

    def look(name, **_options):
        raise OSError(f"The library looks for {name}.")

    monkeypatch.setattr("engine.model.getproxies", dict)
    monkeypatch.setattr("engine.model.create_connection", refuse)
    monkeypatch.setattr("transformers.AutoConfig.from_pretrained", look)
    with pytest.raises(ModelError, match="'some/model' could not be loaded: .*cannot be reached .Name or service"):
        load_model("some/model", "cpu", "float32")
    assert len(asked) == 1
    monkeypatch.setattr("huggingface_hub.try_to_load_from_cache", lambda name, file: "/cache/config.json")
    with pytest.raises(ModelError, match="The library looks for some/model."):
        load_model("some/model", "cpu", "float32")
    assert len(asked) == 1


def test_lock_may_be_taken_again_by_its_own_thread_only(tiny_model):
    model, taken = tiny_model("llama"), []
    with model.lock, model.lock:
        thread = threading.Thread(target=lambda: taken.append(model.lock.acquire(blocking=False)))
        thread.start()
        thread.join()
    assert taken == [False]
