"""What the Projections tab tells a page, without a browser."""

import re
from types import SimpleNamespace

import gradio as gr
import pytest

from engine.errors import EditingError
from studio.tabs.projections import ProjectionsTab
from tests.studio.wiring import listeners, page_of

PAGE = "a page"
REQUEST = SimpleNamespace(session_hash=PAGE)


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


def test_a_family_that_was_chosen_while_the_tab_was_being_entered_has_its_matrices(tab):
    late = tab._catch_up(1, "tokens", ["M", "HtG"])[tab.choice.kinds]  # features' came last
    assert late.value and not tab.choice.overtaken("tokens", late.value)
    assert tab._catch_up(1, "features", ["M", "HtG"]) == tab._catch_up(None, "tokens", ["M"]) == gr.skip()
    page = page_of(tab.top)
    (caught_up,), (draws,) = listeners(page, "_catch_up"), listeners(page, "_draw_new")
    assert draws.trigger_after == caught_up._id and page.fns[caught_up.trigger_after].fn.__name__ == "_enter"


@pytest.mark.parametrize(("points", "said"), [(0, ", not 0."), (-5, ", not -5."), (2.5, ", not 2.5."), (None, ".")])
def test_a_number_of_points_that_cannot_be_is_named_with_the_least(tab, points, said):
    form = [points if one is tab.choice.sample else answer for one, answer in zip(tab.choice.inputs, answers(tab, 1))]
    with pytest.raises(EditingError, match=f"^Points a matrix: a whole number from 2 on is needed{re.escape(said)}$"):
        tab.choice.read(*form)


def test_a_run_that_another_page_deleted_is_told_and_nothing_is_drawn(tab):
    assert "it may have been deleted. Choose another one" in tab._offer(99, "features")[tab.problem].value
    assert list(tab._draw_offered(REQUEST, 99, *answers(tab, 1)[1:])) == [tab._as_it_was()]


def answers(tab: ProjectionsTab, run: int) -> list:
    """What the form's inputs hold once the run is offered: PCA of its features, and how it is coloured."""
    offered = tab._offer(run, "features")
    form = [offered[one].value if one in offered else one.value for one in tab.choice.inputs]
    return [run, "features", "pca", *form[3:], "matrix", True]


def test_files_of_the_picture_before_go_when_another_one_is_drawn_or_there_is_none(tab):
    tab_page = page_of(tab.files)
    list(tab._draw(REQUEST, *answers(tab, 2)))
    *_, saved = tab._save(REQUEST, "matrix", True)
    assert saved[tab.files].visible and "of run 2." in saved[tab.problem].value
    assert {file["orig_name"].split("-features")[0] for file in saved[tab.files].value} == {"run-2"}
    first, *_ = tab._draw(REQUEST, *answers(tab, 1))
    for gone in (first, tab._offer(None, "features"), tab._offer(99, "features")):
        assert not gone[tab.files].visible and not gone[tab.files].value
    for name in ("_enter", "_offer", "_draw", "_draw_new", "_draw_offered"):
        assert all(tab.files in one.outputs for one in listeners(tab_page, name)), name
