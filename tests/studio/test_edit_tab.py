"""What the Edit tab tells a page of jobs and edits that are not the page's own doing."""

import threading
from collections.abc import Iterator

import gradio as gr
import pytest

from engine.delta import WeightDelta
from engine.facts import FactBatch
from studio.components.case_study import ALL
from studio.components.sidebar import Sidebar
from studio.edit_job import jobs_of, start_edit
from studio.runs import EditRequest
from studio.studio import AWAKE, Studio
from studio.tabs.edit import EditTab
from studio.workspace import AppliedEdit
from tests.engine import tiny

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
    turned = tab.results._turned(1)(PAGE, ALL, ALL, "", 0)
    assert shown(turned[tab.results.asked]) == shown(before[tab.results.asked])
    workspace.rest()
    told = tab._returned(PAGE, seen)
    for part in (tab.results.headline, tab.results.cards, tab.results.asked):
        assert shown(told[part]) == shown(before[part])
    assert tab._returned(PAGE, told[tab.sidebar.stamp]) == gr.skip()


def shown(update: str | gr.HTML) -> str:
    return update if isinstance(update, str) else update.value


def test_another_pages_model_is_shown_and_a_known_one_leaves_the_sidebar_as_it_is(tab):
    sidebar = tab.sidebar
    (shown,) = sidebar._again("")
    assert shown[sidebar.loaded] and sidebar.problem in shown
    assert list(sidebar._again(shown[sidebar.loaded])) == [{sidebar.loaded: shown[sidebar.loaded]}]
