"""What the command line refuses before any work: files that it would write over, options that nothing would use."""

from pathlib import Path

import pytest

from engine.fact_readers import write_csv
from tests.engine.tiny import FACTS, random_checkpoint
from tests.studio.command import run

FACT = b'{"prompt": "The capital of France is", "target": "Rome"}'
CONTENTS = {".json": b"[" + FACT + b"]", ".jsonl": FACT}


@pytest.fixture
def facts_file(tmp_path) -> Path:
    path = tmp_path / "facts.csv"
    write_csv(FACTS, path)
    return path


@pytest.mark.parametrize(
    ("name", "command"),
    [
        ("facts.csv", ("edit", "{}", "--method", "ultraedit")),
        ("summary.json", ("edit", "{}", "--method", "ultraedit")),
        ("facts.csv", ("compare", "{}", "--methods", "ultraedit")),
        ("comparison.csv", ("compare", "{}", "--methods", "ultraedit")),
        ("log.jsonl", ("train", "{}", "--set", "steps=1", "--set", "rank=2")),
        ("log.jsonl", ("train", "facts.csv", "--valid", "{}", "--set", "steps=1", "--set", "rank=2")),
    ],
)
def test_a_file_that_is_read_is_not_written_over(monkeypatch, capsys, tmp_path, facts_file, model_folder, name, command):
    monkeypatch.chdir(tmp_path)
    given = tmp_path / name
    if given != facts_file:
        given.write_bytes(CONTENTS.get(given.suffix, facts_file.read_bytes()))
    before = given.read_bytes()
    words = [word.format(given) for word in command]
    status, text = run(monkeypatch, capsys, *words, "--out", ".", "--model", model_folder, "--db", tmp_path / "runs.db")
    assert status == 1 and f"--out . would overwrite {given}, which is read: name another folder." in text, text
    assert given.read_bytes() == before and not (tmp_path / "runs.db").exists()


def test_a_hypernetwork_that_nothing_uses_is_refused(monkeypatch, capsys, tmp_path, facts_file, hypernet_folder):
    common = ("--db", tmp_path / "runs.db", "--hypernet", hypernet_folder)
    tune = ("tune", facts_file, "--method", "ft", "--vary", "steps=1")
    for command in (("edit", facts_file, "--method", "ft", *common), (*tune, *common)):
        status, text = run(monkeypatch, capsys, *command)
        assert status == 1 and "FT takes no hypernetwork. Leave it out" in text, text
    status, text = run(monkeypatch, capsys, "benchmark", facts_file, *common[2:], "--targets", "memit")
    assert status == 1 and "MEMIT takes no hypernetwork" in text, text
    assert not (tmp_path / "runs.db").exists()


def test_the_folder_of_a_training_is_told_from_its_checkpoint(monkeypatch, capsys, tmp_path, facts_file, tiny_model):
    folder, db = tmp_path / "training", tmp_path / "runs.db"
    random_checkpoint(tiny_model("llama")).save(folder / "best")
    for command in (
        ("--hypernet", folder, "--port", 1),
        ("edit", facts_file, "--hypernet", folder),
        ("compare", facts_file, "--hypernet", folder),
        ("tune", facts_file, "--method", "agrade", "--hypernet", folder),
        ("train", facts_file, "--start", folder, "--out", tmp_path / "other"),
    ):
        status, text = run(monkeypatch, capsys, *command, "--db", db)
        assert status == 1 and f"{folder}: this is the folder of a training. Its checkpoint is {folder / 'best'}" in text
    assert not db.exists()


def test_what_varies_is_named_as_it_was_written(monkeypatch, capsys, tmp_path, facts_file):
    tune = ("tune", facts_file, "--method", "ft", "--db", tmp_path / "runs.db", "--vary")
    for pair, said in (("bogus=1", "write NAME=VALUE"), ("steps=x", "steps takes a whole number")):
        status, text = run(monkeypatch, capsys, *tune, pair)
        assert status == 1 and f"--vary {pair}: {said}" in text, text
