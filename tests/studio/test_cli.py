"""`python app.py edit|tune|project|benchmark` without a browser, on a tiny model in a folder."""

import csv
import json
import shlex
import socket
from codecs import BOM_UTF8
from dataclasses import fields

import pytest
from safetensors import SafetensorError
from safetensors.torch import load_file

from engine.grid_search import Trial
from engine.projection import ProjectionSettings
from engine.train_settings import TrainSettings
from studio.components.run_detail import command_line
from studio.connection import StoreError
from studio.runs import RESULTS
from studio.store import Store
from tests.engine.tiny import FACTS
from tests.studio.command import run


def test_edit_prints_the_tables_and_writes_what_it_says(
    monkeypatch, capsys, tmp_path, facts_file, model_folder, hypernet_folder
):
    out, db = tmp_path / "out", tmp_path / "runs.db"
    common = ("--model", model_folder, "--device", "cpu", "--hypernet", hypernet_folder, "--db", db)
    status, text = run(monkeypatch, capsys, "edit", facts_file, "--out", out, *common)
    assert status == 0, text
    for expected in ("ES", "GS", "LS", "exact", "agreement", "Case study", "✓", "Run 1 is kept"):
        assert expected in text
    summary = json.loads((out / "summary.json").read_text())
    assert {"method", "model", "n_facts", "seconds", "peak_memory_bytes", "metrics"} <= set(summary)
    assert summary["n_facts"] == len(FACTS) and summary["seconds"] > 0 and summary["peak_memory_bytes"] > 1e6
    assert {"name", "protocol", "value", "before", "n", "low", "high"} == set(summary["metrics"][0])
    assert {path.name for path in out.iterdir()} == set(RESULTS.values())
    assert (out / "facts.csv").read_bytes().startswith(BOM_UTF8), "or Excel takes it for another encoding"
    rows = list(csv.DictReader((out / "facts.csv").open(encoding="utf-8-sig")))
    instances = sum(1 + len(fact.equivalent) + len(fact.unrelated) for fact in FACTS)
    assert len(rows) == instances
    assert {"fact", "type", "prompt", "target", "before", "after", "exact", "agreement"} <= set(rows[0])
    success = [float(row["exact"]) for row in rows if row["type"] == "edit"]
    reported = next(m for m in summary["metrics"] if (m["name"], m["protocol"]) == ("ES", "exact"))
    assert sum(success) / len(success) == pytest.approx(reported["value"])
    shifts = load_file(out / "delta.safetensors")
    assert set(shifts) == {"model.layers.1.mlp.down_proj", "model.layers.2.mlp.down_proj"}
    with Store(db) as store:
        stored = store.run(1)
    assert stored.row["status"] == "done" and len(stored.outcome.instances) == instances
    assert stored.row["peak_memory_bytes"] == summary["peak_memory_bytes"]
    for row, one in zip(rows, stored.outcome.instances, strict=True):
        assert (row["fact"], row["type"], row["prompt"]) == (str(one.fact + 1), one.kind, one.prompt)
        assert (row["target"], row["before"], row["after"]) == (one.target, one.before.argmax, one.after.argmax)
        assert row["before_generated"] == one.before.generated and row["after_generated"] == one.after.generated
        assert {name: float(row[name]) for name in one.success if row[name]} == {
            name: pytest.approx(value, abs=1e-5) for name, value in one.success.items() if value is not None
        }
    assert any(row["before"] != row["after"] for row in rows), "else the columns could be each other's"
    assert stored.row["hparams"]["keep_unrelated"] is True and "told of the unrelated prompts" in " ".join(text.split())
    status, text = run(monkeypatch, capsys, "edit", facts_file, "--set", "keep_unrelated=off", *common)
    assert status == 0 and "told of the unrelated prompts" not in " ".join(text.split())
    assert {row["kind"] for row in stored.artifacts} == {"summary", "facts", "delta", "delta card", "record"}


def test_the_command_of_an_edit_repeats_it(monkeypatch, capsys, tmp_path, facts_file, model_folder):
    asked = ("--module-pattern", "model.layers.{}.self_attn.o_proj", "--device", "cpu", "--dtype", "float32")
    common = ("--db", tmp_path / "runs.db")
    quick = ("--method", "ft", "--generate", 0, "--set", "steps=1", "--set", "layers=1")
    assert run(monkeypatch, capsys, "edit", facts_file, "--model", model_folder, *asked, *quick, *common)[0] == 0
    with Store(tmp_path / "runs.db") as store:
        words = shlex.split(command_line(store.run(1), str(facts_file)))
    status, text = run(monkeypatch, capsys, *words[2:], *common)
    assert status == 0, text
    with Store(tmp_path / "runs.db") as store:
        first, second = store.run(1).row, store.run(2).row
    assert first["hparams"] == second["hparams"] and first["result"]["modules"] == second["result"]["modules"]
    assert [one["module"] for one in first["result"]["modules"]] == ["model.layers.1.self_attn.o_proj"]


def test_edit_takes_the_first_facts_and_generates_for_those_before(
    monkeypatch, capsys, tmp_path, facts_file, model_folder, hypernet_folder
):
    out = tmp_path / "out"
    common = ("--model", model_folder, "--device", "cpu", "--hypernet", hypernet_folder, "--db", tmp_path / "runs.db")
    status, text = run(monkeypatch, capsys, "edit", facts_file, "--limit", 2, "--generate", 1, "--out", out, *common)
    assert status == 0, text
    summary = json.loads((out / "summary.json").read_text())
    asked = {one["protocol"]: one["n"] for one in summary["metrics"] if one["name"] == "ES"}
    assert summary["n_facts"] == 2 and asked == {"exact": 2, "token": 2, "generated": 1}
    with Store(tmp_path / "runs.db") as store:
        assert [fact.prompt for fact in store.run(1).facts] == [fact.prompt for fact in FACTS[:2]]


def test_an_edit_that_the_database_cannot_keep_is_printed_with_the_reason(
    monkeypatch, capsys, tmp_path, facts_file, model_folder, hypernet_folder
):
    def full(*_given, **_named):
        raise StoreError("The disk with the database is full.")

    monkeypatch.setattr(Store, "finish_run", full)
    common = ("--model", model_folder, "--device", "cpu", "--hypernet", hypernet_folder, "--db", tmp_path / "runs.db")
    status, text = run(monkeypatch, capsys, "edit", facts_file, "--generate", 0, *common)
    assert status == 1 and "Case study" in text and text.strip().endswith("The disk with the database is full.")


def test_a_module_pattern_that_does_not_fit_is_a_sentence(monkeypatch, capsys, tmp_path, facts_file, model_folder):
    common = ("--model", model_folder, "--device", "cpu", "--db", tmp_path / "runs.db", "--module-pattern", "nonsense")
    for command in (
        ("edit", facts_file),
        ("compare", facts_file, "--methods", "ft", "--set", "ft.steps=1"),
        ("train", facts_file, "--set", "steps=1", "--out", tmp_path / "training"),
        ("tune", facts_file, "--method", "ft", "--set", "steps=1", "--seconds", 0, "--out", tmp_path / "trials.json"),
    ):
        status, text = run(monkeypatch, capsys, *command, *common)
        assert status == 1 and "The module pattern 'nonsense' does not fit" in " ".join(text.split()), text


def test_a_file_that_cannot_be_edited_is_a_sentence_and_edits_nothing(monkeypatch, capsys, tmp_path, model_folder):
    path = tmp_path / "bad.csv"
    path.write_text("prompt,target\nThe capital of France is,\n")
    status, text = run(monkeypatch, capsys, "edit", path, "--model", model_folder, "--db", tmp_path / "runs.db")
    assert status == 1 and "Row 1" in text and "Traceback" not in text
    with Store(tmp_path / "runs.db") as store:
        assert [row["status"] for row in store.runs()] == ["failed"]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--method", "wishful"), "Unknown method 'wishful'"),
        (("--set", "projection"), "write NAME=VALUE"),
        (("--set", "coefficient=perhaps"), "coefficient takes on or off"),
        (("--set", "scope=everything"), "scope takes one of trained, answer, all, subject, subject+answer"),
        (("--model", "no-such-folder"), "could not be loaded"),
        (("--device", "abacus"), "Unknown device"),
        (("--dtype", "int3"), "Unknown dtype"),
    ],
)
def test_wrong_arguments_are_sentences(
    monkeypatch, capsys, tmp_path, facts_file, model_folder, hypernet_folder, arguments, said
):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    defaults = ("--model", model_folder, "--hypernet", hypernet_folder, "--db", tmp_path / "runs.db")
    status, text = run(monkeypatch, capsys, "edit", facts_file, *defaults, *arguments)
    assert status == 1 and said in text and "Traceback" not in text


def test_a_folder_that_cannot_be_written_is_a_sentence_before_the_work(
    monkeypatch, capsys, tmp_path, facts_file, model_folder, hypernet_folder
):
    db, taken = tmp_path / "runs.db", tmp_path / "taken"
    taken.write_text("a file")
    common = ("--model", model_folder, "--device", "cpu", "--db", db)
    sizes = ("--set", "layers=1", "--set", "steps=1", "--set", "rank=2")
    tuning = ("--method", "ft", "--vary", "learning_rate=0.1", "--set", "layers=1", "--set", "steps=1")
    for command in (
        ("edit", facts_file, "--hypernet", hypernet_folder, "--out", taken),
        ("train", facts_file, *sizes, "--out", taken),
        ("tune", facts_file, *tuning, "--out", taken / "trials.json"),
    ):
        status, text = run(monkeypatch, capsys, *command, *common)
        assert status == 1 and "could not be written to" in text and "choose another folder" in text, text
        assert "the model's own" not in text, "tried before the folder was"
    with Store(db) as store:
        assert [row["status"] for row in store.runs()] == ["failed"] * 3
        assert not any(store.run(row["id"]).outcome.metrics for row in store.runs())


def test_a_disk_that_is_full_at_the_end_of_an_edit_is_a_sentence_and_its_scores_are_kept(
    monkeypatch, capsys, tmp_path, facts_file, model_folder, hypernet_folder
):
    def full(*_: object) -> None:
        raise SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")

    monkeypatch.setattr("engine.delta.save_file", full)
    common = ("--model", model_folder, "--device", "cpu", "--hypernet", hypernet_folder, "--db", tmp_path / "runs.db")
    status, text = run(monkeypatch, capsys, "edit", facts_file, "--out", tmp_path / "out", *common)
    assert status == 1 and "No space left" in text and "Free some room there" in " ".join(text.split()), text
    assert "Case study" in text and "exact+agreement" in text, "the edit is finished: it is shown"
    with Store(tmp_path / "runs.db") as store:
        stored = store.run(1)
    assert stored.row["status"] == "failed" and "No space left" in stored.row["error"] and stored.outcome.metrics


def test_a_studio_that_cannot_open_says_why(monkeypatch, capsys, tmp_path):
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        status, text = run(monkeypatch, capsys, "--port", port, "--db", tmp_path / "runs.db")
    assert status == 1 and f"port {port}" in text and "Choose another --port or --host" in text, text
    status, text = run(monkeypatch, capsys, "--hypernet", tmp_path / "none", "--db", tmp_path / "runs.db")
    assert status == 1 and "holds no readable card.json" in text, text
    assert run(monkeypatch, capsys, "--port", 70000, "--db", tmp_path / "runs.db")[0] == 2


def test_a_checkpoint_for_another_model_is_refused(
    monkeypatch, capsys, tmp_path, facts_file, tiny_model, hypernet_folder
):
    other = tiny_model("gpt2")
    folder = tmp_path / "other"
    other.lm.save_pretrained(folder)
    other.tokenizer.save_pretrained(folder)
    status, text = run(
        monkeypatch, capsys, "edit", facts_file, "--model", folder, "--hypernet", hypernet_folder,
        "--db", tmp_path / "runs.db",
    )  # fmt: skip
    assert status == 1 and "was trained for" in text
    with Store(tmp_path / "runs.db") as store:
        assert store.runs()[0]["status"] == "failed"


def test_project_draws_a_run_and_a_run_that_kept_nothing_says_so(
    monkeypatch, capsys, tmp_path, facts_file, model_folder, hypernet_folder
):
    db, out = tmp_path / "runs.db", tmp_path / "pictures"
    common = ("--model", model_folder, "--device", "cpu", "--hypernet", hypernet_folder, "--db", db, "--generate", 0)
    for keep in ((), ("--keep", 0)):
        assert run(monkeypatch, capsys, "edit", facts_file, *keep, *common)[0] == 0
    monkeypatch.setenv("BROWSER_PATH", str(tmp_path / "no-browser"))
    status, text = run(
        monkeypatch, capsys, "project", 1, "--out", out, "--db", db, "--set", "method=pca", "--set", "components=8"
    )
    assert status == 0, text
    assert "run-1-figure-3.html" in text and "run-1-figure-3.csv" in text and "No PNG or SVG was written" in text
    for column in ("cos(HᵀG, Δθ)", "cos(Gₗ,", "rank", "σ of Δθ"):
        assert column in text
    assert "Eq. 4 brought HᵀG closer" in text
    assert {path.name for path in out.iterdir()} == {"run-1-figure-3.html", "run-1-figure-3.csv"}
    status, text = run(monkeypatch, capsys, "project", 2, "--out", out, "--db", db)
    assert status == 1 and "kept nothing" in text and "Traceback" not in text
    status, text = run(monkeypatch, capsys, "project", 1, "--out", out, "--db", db, "--set", "perplexity=0")
    assert status == 1 and "Perplexity" in text
    tokens = ("project", 1, "--out", out, "--db", db, "--family", "tokens")
    for beside in ("layer:", "layer:1,2", "side:1"):
        status, text = run(monkeypatch, capsys, *tokens, "--beside", beside)
        assert status == 1 and f"--beside {beside}: write layer:18" in text, text
    status, text = run(monkeypatch, capsys, "project", 10**30, "--out", out, "--db", db)
    assert status == 1 and "No run has so large a number" in text, text


def test_tune_prints_the_trials_the_best_first_keeps_them_and_goes_on(
    monkeypatch, capsys, tmp_path, facts_file, model_folder
):
    out, db = tmp_path / "tuning" / "ft.json", tmp_path / "runs.db"
    common = ("--method", "ft", "--model", model_folder, "--device", "cpu", "--db", db, "--out", out)
    vary = [word for value in ("learning_rate=0.003", "learning_rate=0.03") for word in ("--vary", value)]
    settings = ("--set", "steps=4", "--set", "layers=1")
    first = ("tune", facts_file, "--limit", 3, "--seconds", 0, *common, *vary, *settings)
    status, text = run(monkeypatch, capsys, *first)
    assert status == 0 and "the model's own: ES" in text and len(json.loads(out.read_text())["trials"]) == 1, text
    again = ("tune", facts_file, "--limit", 3, "--valid", facts_file, *common, *vary, *settings)
    status, text = run(monkeypatch, capsys, *again)
    assert status == 0 and "which chose nothing" in text, text
    kept = json.loads(out.read_text())
    assert [one["settings"] for one in kept["trials"]] == [{}, {"learning_rate": 0.003}, {"learning_rate": 0.03}]
    assert kept["own_settings"]["steps"] == 4 and kept["facts"]["facts"]["count"] == 3
    assert {"ES", "GS", "LS", "Score", "seconds"} == set(kept["trials"][0]["figures"]["facts"])
    assert kept["best"] in [one["settings"] for one in kept["trials"]] and kept["valid"][0]["settings"] == {}
    assert FACTS[0].prompt not in out.read_text(), "figures are kept, not the facts"
    table = text[text.index("FT on facts") : text.index("which chose nothing")]
    ranks = [Trial(**one).rank for one in kept["trials"]]
    assert ranks[0] == max(ranks) or table.index("learning_rate") < table.index("the model's own")
    with Store(db) as store:
        runs = store.runs()
        assert [(row["kind"], row["status"], row["method"]) for row in runs] == [("tune", "done", "ft")] * 2
        assert [one["kind"] for one in store.run(2).artifacts] == ["tuning"]
        assert store.run(2).row["hparams"]["device"] == "cpu", "how the model was asked for"
    alone = (*common[:-1], tmp_path / "alone.json", *vary, *settings)
    status, text = run(monkeypatch, capsys, "tune", facts_file, "--limit", 3, "--at-once", 1, "--seconds", 0, *alone)
    assert status == 0 and "3 facts at most, 1 at once" in text, text
    assert json.loads((tmp_path / "alone.json").read_text())["at_once"] == 1
    status, text = run(monkeypatch, capsys, "tune", facts_file, "--limit", 2, *common, *vary, *settings)
    assert status == 1 and "cannot be gone on with" in text and "differs in its facts" in text
    status, text = run(monkeypatch, capsys, "tune", facts_file, "--method", "wishful", "--db", db)
    assert status == 1 and "Unknown method" in text


def test_benchmark_prints_its_figures(monkeypatch, capsys, facts_file, model_folder, hypernet_folder):
    status, text = run(
        monkeypatch, capsys, "benchmark", facts_file, "--repeat", 1, "--model", model_folder, "--hypernet", hypernet_folder
    )
    assert status == 0, text
    for expected in ("seconds per 100 facts", "tokens per second", "share of the matrix-multiply rate", "peak memory"):
        assert expected in text


def test_benchmark_times_target_states_in_one_batch_and_one_at_a_time(monkeypatch, capsys, facts_file, model_folder):
    methods = ("--targets", "memit", "--targets", "pmet")
    status, text = run(monkeypatch, capsys, "benchmark", facts_file, "--limit", 2, "--model", model_folder, *methods)
    assert status == 0, text
    for expected in ("MEMIT: in one batch", "PMET: in one batch", "PMET: one at a time over in one batch"):
        assert expected in text
    status, text = run(monkeypatch, capsys, "benchmark", facts_file, "--model", model_folder, "--targets", "ft")
    assert status == 1 and "FT has no target states" in text


def test_every_command_and_flag_has_help(monkeypatch, capsys):
    own = {
        (): ("in the cache", "a shipped one"),
        ("edit",): ("in the cache", "a shipped one"),
        ("train",): ("in the cache", "at random"),
        ("tune",): ("all at once", "the method's grid"),
        ("project",): ("the last one", "the paper's"),
        ("benchmark",): ("the shipped samples", "a shipped one"),
    }
    for command, defaults in own.items():
        status, text = run(monkeypatch, capsys, *command, "--help")
        assert status == 0
        words = " ".join(text.replace("│", " ").split())
        assert all(f"[default: ({default})]" in words for default in defaults), words
    for command, settings in (("train", TrainSettings), ("project", ProjectionSettings)):
        _, text = run(monkeypatch, capsys, command, "--help")
        words = " ".join(text.replace("│", " ").split())
        assert all(f"{item.name}=" in words for item in fields(settings)), words
    status, text = run(monkeypatch, capsys, "--help")
    for flag in ("--host", "--port", "--model", "--device", "--dtype", "--db", "--hypernet"):
        assert flag in text
