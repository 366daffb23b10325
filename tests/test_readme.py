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
    kinds = {"edit": edited, "tune": edited, "train": app.TrainSettings, "project": app.ProjectionSettings}
    if words[0] in kinds:
        app.read_settings(context.params["settings"], kinds[words[0]])
    if words[0] == "compare":
        app.settings_by_method(context.params["settings"])


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
