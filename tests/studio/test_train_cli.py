"""`python app.py train` without a browser, on a tiny model in a folder: what it makes is used, and how it repeats."""

import json
import shlex
from pathlib import Path

from engine.fact_readers import write_csv
from studio.components.run_detail import command_line
from studio.store import Store
from studio.training_run import TRAINING_FILES
from tests.engine.tiny import FACTS
from tests.studio.command import run


def test_train_then_edit_with_what_was_trained(monkeypatch, capsys, tmp_path, facts_file, model_folder):
    folder, db = tmp_path / "training", tmp_path / "runs.db"
    sizes = ("steps=2", "rank=4", "layers=1-2", "smallest_batch=2", "largest_batch=4", "validate_every=1")
    settings = [word for size in sizes for word in ("--set", size)]
    common = ("--model", model_folder, "--device", "cpu", "--db", db)
    status, text = run(
        monkeypatch, capsys, "train", facts_file, "--valid", facts_file, "--out", folder, *settings, *common
    )
    assert status == 0, text
    assert '"step": 2' in text and "facts ES" in text
    trained = (folder / "training.safetensors").read_bytes()
    status, text = run(monkeypatch, capsys, "train", facts_file, "--out", folder, *settings, *common)
    assert status == 1 and "holds a training already" in text and "--resume" in text, text
    assert (folder / "training.safetensors").read_bytes() == trained
    assert len((folder / "log.jsonl").read_text().splitlines()) == 2
    status, text = run(monkeypatch, capsys, "train", facts_file, "--out", folder, "--resume", *settings, *common)
    assert status == 1 and "training is at step 2 already: train on to a later step" in text, text
    more = ("--resume", *settings, "--set", "steps=3")
    status, text = run(monkeypatch, capsys, "train", facts_file, "--out", folder, *more, *common)
    assert status == 0 and '"step": 3' in text and '"step": 1' not in text, text
    assert len((folder / "log.jsonl").read_text().splitlines()) == 3
    card = json.loads((folder / "best" / "card.json").read_text())
    assert card["settings"]["rank"] == 4 and card["data"]["facts"]["train"] == len(FACTS)
    status, text = run(monkeypatch, capsys, "edit", facts_file, "--hypernet", folder / "best", *common)
    assert status == 0, text
    with Store(db) as store:
        assert [row["kind"] for row in store.runs()] == ["edit", *["train"] * 4]
        assert [row["status"] for row in store.runs(kind="train")] == ["done", "failed", "failed", "done"]
        assert {row["kind"] for row in store.run(1).artifacts} == {"record", "checkpoint", "training log"}
        assert store.run(1).row["hparams"]["device"] == "cpu"

    again = ("train", facts_file, "--out", tmp_path / "second", "--start", folder / "best", *settings, *common)
    status, text = run(monkeypatch, capsys, *again)
    assert status == 0, text
    card = json.loads((tmp_path / "second" / "latest" / "card.json").read_text())
    assert card["start"]["checkpoint"] == "best"
    status, text = run(monkeypatch, capsys, *again, "--resume")
    assert status == 1 and "leave --start out" in text
    written = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
    assert written == set(TRAINING_FILES)


def test_the_command_of_a_training_repeats_it(monkeypatch, capsys, tmp_path, facts_file, model_folder, hypernet_folder):
    monkeypatch.chdir(tmp_path)
    valid = tmp_path / "valid facts.csv"
    write_csv(FACTS[:2], valid)
    common = ("--db", tmp_path / "runs.db")
    sizes = ("steps=1", "rank=8", "layers=1-2", "smallest_batch=2", "largest_batch=4", "validate_every=1")
    settings = [word for size in sizes for word in ("--set", size)]
    files = (facts_file.name, "--valid", valid.name, "--model", model_folder, "--device", "cpu")
    asked = ("train", *files, "--out", "mine", "--start", hypernet_folder, *settings, *common)
    status, text = run(monkeypatch, capsys, *asked)
    assert status == 0, text
    with Store(tmp_path / "runs.db") as store:
        words = shlex.split(command_line(store.run(1), ""))
    status, text = run(monkeypatch, capsys, *words[2:], *common)
    assert status == 0, text
    with Store(tmp_path / "runs.db") as store:
        first, second = store.run(1).row, store.run(2).row
    assert first["hparams"] == second["hparams"] and first["result"]["scores"] == second["result"]["scores"]
    assert first["hparams"]["start"] == str(hypernet_folder) and first["hparams"]["valid_files"] == [str(valid)]
    cards = [json.loads(Path(name, "latest", "card.json").read_text()) for name in ("mine", "mine-again")]
    assert cards[0]["start"] == cards[1]["start"] and cards[0]["data"] == cards[1]["data"]
