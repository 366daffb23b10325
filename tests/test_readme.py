"""The README is true: its commands parse, its programs run, its settings are listed, its file tree tells of every file."""

import ast
import re
import runpy
import shlex
import subprocess
import sys
from dataclasses import Field, fields
from pathlib import Path

import pytest
import torch
import typer
from transformers import AutoModelForCausalLM

import app
from engine.delta import WeightDelta
from engine.editors import EDITORS
from engine.fact_readers import read_facts
from engine.facts import facts_sha256
from engine.projection import ProjectionSettings
from engine.train_settings import TrainSettings
from studio.arguments import read_settings, settings_by_method
from tests.engine import tiny

ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")


# What stands for a number in a command within the text.
NUMBERS = {"N": "1", "SEED": "0"}


def commands() -> list[str]:
    """Those of the blocks, with their variables put in, and those within the text."""
    blocks = "\n".join(re.findall(r"```sh\n(.*?)```", README, re.DOTALL)).replace("\\\n", " ")
    for name, value in re.findall(r'^(\w+)="(.*?)"$', blocks, re.MULTILINE):
        blocks = blocks.replace(f"${name}", value)
    assert "$" not in blocks
    within = re.findall(r"`(python app\.py [^`]*)`", re.sub(r"```.*?```", "", README, flags=re.DOTALL))
    inline = [" ".join(NUMBERS.get(word, word) for word in one.split()) for one in within if len(one.split()) > 3]
    return [line.strip() for line in blocks.splitlines() if "app.py" in line] + inline


@pytest.mark.parametrize("command", commands())
def test_the_readmes_commands_parse(command):
    words = shlex.split(command.split("python app.py", 1)[1])
    group = typer.main.get_command(app.cli)
    if not words:
        return
    context = group.commands[words[0]].make_context(words[0], words[1:])
    edited = EDITORS[context.params.get("method", "agrade")].Settings
    kinds = {"edit": edited, "tune": edited, "train": TrainSettings, "project": ProjectionSettings}
    if words[0] in kinds:
        read_settings(context.params["settings"], kinds[words[0]])
    if words[0] == "compare":
        settings_by_method(context.params["settings"])


def test_the_settings_table_is_that_of_the_editors():
    known = {item.name for cls in EDITORS.values() for item in fields(cls.Settings)}
    table = README.split("| setting | of |")[1].split("\n\n")[0]
    assert set(re.findall(r"^\| `(\w+)` \|", table, re.MULTILINE)) == known


def listed(item: Field) -> str:
    """A setting's row, from what its dataclass says of it."""
    default = item.default
    if isinstance(default, bool):
        default = "on" if default else "off"
    elif isinstance(default, float):
        default = f"{default:g}"
    choices = ", ".join(f"`{choice}`" for choice in item.metadata.get("choices", ()))
    return f"| `{item.name}` | {default} | {item.metadata['help']}{choices and f' ({choices})'} |"


@pytest.mark.parametrize("command, settings", [("train", TrainSettings), ("project", ProjectionSettings)])
def test_a_commands_settings_are_listed_as_their_dataclass_has_them(command, settings):
    table = README.split(f"| `{command} --set` | default |")[1].split("\n\n")[0]
    assert table.splitlines()[2:] == [listed(item) for item in fields(settings)]


@pytest.mark.parametrize("family", ["llama", "gpt2"])  # Linear and Conv1D
def test_the_readmes_program_adds_a_delta_as_the_studio_does(family, tiny_tokenizer, tmp_path, monkeypatch):
    model = tiny.build(family, tiny_tokenizer, torch.bfloat16)
    modules = model.edit_modules((1, 3))
    shifts = {module.name: 0.01 * torch.randn(module.d_h, module.d_g) for module in modules}
    delta = WeightDelta(shifts, model.sha256, "by hand")
    tiny.save(model, tmp_path / "my-model")
    (tmp_path / "results").mkdir()
    delta.save(tmp_path / "results" / "delta")
    monkeypatch.chdir(tmp_path)
    program = next(block for block in re.findall(r"```python\n(.*?)```", README, re.DOTALL) if "delta." in block)
    Path("program.py").write_text(program, encoding="utf-8")
    runpy.run_path("program.py")
    edited = AutoModelForCausalLM.from_pretrained("edited-model").state_dict()
    with model.edited(delta):
        for name, weight in model.lm.state_dict().items():
            assert torch.equal(edited[name], weight), name


def test_the_readmes_fingerprint_of_facts_is_that_of_a_search(capsys, tmp_path, monkeypatch):
    sample = ROOT / "assets" / "samples" / "counterfactuals.json"
    program = re.search(r'^python -c "(.*?)" \S+$', README, re.DOTALL | re.MULTILINE)[1]
    (tmp_path / "program.py").write_text(program, encoding="utf-8")
    monkeypatch.setattr(sys, "argv", ["-c", str(sample)])
    runpy.run_path(str(tmp_path / "program.py"))
    assert capsys.readouterr().out.strip() == facts_sha256(read_facts(sample).facts)[:12]


def test_every_method_is_in_the_methods_table():
    table = README.split("| method | Δθ |")[1].split("\n\n")[0]
    assert set(re.findall(r"^\| `([\w-]+)` \|", table, re.MULTILINE)) == set(EDITORS)


def project_files(pattern: str) -> set[str]:
    """The project's files of this pattern as git knows them, also those that are not yet committed."""
    known = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard", pattern],
        cwd=ROOT, capture_output=True, text=True, check=True,
    ).stdout.split()  # fmt: skip
    return {path for path in known if (ROOT / path).exists()}


def tree() -> dict[str, str]:
    """What the file tree says of each path that it names."""
    lines = README.split("## The files")[1].split("```")[1].splitlines()
    return {path: told.strip() for path, _, told in (line.partition(" # ") for line in lines) for path in path.split()}


def test_the_file_tree_names_every_python_file_and_no_other():
    named = {path for path in tree() if path.endswith(".py")}
    names = {path for path in project_files("*.py") if not path.endswith("/__init__.py")}
    assert named == names | {"engine/editors/__init__.py"}


def test_the_file_tree_names_all_that_lies_in_assets():
    found = {"/".join(path.split("/")[:2]) + ("/" if path.count("/") > 1 else "") for path in project_files("assets/*")}
    assert {path for path in tree() if path.startswith("assets/")} == found


def first_line(path: str) -> str:
    """Of a module's docstring."""
    return (ast.get_docstring(ast.parse((ROOT / path).read_text(encoding="utf-8"))) or "").split("\n")[0]


def test_the_file_tree_says_what_each_file_is_in_its_own_words():
    assert all(tree().values())
    told = {path: line for path, line in tree().items() if path.endswith(".py")}
    assert told == {path: first_line(path) for path in told}


def test_pictures_and_files_the_readme_links_to_exist():
    for target in re.findall(r"\]\(([^)#:]+)\)", README):
        assert (ROOT / target).exists(), target
