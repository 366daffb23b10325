"""What the Edit tab tells a page of jobs and edits that are not the page's own doing."""

import json
import sqlite3
import threading
from collections.abc import Callable, Iterator
from copy import deepcopy

import gradio as gr
import pytest
import torch

from engine.delta import WeightDelta
from engine.editing import run_edit
from engine.errors import EditingError, FactError
from engine.fact_records import fact_to_record
from engine.facts import FactBatch
from studio.components import sheet_rows
from studio.components.case_study import ALL
from studio.components.case_table import CaseTable
from studio.components.sidebar import Sidebar
from studio.edit_job import jobs_of, last_edit, start_edit
from studio.records import record_path
from studio.runs import EditRequest, execute_edit
from studio.studio import AWAKE, Studio
from studio.tabs.edit import LAST_APPLIED, EditTab
from studio.workspace import AppliedEdit
from tests.engine import tiny
from tests.studio.wiring import emptied_by, listeners, page_of

PAGE = "a page"


@pytest.fixture
def tab(store, model_folder) -> Iterator[EditTab]:
    studio = Studio(store)
    studio.load_model(str(model_folder), "cpu")
    with gr.Blocks():
        session = gr.State(PAGE)
        sidebar = Sidebar(studio, session)
        with gr.Tab():
            yield EditTab(studio, session, sidebar)
    studio.jobs.close()


def test_an_opened_page_leaves_an_edit_alone_that_was_begun_before_it_was_ready(tab):
    over = threading.Event()
    workspace = tab.studio.workspace(PAGE)
    job = tab.studio.jobs.submit("Edit", lambda job: over.wait(60), workspace=jobs_of(workspace))
    assert tab._ended(PAGE, job.id) == gr.skip()
    over.set()
    assert job.ended.wait(60)
    assert tab._ended(PAGE, job.id)[tab.apply].interactive


def test_a_page_that_is_come_back_to_is_drawn_anew_only_when_another_one_did_something(tab):
    workspace = tab.studio.workspace(PAGE)
    seen = tab.sidebar.show_weights(workspace)[tab.sidebar.stamp]
    assert tab._returned(PAGE, None) == tab._returned(PAGE, seen) == gr.skip()
    workspace.apply(AppliedEdit(1, WeightDelta({}, "", "agrade"), "edited: 1 fact by AGRADE"))
    told = tab._returned(PAGE, seen)
    assert "edited: 1 fact by AGRADE" in told[tab.sidebar.badge] and told[tab.sidebar.undo].interactive
    assert tab._returned(PAGE, told[tab.sidebar.stamp]) == gr.skip()
    workspace.undo()
    assert "original weights" in tab._returned(PAGE, told[tab.sidebar.stamp])[tab.sidebar.badge]


@pytest.mark.parametrize(
    ("method", "settings", "said"),
    [("agrade", {}, "AGRADE needs a hypernetwork"), ("ft", {"steps": -1}, "FT cannot take steps=-1"), ("no", {}, "'no'")],
)
def test_an_edit_that_is_bound_to_fail_does_not_wait_for_the_model(tab, method, settings, said):
    request = EditRequest(FactBatch(tiny.FACTS, "tiny.csv", "studio"), method, settings, generate=0)
    with tab.studio.model.lock, pytest.raises(EditingError, match=said):
        start_edit(tab.studio, tab.studio.workspace(PAGE), request)
    assert tab.studio.store.count_runs() == 0 and last_edit(tab.studio, tab.studio.workspace(PAGE)) is None


def turning(cases: CaseTable) -> Callable[..., dict]:
    """What Next does."""
    (found,) = (one for one in listeners(page_of(cases.next), "turn") if (cases.next._id, "click") in one.targets)
    return found.fn


def test_a_page_idle_while_many_others_edit_lets_its_memory_go_and_shows_its_result_again(tab, hypernet_folder):
    studio, batch = tab.studio, FactBatch(tiny.FACTS, "tiny.csv", "studio")
    request = EditRequest(batch, "agrade", {}, hypernet_folder, 0)
    workspace = studio.workspace(PAGE)
    for other in (workspace, *(studio.workspace() for _ in range(AWAKE))):
        job = start_edit(studio, other, request)
        assert job.ended.wait(60) and job.snapshot().state == "done", job.snapshot().error
        assert other.shown.run_id == job.snapshot().result
        if other is workspace:
            seen = workspace.stamp()
            before = tab.results.show(workspace)
    assert workspace.shown is None and len([one for one in studio._workspaces.values() if one.shown]) == AWAKE
    cases = tab.results.cases
    turned = turning(cases)(PAGE, ALL, ALL, "", 0)
    assert shown(turned[cases.rows]) == shown(before[cases.rows])
    workspace.rest()
    told = tab._returned(PAGE, seen)
    for part in (tab.results.headline, tab.results.cards, tab.results.cases.rows):
        assert shown(told[part]) == shown(before[part])
    assert tab._returned(PAGE, told[tab.sidebar.stamp]) == gr.skip()


def test_an_edit_of_a_model_that_was_replaced_meanwhile_is_not_on(tab, tiny_model, hypernet_folder, monkeypatch):
    studio, workspace = tab.studio, tab.studio.workspace(PAGE)

    def replaced(*given):
        done = execute_edit(*given)
        studio.model = tiny_model("gpt2")
        return done

    monkeypatch.setattr("studio.edit_job.execute_edit", replaced)
    batch = FactBatch(tiny.FACTS, "tiny.csv", "studio")
    job = start_edit(studio, workspace, EditRequest(batch, "agrade", {}, hypernet_folder, 0))
    assert job.ended.wait(60)
    [row] = studio.store.runs()
    said = f"Another model was loaded meanwhile: the edit is not on, the history has it as run {row['id']}."
    assert (job.snapshot().state, job.snapshot().error, row["status"]) == ("failed", said, "done")
    assert workspace.current is None and workspace.shown is None and not workspace.edits


def test_the_first_rows_of_a_file_that_another_page_put_away_are_not_edited_in_its_place(tab, tmp_path):
    facts = [{"prompt": f"Number {number} is called", "target": "x"} for number in range(sheet_rows.EDITABLE_ROWS + 1)]
    path = tmp_path / "large.json"
    path.write_text(json.dumps(facts))
    seen = tab.facts.load(PAGE, path)[tab.facts.sheet].value["data"]
    assert len(tab.facts.read(PAGE, seen)) == len(facts)
    tab.facts._cleared(PAGE, seen)
    with pytest.raises(FactError, match="the first 100 facts of large.json, which another page"):
        tab.facts.read(PAGE, seen)
    tab.facts.load(PAGE, path)
    assert len(tab.facts.read(PAGE, seen)) == len(facts)


def test_a_row_to_be_mended_is_still_in_the_sheet_when_the_page_is_reloaded(tab, tmp_path):
    path = tmp_path / "facts.csv"
    path.write_text("prompt,target\nA is,b\nC is,\n")
    loaded = tab.facts.load(PAGE, path)[tab.facts.sheet].value["data"]
    assert loaded == tab._enter(PAGE)[tab.facts.sheet].value["data"]
    assert [cells[0] for cells in loaded] == ["A is", "C is"]


def test_a_finished_edit_that_the_database_cannot_keep_is_on_and_says_so(tab, hypernet_folder, monkeypatch):
    studio, workspace = tab.studio, tab.studio.workspace(PAGE)
    studio.store._file.db.execute("PRAGMA busy_timeout = 0")
    other = sqlite3.connect(studio.store.path, isolation_level=None, check_same_thread=False)

    def locked(*given, **named):
        done = run_edit(*given, **named)
        other.execute("BEGIN IMMEDIATE")
        return done

    monkeypatch.setattr("studio.runs.run_edit", locked)
    batch = FactBatch(tiny.FACTS, "tiny.csv", "studio")
    job = start_edit(studio, workspace, EditRequest(batch, "agrade", {}, hypernet_folder, 0))
    assert job.ended.wait(60) and job.snapshot().state == "done", job.snapshot().error
    other.execute("ROLLBACK")
    assert workspace.badge() == "edited: 5 facts by AGRADE"
    assert "not in the history" in workspace.shown.run.notes[-1] and "kept locked" in workspace.shown.run.notes[-1]
    studio.workspace("another page")
    [row] = studio.store.runs()
    assert row["status"] == "failed" and "kept locked" in row["error"]
    assert not studio.store.run(row["id"]).artifacts and not record_path(studio.store, row["id"]).exists()
    workspace.rest()
    told = tab._current(workspace)
    assert f"result of run {row['id']} is not in the history" in told[tab.problem]
    other.close()


def test_entering_leaves_the_settings_to_the_method_that_is_chosen_by_then(tab):
    """Its answer may be late: it was asked with the method that was chosen when the page was opened."""
    assert not set(tab.settings.outputs) & (set(tab._enter(PAGE)) | set(tab._renew(PAGE)))


def test_what_was_said_of_other_facts_or_answers_goes_with_them_but_not_by_what_the_page_offers(tab):
    settings, emptied = tab.settings, emptied_by(tab.problem)
    touched = {(one._id, "input") for one in (settings.method, settings.hypernet, settings.generate, settings.keep)}
    controls = {control._id for form in settings.method_settings.forms.values() for control in form.components}
    assert touched < emptied and (tab.facts.rows._id, "change") in emptied
    by_answers = emptied - touched - {(tab.facts.rows._id, "change")}
    assert {one for one, _event in by_answers} == controls
    assert {event for _one, event in by_answers} == {"blur", "submit", "input"}


def test_the_method_last_applied_is_chosen_with_its_settings_when_the_page_is_opened_again(tab):
    assert tab._enter(PAGE)[tab.applied] == ""
    sheet = [list(fact_to_record(tiny.FACTS[0]).values())]
    answers = deepcopy(tab.settings.method_settings.answers.value)
    answers["ft"]["learning_rate"] = 0.25
    begun = list(tab._apply(PAGE, sheet, "ft", None, 3, 7, answers))
    assert tab.followed in begun[0], begun
    assert tab._enter(PAGE)[tab.applied] == "ft"
    form, again = tab.settings.method_settings.forms["ft"], tab._settings(PAGE, "ft")
    assert again[form.controls["learning_rate"]].value == 0.25
    assert again[form.controls["stop_below"]].value == 0.01
    assert (again[tab.settings.generate].value, again[tab.settings.keep].value) == (3, 7)
    assert again[tab.settings.method_settings.answers] == answers
    # Another method was chosen before the page asked: it says what it always says.
    other = tab._settings(PAGE, "lora")
    assert set(other) <= set(tab.settings.outputs) and set(again) <= set(tab.settings.kept)
    controls = tab.settings.method_settings.forms["lora"].components
    assert not any("value" in other[one]._constructor_args[0] for one in controls if one in other)
    (kept,) = [one for one in page_of(tab.applied).fns.values() if one.js == LAST_APPLIED]
    (entered,) = listeners(page_of(tab.applied), "_enter")
    assert kept.trigger_after == entered._id and kept.outputs == [tab.settings.method]
    (asked,) = listeners(page_of(tab.applied), "_settings")
    assert asked.trigger_after == kept._id, "its settings are asked for only then"


def shown(update: str | gr.HTML) -> str:
    return update if isinstance(update, str) else update.value


def test_another_pages_model_is_shown_and_a_known_one_leaves_the_sidebar_as_it_is(tab):
    sidebar = tab.sidebar
    (shown,) = sidebar._again("")
    assert shown[sidebar.loaded] and sidebar.problem in shown
    assert list(sidebar._again(shown[sidebar.loaded])) == [{sidebar.loaded: shown[sidebar.loaded]}]


def test_a_probe_that_runs_out_of_memory_says_what_to_do(tab, monkeypatch):
    def short(*_):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr("studio.probing.probe", short)
    told = tab._probe(PAGE, "The capital of France is")
    assert "The probe ran out of memory" in told and "Unexpected" not in told
