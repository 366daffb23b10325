"""The History tab: the list, an opened run, and the command line that repeats it, without a browser."""

import errno
import json
import re
import shlex
from dataclasses import asdict, replace
from pathlib import Path

import gradio as gr
import pytest
import typer

import app
from engine.fact_readers import read_facts
from engine.facts import Fact
from engine.generation import Probe, ProbeSide
from engine.metrics import Instance, Metric, Output
from engine.train_settings import TrainSettings
from studio.components import run_detail, run_view
from studio.components.fact_sheet import FactSheet
from studio.components.run_table import headline, runs_html
from studio.components.run_view import RunView, facts_file
from studio.exports import folder_of
from studio.store import Store
from studio.studio import Studio
from studio.tabs import history
from studio.tabs.history import filters, summary
from tests.engine import tiny
from tests.engine.tiny import FACTS
from tests.studio.wiring import listeners

EVIL = "<script>alert(1)</script>"
METRICS = (
    Metric("ES", "token", 0.9, 0.1, 5, 0.8, 1.0),
    Metric("ES", "exact", 0.75, 0.0, 5, 0.5, 1.0),
    Metric("LS", "agreement", 0.5, 1.0, 5, 0.2, 0.8),
)
EDIT = {
    "projection": "off", "scope": "trained", "coefficient": False, "step_scale": 0.0, "keep_unrelated": True,
    "hypernet": "", "generate": 8,
}  # fmt: skip
ASKED = {"module_pattern": "model.layers.{}.self_attn.o_proj", "device": "cpu", "dtype": "float32"}


@pytest.fixture
def store(tmp_path):
    with Store(tmp_path / "runs.db") as store:
        store.start_session("studio", "w")
        yield store


def start(store: Store, kind: str = "edit", title: str = "5 facts from a.csv", **more) -> int:
    given = {"method": "agrade", "hparams": EDIT, "model": "embedded", "model_sha": "abc"} | more
    return store.start_run(1, kind, title=title, **given)


def edited(store: Store, **more) -> int:
    run = start(store, **more)
    store.record_facts(run, FACTS)
    said = Output(EVIL, f"{EVIL} and more")
    instances = [
        Instance(n, "edit", fact.prompt, fact.target, said, said, {"exact": n % 2, "token": 0.5}, {"exact": 0})
        for n, fact in enumerate(FACTS)
    ]
    store.record_outputs(run, instances)
    store.record_metrics(run, METRICS)
    result = {"seconds": 2.0, "score_seconds": 3.0, "hypernet": EVIL, "notes": [f"A note {EVIL}"]}
    store.finish_run(run, peak_memory_bytes=1_500_000_000, result=result)
    return run


def trained(store: Store, folder: Path, settings: TrainSettings = TrainSettings()) -> int:
    folder.mkdir(parents=True)
    log = [{"step": n, "loss_equivalent": 2.0, "loss_unrelated": 0.1} for n in (1, 2)]
    (folder / "log.jsonl").write_text("".join(json.dumps(one) + "\n" for one in log))
    run = start(store, "train", "mine: 5 zsre", hparams=settings)
    store.add_artifact(run, "training log", folder / "log.jsonl")
    scores = {"step": 2, "zsre ES": 0.5, "b ES": 0.25, "zsre Score": None, "zsre GS": 0.0}
    store.finish_run(run, result={"scores": scores})
    return run


# The list


def test_an_empty_list_says_what_will_be_there():
    assert "No runs yet" in runs_html([], filtered=False)
    assert "No run fits" in runs_html([], filtered=True)


def test_rows_carry_their_number_and_escape_their_texts(store):
    first, second = edited(store, title=EVIL, model=EVIL), start(store)
    store.fail_run(second, "no")
    html = runs_html(store.runs(), filtered=False)
    assert html.index(f'data-run="{second}"') < html.index(f'data-run="{first}"')
    assert EVIL not in html and "&lt;script&gt;" in html
    assert "0.750" in html and "0.500" in html and "failed" in html


def test_the_headline_of_an_edit_is_exact_and_of_a_training_the_mean(store, tmp_path):
    edited(store)
    trained(store, tmp_path / "t")
    training, edit = store.runs()
    assert headline(edit) == [0.75, None, 0.5, None]
    assert headline(training) == [0.375, 0.0, None, None]
    assert summary(edit)["ES"] == 0.75 and summary(edit)["id"] == edit["id"]


def test_filters_find_words_of_outputs_and_states(store):
    edited(store)
    store.cancel_run(start(store, title="other"))
    assert [row["id"] for row in store.runs(**filters("denmark", "", ""))] == [1]
    assert [row["id"] for row in store.runs(**filters("", "edit", "cancelled"))] == [2]


# An opened run


def test_what_is_told_of_a_run_is_escaped_and_complete(store):
    run = store.run(edited(store, title=EVIL))
    html = run_detail.head_html(run)
    assert EVIL not in html
    for words in ("Run 1", "AGRADE", "1.50 GB", "2.0 s editing, 3.0 s scoring", "A note", "done"):
        assert words in html
    failed = start(store)
    store.fail_run(failed, f"First line\nRow 3: {EVIL}")
    html = run_detail.head_html(store.run(failed))
    assert "<strong>First line</strong>" in html and "<li>Row 3: &lt;script" in html


def test_settings_show_the_changed_ones_first():
    assert run_detail.changed_settings("edit", "agrade", EDIT) == {"projection": "off", "coefficient": False}
    assert run_detail.changed_settings("edit", "gone", {"x": 1}) == {"x": 1}
    hparams = asdict(TrainSettings(rank=8))
    assert run_detail.changed_settings("train", "agrade", hparams) == {"rank": 8}
    html = run_detail.settings_html({"kind": "edit", "method": "agrade", "hparams": EDIT})
    assert "<dt>coefficient</dt><dd>off</dd>" in html and "False" not in html
    assert html.index("projection") < html.index("The others") < html.index("step_scale")
    own = {"keep_unrelated": True}
    assert "All at their defaults" in run_detail.settings_html({"kind": "edit", "method": "agrade", "hparams": own})


@pytest.mark.parametrize("hparams", [{"keep_unrelated": False}, {}])
def test_an_edit_that_was_not_told_of_the_unrelated_prompts_says_so(store, hparams):
    """Where the row does not keep it, the engine's default held; the command has another."""
    run = store.run(edited(store, hparams=hparams))
    assert parsed(run_detail.command_line(run, "f.csv"))[1]["settings"] == ["keep_unrelated=false"]


def test_files_tell_whether_they_are_as_they_were(store, tmp_path):
    run = start(store)
    for name in ("same", "longer", "gone"):
        (tmp_path / name).write_text(name)
        store.add_artifact(run, name, tmp_path / name)
    (tmp_path / "longer").write_text("longer than before")
    (tmp_path / "gone").unlink()
    html = run_detail.artifacts_html(store.run(run).artifacts)
    states = ["as it was", "changed since", "no longer there"]
    assert re.findall("|".join(states), html) == states
    assert run_detail.artifacts_html([]) == ""


# The command line


def parsed(command: str) -> tuple[str, dict]:
    """The command as app.py understands it: its name and the values of its options."""
    python, program, name, *words = shlex.split(command)
    assert (python, program) == ("python", "app.py")
    parser = typer.main.get_command(app.cli).commands[name]
    return name, parser.make_context(name, words).params


def test_the_command_of_an_edit_is_understood_by_the_program(store):
    hparams = EDIT | {"hypernet": "/a folder/it's mine"}
    run = store.run(edited(store, hparams=hparams | ASKED, model="gpt2"))
    name, values = parsed(run_detail.command_line(run, "run 1.csv"))
    assert name == "edit" and values["facts"] == Path("run 1.csv") and values["method"] == "agrade"
    assert values["hypernet"] == Path("/a folder/it's mine") and values["generate"] == 8 and values["model"] == "gpt2"
    assert {name: values[name] for name in ASKED} == ASKED
    chosen = app.read_settings(values["settings"], app.EDITORS["agrade"].Settings)
    assert chosen == {"projection": "off", "coefficient": False}


def test_the_command_of_a_training_is_understood_by_the_program(store, tmp_path):
    settings = TrainSettings(rank=8, layers="1-2", outer_prompts="equivalent")
    folder = tmp_path / "my training"
    run = trained(store, folder, asdict(settings) | ASKED)
    for kind in ("train", "valid"):
        (folder / "data" / kind).mkdir(parents=True)
        (folder / "data" / kind / "1-zsre.json").touch()
    name, values = parsed(run_detail.command_line(store.run(run), ""))
    assert name == "train" and values["facts"] == [folder / "data" / "train" / "1-zsre.json"]
    assert values["valid"] == [folder / "data" / "valid" / "1-zsre.json"] and values["out"] == Path("my training-again")
    assert {name: values[name] for name in ASKED} == ASKED
    assert TrainSettings(**app.read_settings(values["settings"], TrainSettings)) == settings


def test_the_command_of_a_training_names_its_files_and_its_start(store, tmp_path):
    settings = asdict(TrainSettings(rank=8))
    told = {"train_files": ["/d/a b.json", "/d/c.csv"], "valid_files": ["/d/v.json"], "start": "/nets/first/best"}
    run = store.run(trained(store, tmp_path / "mine", settings | told))
    _, values = parsed(run_detail.command_line(run, ""))
    assert [str(path) for path in values["facts"]] == told["train_files"]
    assert values["valid"] == [Path("/d/v.json")] and values["start"] == Path("/nets/first/best")
    assert values["settings"] == ["rank=8"]
    html = run_detail.settings_html(run.row)
    assert html.index("<dt>rank</dt>") < html.index("The others") < html.index("/d/a b.json, /d/c.csv")
    assert run_detail.changed_settings("train", "agrade", settings | told) == {"rank": 8}


def test_what_a_training_does_not_tell_has_a_word_that_stands_for_it(store, tmp_path, tiny_model):
    """Of runs from before they told it, and of those that went on with an earlier one."""
    folder = tmp_path / "mine"
    run = store.run(trained(store, folder))
    assert run_detail.command_line(run, "") == "python app.py train FACTS --out mine-again"
    checkpoint = tiny.random_checkpoint(tiny_model("llama"))
    checkpoint.card["start"] = {"checkpoint": "first", "steps": 3}
    checkpoint.save(folder / "latest")
    assert run_detail.command_line(run, "") == "python app.py train FACTS --start CHECKPOINT --out mine-again"


def test_a_kind_without_a_command_has_none(store):
    assert run_detail.command_line(store.run(start(store, "unedited")), "f.csv") == ""


def test_the_facts_of_a_run_can_be_edited_again(store, tmp_path):
    plain = store.run(edited(store))
    path = facts_file(plain, tmp_path)
    strip = lambda facts: [replace(fact, row=0) for fact in facts]  # noqa: E731
    assert path.name == "run-1-facts.csv" and strip(read_facts(path).require()) == strip(FACTS)
    run = start(store)
    contradicting = (*FACTS, Fact(FACTS[0].prompt, "Madrid"))
    store.record_facts(run, contradicting)
    path = facts_file(store.run(run), tmp_path)
    assert path.suffix == ".json" and strip(read_facts(path).require()) == strip(contradicting)


def test_the_facts_are_those_of_the_run_whatever_lies_there(tmp_path):
    """After a database was moved away, and beside one of nearly its name."""
    folders = set()
    for name in ("runs.db", "runs.db", "runs.sqlite"):
        if (tmp_path / name).exists():
            (tmp_path / name).rename(tmp_path / "old.db")
        with Store(tmp_path / name) as store:
            store.start_session("studio", "w")
            run = store.run(edited(store))
            folder = folder_of(store, 1)
            facts_file(run, folder).write_text("prompt,target\nChanged,since\n")
            assert [fact.prompt for fact in read_facts(facts_file(run, folder)).require()] == [f.prompt for f in FACTS]
            folders.add(folder)
    assert len(folders) == 3


# The view


@pytest.fixture
def view(store) -> RunView:
    with gr.Blocks():
        return RunView(store)


def test_an_edit_opens_with_its_case_study(store, view):
    updates = view.show(edited(store))
    assert set(updates) <= set(view.outputs)
    assert view.comparison.parts not in view.outputs, "its change would draw the comparison a second time"
    assert updates[view.scored].visible and not updates[view.trained].visible
    assert FACTS[0].prompt in updates[view.cases.rows] and EVIL not in updates[view.cases.rows]
    assert "0.750" in updates[view.cards] and "token" in updates[view.metrics]
    assert updates[view.command].value.startswith("python app.py edit run-1-facts.csv")


def test_an_edit_opens_with_what_was_probed(store, view):
    run = edited(store)
    assert not view.show(run)[view.probed].visible
    side = ProbeSide("Lyon, since", [(" Lyon", 0.75), (EVIL, 0.25)])
    store.record_probe(run, "Where is it?", Probe(side, replace(side, text="Rome")))
    store.record_probe(run, "And now?", Probe(side, side))
    for updates in (view.show(run), view.again(run, "done")):
        assert updates[view.probed].visible and updates[view.probed].label == "Probes (2)"
        html = updates[view.probes]
        assert html.index("Where is it?") < html.index("Rome") < html.index("And now?") and EVIL not in html


def test_a_run_opens_without_its_facts_file_when_the_disk_is_full(store, view, monkeypatch):
    def full(facts, path):
        path.write_text("prompt,tar")
        raise OSError(errno.ENOSPC, "No space left on device")

    run = edited(store)
    monkeypatch.setattr("studio.exports.write_csv", full)
    updates = view.show(run)
    assert FACTS[0].prompt in updates[view.cases.rows] and not updates[view.facts].visible
    assert updates[view.no_facts].visible and "No space left on device" in updates[view.no_facts].value
    assert updates[view.command].value.startswith("python app.py edit FACTS")
    assert not list(folder_of(store, run).iterdir())
    monkeypatch.undo()
    updates = view.show(run)
    assert updates[view.facts].visible and not updates[view.no_facts].visible


def test_a_failed_edit_opens_without_one(store, view):
    run = start(store)
    store.fail_run(run, "no")
    updates = view.show(run)
    assert not updates[view.scored].visible and not updates[view.facts].visible
    assert updates[view.command].value == (
        "python app.py edit FACTS --method agrade --generate 8 --set projection=off --set coefficient=false"
    )


def test_a_training_opens_with_its_losses(store, view, tmp_path):
    run = trained(store, tmp_path / "mine")
    updates = view.show(run)
    assert updates[view.trained].visible and "L_equiv" in updates[view.plot].value["plot"]
    assert not updates[view.later].visible and not updates[view.card].visible
    with (tmp_path / "mine" / "log.jsonl").open("a") as log:
        log.write('{"step": 3, "loss_equivalent": 1.0, "loss_unrelated": 0.1}\n')
    assert view.show(run)[view.later].value.count(run_view.LATER.split(".")[0]) == 1
    (tmp_path / "mine" / "log.jsonl").unlink()
    assert not view.show(run)[view.plot].visible


def test_a_run_that_went_on_is_shown_anew_and_one_that_had_ended_keeps_its_page(store, view, tmp_path):
    run = start(store)
    assert view.show(run)[view.status] == "running"
    store.record_facts(run, FACTS)
    store.finish_run(run)
    updates = view.again(run, "running")
    assert updates[view.status] == "done" and "done" in updates[view.head].value
    (tmp_path / "summary.json").write_text("{}")
    store.add_artifact(run, "summary", tmp_path / "summary.json")
    updates = view.again(run, "done")
    assert "summary.json" in updates[view.files].value
    kept = (*view.cases.outputs, *view.comparison.outputs)
    assert not set(kept) & set(updates) and set(updates) <= set(view.outputs)
    training = trained(store, tmp_path / "mine")
    with (tmp_path / "mine" / "log.jsonl").open("a") as log:
        log.write('{"step": 3, "loss_equivalent": 1.0, "loss_unrelated": 0.1}\n')
    assert view.again(training, "done")[view.later].visible


# The tab


@pytest.fixture
def page(store) -> gr.Blocks:
    with gr.Blocks() as page:
        studio, session = Studio(store), gr.State("w")
        with gr.Tab():
            sheet = FactSheet(studio, session)
        with gr.Tab():
            history.build(studio, session, sheet)
    return page


def named(page: gr.Blocks, updates: dict) -> dict:
    """elem_id → update; what has none, by its class."""
    return {getattr(part, "elem_id", None) or type(part).__name__: update for part, update in updates.items()}


def test_one_run_is_one_run(store, page):
    (listed, *_) = listeners(page, "show_list")
    edited(store)
    assert ">1 run<" in named(page, listed.fn("", "", ""))["history-place"]
    edited(store)
    assert ">1–2 of 2 runs<" in named(page, listed.fn("", "", ""))["history-place"]


def test_an_opened_runs_facts_are_put_into_the_sheet(store, page):
    (takes,) = listeners(page, "take")
    run = edited(store)
    found = named(page, takes.fn(run, "w"))
    assert found["fact-sheet"].value["data"][0][0] == FACTS[0].prompt and f"run-{run}-facts.csv" in found["facts-status"]
    assert found["history-problem"].value == "", "or the page stays here"
    store.delete_run(run)
    told = named(page, takes.fn(run, "w"))
    assert f"no run {run}" in told["history-problem"].value and "fact-sheet" not in told


def test_an_opened_run_is_looked_at_again_whenever_the_tab_comes_into_sight(store, page):
    (again,), (opens,) = listeners(page, "look_again"), listeners(page, "open_run")
    assert [event for _, event in again.targets] == ["select"] and again.concurrency_id == opens.concurrency_id
    assert again.fn(None, "") == gr.skip(), "none is opened"
    run = start(store)
    updates = opens.fn(gr.SelectData(None, {"index": 0, "value": run}))
    assert "running" in named(page, updates)["history-head"].value
    store.fail_run(run, "It failed.")
    told = named(page, again.fn(run, "running"))
    assert "It failed." in told["history-head"].value
    store.delete_run(run)
    told = named(page, again.fn(run, "failed"))
    assert f"no run {run}" in told["history-problem"].value and not told["history-delete"].visible
    assert told["State"] is None, "no run is open any more"
