"""What the Edit tab tells a page of jobs and edits that are not the page's own doing."""

import threading

import gradio as gr
import pytest

from engine.delta import WeightDelta
from studio.components.sidebar import Sidebar
from studio.edit_job import jobs_of
from studio.studio import Studio
from studio.tabs.edit import EditTab
from studio.workspace import AppliedEdit

PAGE = "a page"


@pytest.fixture
def tab(store, model_folder) -> EditTab:
    studio = Studio(store)
    studio.load_model(str(model_folder), "cpu")
    with gr.Blocks():
        session = gr.State(PAGE)
        sidebar = Sidebar(studio, session)
        with gr.Tab():
            return EditTab(studio, session, sidebar)


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


def test_another_pages_model_is_shown_and_a_known_one_leaves_the_sidebar_as_it_is(tab):
    sidebar = tab.sidebar
    (shown,) = sidebar._again("")
    assert shown[sidebar.loaded] and sidebar.problem in shown
    assert list(sidebar._again(shown[sidebar.loaded])) == [{sidebar.loaded: shown[sidebar.loaded]}]
