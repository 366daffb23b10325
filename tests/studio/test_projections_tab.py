"""What the Projections tab tells a page, without a browser."""

import gradio as gr
import pytest

from studio.tabs.projections import ProjectionsTab

PAGE = "a page"


@pytest.fixture
def tab(drawn) -> ProjectionsTab:
    with gr.Blocks():
        session = gr.State(PAGE)
        with gr.Tab():
            return ProjectionsTab(drawn, session)


def test_every_update_of_an_entered_tab_names_the_run(tab):
    updates = list(tab._enter(PAGE, None, "features"))
    assert len(updates) > 1 and tab.choice.modules in updates[-1]
    (run,) = {one[tab.choice.run].value for one in updates}
    assert run is not None


def test_a_run_that_is_shown_already_is_not_offered_anew(tab):
    (update,) = tab._enter(PAGE, 1, "features")
    assert list(update) == [tab.choice.run] and update[tab.choice.run].value == 1
