"""The README is true: its commands parse, its settings exist, its file tree names every file."""

import re
import shlex
import subprocess
from dataclasses import fields
from pathlib import Path

import pytest
import typer

import app
from engine.editors import EDITORS

ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")


def commands() -> list[str]:
    blocks = re.findall(r"```sh\n(.*?)```", README, re.DOTALL)
    lines = "\n".join(blocks).replace("\\\n", " ").splitlines()
    return [line.strip() for line in lines if "app.py" in line]


@pytest.mark.parametrize("command", commands())
def test_the_readmes_commands_parse(command):
    words = shlex.split(command.split("python app.py", 1)[1])
    group = typer.main.get_command(app.cli)
    if not words:
        return
    context = group.commands[words[0]].make_context(words[0], words[1:])
    kinds = {"edit": EDITORS[context.params.get("method", "agrade")].Settings, "train": app.TrainSettings}
    if words[0] in kinds:
        app.read_settings(context.params["settings"], kinds[words[0]])


def test_the_settings_table_is_that_of_the_editors():
    known = {item.name for cls in EDITORS.values() for item in fields(cls.Settings)}
    table = README.split("| setting | of |")[1].split("\n\n")[0]
    assert set(re.findall(r"^\| `(\w+)` \|", table, re.MULTILINE)) == known


def test_every_method_is_in_the_methods_table():
    table = README.split("| method | Δθ |")[1].split("\n\n")[0]
    assert set(re.findall(r"^\| `([\w-]+)` \|", table, re.MULTILINE)) == set(EDITORS)


def test_the_file_tree_names_every_python_file_and_no_other():
    tree = README.split("## The files")[1]
    named = set(re.findall(r"^ *([\w./-]+\.py)\b", tree, re.MULTILINE))
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard", "*.py"],
        cwd=ROOT, capture_output=True, text=True, check=True,
    ).stdout.split()  # fmt: skip
    names = {path for path in listed if (ROOT / path).exists() and not path.endswith("/__init__.py")}
    assert named == names | {"engine/editors/__init__.py"}


def test_pictures_and_files_the_readme_links_to_exist():
    for target in re.findall(r"\]\(([^)#:]+)\)", README):
        assert (ROOT / target).exists(), target
