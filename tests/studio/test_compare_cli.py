"""`python app.py compare` without a browser, on a tiny model in a folder: its table, its files, and how it repeats."""

import csv
import json
import re
import shlex
import sys
from codecs import BOM_UTF8
from pathlib import Path
from random import Random

import pytest
import typer

import app
from engine.comparison import ABLATIONS
from engine.errors import Cancelled
from engine.fact_readers import read_facts, write_csv
from engine.facts import Fact
from studio import comparison_files
from studio.comparison_record import read_comparison
from studio.store import Store
from tests.engine.tiny import FACTS
from tests.studio.command import run

QUICK = ("--set", "ft.steps=3", "--set", "ft.learning_rate=0.05", "--generate", 1)


@pytest.fixture
def common(tmp_path, monkeypatch, model_folder, hypernet_folder) -> tuple:
    monkeypatch.setenv("AGRADE_STUDIO_CACHE", str(tmp_path / "cache"))
    return ("--model", model_folder, "--device", "cpu", "--db", tmp_path / "runs.db", "--hypernet", hypernet_folder)


@pytest.fixture
def facts_file(tmp_path) -> Path:
    path = tmp_path / "facts.csv"
    write_csv(FACTS, path)
    return path


def kept(tmp_path: Path, back: int = 0):
    """The last comparison, or one before it."""
    with Store(tmp_path / "runs.db") as store:
        return read_comparison(store, store.runs(kind="compare")[back]["id"])


def test_compare_prints_the_table_and_writes_what_it_says(monkeypatch, capsys, tmp_path, facts_file, common):
    monkeypatch.setitem(sys.modules, "kaleido", None)
    out = tmp_path / "out"
    out.mkdir()
    (out / "memory.png").write_text("an earlier comparison's")
    (out / "command.txt").write_text("python app.py compare facts.csv")
    arguments = ("--methods", "agrade,ft,malmen", "--ablations", "--sizes", "1, 2, 64", "--out", out)
    status, text = run(monkeypatch, capsys, "compare", facts_file, *arguments, *QUICK, *common)
    assert status == 0, text
    assert {path.name for path in out.iterdir() if path.suffix != ".png"} < set(comparison_files.EXPORTED)
    assert not list(out.glob("*.png")), "stale ones are gone"
    for expected in ("Unedited model", "AGRADE w/o weights projection", "FT", "Score", "per 100", "The first 2 facts"):
        assert expected in text
    assert "No sweep at 64: there are 5 facts." in text
    assert re.search(r"MALMEN, 5 facts: MALMEN needs a hypernetwork", text), "a failed method says why"
    assert "PNG pictures were not written" in text and "Run 1 is kept" in text

    found = kept(tmp_path)
    summary = json.loads((out / "summary.json").read_text())
    ablations = [f"agrade:{name}" for name in ABLATIONS]
    assert [one["entry"] for one in summary] == ["agrade", *ablations, "ft", "malmen"]
    assert found.lines[1].settings["keep_unrelated"] is False, "no method is told of what it is measured by"
    for one, line in zip(summary, found.lines[1:]):
        assert {"method", "model", "n_facts", "seconds", "peak_memory_bytes", "metrics"} <= set(one)
        assert one["n_facts"] == len(FACTS) and one["seconds"] == line.seconds
        assert len(one["metrics"]) == len(line.metrics) and bool(one["error"]) == (line.status == "failed")
    assert {"name", "protocol", "value", "before", "n", "low", "high"} == set(summary[0]["metrics"][0])
    assert [one["n_facts"] for one in summary[0]["sizes"]] == [1, 2]

    assert (out / "comparison.csv").read_bytes().startswith(BOM_UTF8), "or Excel takes it for another encoding"
    rows = list(csv.DictReader((out / "comparison.csv").open(encoding="utf-8-sig")))
    assert len(rows) == 3 * 8 and {row["n_facts"] for row in rows} == {"1", "2", "5"}
    ft = next(row for row in rows if row["entry"] == "ft" and row["n_facts"] == "5")
    assert float(ft["ES exact"]) == found.lines[6].value("ES", "exact") and float(ft["ES exact low"]) >= 0
    assert "| FT |" in (out / "comparison.md").read_text() and "**" in (out / "comparison.md").read_text()
    assert "## The first 2 facts" in (out / "comparison.md").read_text()
    tex = (out / "comparison.tex").read_text()
    assert tex.count(r"\\") == 2 + 8 and r"\textbf{" in tex and r"$\|\Delta\theta\|/\|W\|$" in tex
    html = (out / "plots.html").read_text()
    assert html.count("Plotly.newPlot(") == 4 and "https://cdn" not in html.split("Plotly.newPlot(", 1)[1]
    assert read_facts(out / "facts.csv").facts[0].prompt == FACTS[0].prompt


def test_the_command_it_writes_repeats_it(monkeypatch, capsys, tmp_path, facts_file, common):
    monkeypatch.chdir(tmp_path)
    out, again = Path("out"), tmp_path / "again"
    asked = ("--module-pattern", "model.layers.{}.self_attn.o_proj", "--dtype", "float32")
    arguments = ("--methods", "agrade:no-c,ft", "--limit", 4, "--shuffle", 7, "--sizes", "2", "--out", out, *asked)
    assert run(monkeypatch, capsys, "compare", facts_file, *arguments, *QUICK, *common)[0] == 0
    words = shlex.split((out / "command.txt").read_text())
    assert words[:3] == ["python", "app.py", "compare"] and Path(words[3]).is_absolute()
    status, text = run(monkeypatch, capsys, *words[2:], "--out", again, "--db", tmp_path / "runs.db")
    assert status == 0, text
    first, second = kept(tmp_path, 1), kept(tmp_path)
    assert first.plan == second.plan and [one.prompt for one in first.facts] == [one.prompt for one in second.facts]
    assert [one.prompt for one in first.facts] == [one.prompt for one in Random(7).sample(FACTS, len(FACTS))[:4]]
    for one, other in zip((*first.lines, *first.sweep), (*second.lines, *second.sweep)):
        assert (one.key, one.n_facts, one.metrics) == (other.key, other.n_facts, other.metrics)
        assert one.modules == other.modules
    assert (again / "command.txt").read_text().split()[4:] == (out / "command.txt").read_text().split()[4:]


def test_cancel_shows_and_writes_what_is_finished(monkeypatch, capsys, tmp_path, facts_file, common):
    def stopping(execute):
        def executed(studio, session, request, progress, *more):
            def stop(stage, done, total):
                if stage.startswith("UltraEdit"):
                    raise Cancelled
                progress(stage, done, total)

            return execute(studio, session, request, stop, *more)

        return executed

    monkeypatch.setattr(app, "execute_comparison", stopping(app.execute_comparison))
    out = tmp_path / "out"
    arguments = ("--methods", "ft,ultraedit,agrade", "--out", out)
    status, text = run(monkeypatch, capsys, "compare", facts_file, *arguments, *QUICK, *common)
    assert status == 130 and "Cancelled" in text and "Not begun: AGRADE" in text
    done, stopped = json.loads((out / "summary.json").read_text())
    assert done["metrics"] and (stopped["status"], stopped["metrics"]) == ("cancelled", [])


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--methods", "wishful"), "Unknown method 'wishful'"),
        (("--methods", "agrade:no-luck"), "no ablation 'agrade:no-luck'"),
        (("--set", "steps=3"), "write METHOD.NAME=VALUE"),
        (("--set", "ft.eta=3"), "write NAME=VALUE, with one of layers"),
        (("--sizes", "1,many"), "no numbers of facts"),
        (("--sizes", "0"), "below one fact"),
        (("--hypernet", "no-such-folder"), "holds no readable card.json"),
        (("--methods", "ultraedit", "--set", "ft.steps=1"), "--set is given for ft, which is not compared"),
    ],
)
def test_wrong_arguments_are_sentences_and_begin_nothing(
    monkeypatch, capsys, tmp_path, facts_file, common, arguments, said
):
    status, text = run(monkeypatch, capsys, "compare", facts_file, *common[:-2], *arguments)
    assert status == 1 and said in text and "Traceback" not in text
    assert not (tmp_path / "runs.db").exists()


def test_two_hypernetworks_of_one_method_are_refused(monkeypatch, capsys, facts_file, common):
    status, text = run(monkeypatch, capsys, "compare", facts_file, *common, *common[-2:])
    assert status == 1 and "Name one for each method" in text
    status, text = run(monkeypatch, capsys, "compare", facts_file, *common, "--methods", "ft")
    assert status == 1 and "--hypernet is given for agrade, which is not compared" in text


def test_names_and_texts_cannot_break_the_files():
    escaped = r"50 \% of A\_b \& \{c\} \textbackslash{} \textasciitilde{}"
    assert comparison_files._latex("50 % of A_b & {c} \\ ~") == escaped
    assert comparison_files._plain("a|b *c* <d>") == r"a\|b \*c\* &lt;d>"


def test_the_command_has_help(monkeypatch, capsys):
    status, text = run(monkeypatch, capsys, "compare", "--help")
    assert status == 0
    for flag in ("--methods", "--ablations", "--sizes", "--limit", "--shuffle", "--set", "--out"):
        assert flag in text
    assert isinstance(typer.main.get_command(app.cli).commands["compare"], typer.core.TyperCommand)


def test_a_contradicting_published_set_is_repeated_from_json(tmp_path):
    from studio.exports import write_facts

    facts = [Fact("Seen", "twice"), Fact("Seen", "thrice")]
    path = write_facts(facts, tmp_path / "facts")
    assert path.suffix == ".json" and [one.target for one in read_facts(path).facts] == ["twice", "thrice"]
