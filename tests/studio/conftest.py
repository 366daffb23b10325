"""Folders that the command line and the running studio are given: a tiny model, and a hypernetwork for it."""

from pathlib import Path

import pytest
import torch

from engine.checkpoint import Checkpoint
from engine.hypernet import HyperNet
from engine.model import load_model


@pytest.fixture(scope="session")
def model_folder(tiny_model, tmp_path_factory) -> Path:
    model = tiny_model("llama")
    folder = tmp_path_factory.mktemp("model")
    model.lm.save_pretrained(folder)
    model.tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def hypernet_folder(model_folder, tmp_path_factory) -> Path:
    """A hypernetwork that was not trained: it edits all the same."""
    model = load_model(str(model_folder), "cpu")
    card = {
        "model": model.name,
        "model_sha256": model.sha256,
        "settings": {"method": "agrade", "projection": "scaled", "scope": "answer"},
    }
    network = HyperNet(model.edit_modules([1, 2]), rank=8, eta=0.003)
    return Checkpoint("tiny", network, card).save(tmp_path_factory.mktemp("hypernets") / "tiny", torch.float32)
