"""Which models a visitor of the page may have loaded."""

import pytest

from engine.errors import ModelError
from studio.components.sidebar import named_model


@pytest.mark.parametrize("name", ["embedded", "", "  ", "gpt2", "EleutherAI/gpt-j-6b", "Qwen/Qwen2.5-0.5B"])
def test_hub_ids_and_the_embedded_model_are_open_to_everybody(name):
    assert named_model(name, local=False) == named_model(name, local=True) == (name.strip() or "embedded")


@pytest.mark.parametrize("name", ["/etc", "../models", "~/models", "C:\\models", "a/b/c", "models", "./models"])
def test_folders_are_open_to_this_computer_only(name, tmp_path, monkeypatch):
    (tmp_path / "models").mkdir()
    monkeypatch.chdir(tmp_path)
    assert named_model(name, local=True) == name
    with pytest.raises(ModelError, match="open to other computers.*--model"):
        named_model(name, local=False)
