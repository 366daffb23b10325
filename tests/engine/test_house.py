"""The engine stands alone: arrows point one way, files are data only, every setting is explained."""

import ast
from dataclasses import MISSING, fields
from pathlib import Path

import pytest

import engine
from engine.train_settings import TrainSettings

FILES = sorted(Path(engine.__file__).parent.rglob("*.py"))
ABOVE = {"gradio", "sqlite3", "sqlite_utils", "studio", "app", "typer", "rich", "plotly", "pandas", "tests"}
UNSAFE = {"pickle", "cPickle", "dill", "joblib", "shelve", "marshal"}


def imported(path: Path) -> set[str]:
    """The top-level names of everything a file imports, wherever in it."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path.name}: relative import"
            names.add(node.module.split(".")[0])
    return names


def calls(path: Path) -> set[str]:
    """Every attribute or name that a file calls, with its owner where it has a name: torch.load."""
    return {
        ast.unparse(node.func)
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Call)
    }


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_engine_knows_nothing_above_it_and_reads_files_as_data(path):
    assert not imported(path) & ABOVE
    assert not imported(path) & UNSAFE
    assert not calls(path) & {"torch.load", "torch.save", "eval", "exec", "np.load", "print"}


def test_the_check_sees_what_it_looks_for(tmp_path):
    bad = tmp_path / "bad.py"
    bad.write_text("def f():\n    import gradio.blocks as g\n    from studio.store import Store\n    torch.load(1)\n")
    assert imported(bad) & ABOVE == {"gradio", "studio"} and "torch.load" in calls(bad)


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_file_says_what_it_is(path):
    text = path.read_text(encoding="utf-8")
    assert not text or ast.get_docstring(ast.parse(text)), path


def test_every_training_setting_is_explained():
    for item in fields(TrainSettings):
        assert item.default is not MISSING
        assert len(item.metadata["help"]) > 10
        assert item.default in item.metadata.get("choices", [item.default])
