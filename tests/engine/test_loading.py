"""A model is loaded as it was saved, where and as it was asked for, or it is said why it cannot be."""

import json
import shutil

import pytest
import torch
from torch import nn
from transformers import AutoConfig, AutoTokenizer

from engine.errors import ModelError
from engine.loading import load_model
from engine.placement import choose_placement
from tests.engine import tiny


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


def test_folder_is_named_so_that_it_is_found_from_anywhere(saved, monkeypatch):
    folder, _ = saved
    monkeypatch.chdir(folder.parent)
    monkeypatch.setenv("HOME", str(folder.parent))
    monkeypatch.setenv("USERPROFILE", str(folder.parent))
    for name in (folder.name, f"./{folder.name}", f"~/{folder.name}", str(folder)):
        assert load_model(name, "cpu").name == str(folder)


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


def test_folder_that_lacks_a_config_or_a_tokenizer_says_which(saved, tmp_path):
    with pytest.raises(ModelError, match="holds no model, for there is no config.json in it. Give a hub id"):
        load_model(str(tmp_path), "cpu", "float32")
    saved[1].lm.save_pretrained(tmp_path)
    with pytest.raises(ModelError, match="holds no tokenizer: save the model's there with tokenizer.save_pretrained"):
        load_model(str(tmp_path), "cpu", "float32")


def test_tokens_that_the_model_has_no_embedding_for_are_named(saved, tmp_path):
    folder, model = saved
    model.lm.save_pretrained(tmp_path)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    rows = model.lm.get_input_embeddings().weight.shape[0]
    tokenizer.add_special_tokens({"pad_token": "<padding>"})
    while len(tokenizer) <= rows:
        tokenizer.add_special_tokens({"extra_special_tokens": [f"<{len(tokenizer)}>"]})
    tokenizer.save_pretrained(tmp_path)
    assert load_model(str(tmp_path), "cpu", "float32").sha256 == model.sha256, "ordinary text has none of these"
    tokenizer.add_tokens(["<pad>"])
    tokenizer.save_pretrained(tmp_path)
    assert load_model(str(tmp_path), "cpu", "float32").sha256 == model.sha256, "as early conversions of LLaMA 2 have it"
    tokenizer.add_tokens(["Utrecht"])
    tokenizer.save_pretrained(tmp_path)
    with pytest.raises(ModelError, match="makes 'Utrecht' the token .*, but it has embeddings for .* only"):
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


def test_a_damaged_embedded_model_is_told_as_what_it_is(saved, tmp_path, monkeypatch):
    def damaged(folder):
        raise ModelError(f"The embedded model in {folder} is damaged.")

    monkeypatch.setattr("engine.embedded.fetch", lambda _progress: tmp_path)
    monkeypatch.setattr("engine.embedded.verify", damaged)
    with pytest.raises(ModelError, match="The embedded model in .* is damaged"):
        load_model("embedded", "cpu")


@pytest.mark.parametrize(("kind", "said"), [("t5", "t5 is no causal language model"), ("llava", "by itself, can be")])
def test_model_that_is_no_causal_language_model_is_told_as_what_it_is(tmp_path, kind, said):
    AutoConfig.for_model(kind).save_pretrained(tmp_path)
    with pytest.raises(ModelError, match=f"could not be loaded: .*{said}.* Give a hub id"):
        load_model(str(tmp_path), "cpu", "float32")


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

    monkeypatch.setattr("engine.loading.getproxies", dict)
    monkeypatch.setattr("engine.loading.create_connection", refuse)
    monkeypatch.setattr("transformers.AutoConfig.from_pretrained", look)
    with pytest.raises(ModelError, match="'some/model' could not be loaded: .*cannot be reached .Name or service"):
        load_model("some/model", "cpu", "float32")
    assert len(asked) == 1
    monkeypatch.setattr("huggingface_hub.try_to_load_from_cache", lambda name, file: "/cache/config.json")
    with pytest.raises(ModelError, match="The library looks for some/model."):
        load_model("some/model", "cpu", "float32")
    assert len(asked) == 1
