"""What the Export tab hands over, and under which result."""

from collections.abc import Iterator

import gradio as gr
import pytest

from engine.facts import FactBatch
from studio.components import export_box
from studio.components.export_box import ExportBox
from studio.edit_job import show_current, start_edit
from studio.runs import EditRequest
from studio.studio import Studio
from tests.engine import tiny

PAGE = "a page"


@pytest.fixture
def box(store, model_folder, hypernet_folder) -> Iterator[ExportBox]:
    """Of a page on which run 2 is on, after run 1."""
    studio = Studio(store)
    studio.load_model(str(model_folder), "cpu")
    request = EditRequest(FactBatch(tiny.FACTS, "tiny.csv", "studio"), "agrade", {}, hypernet_folder, 0, keep=0)
    for _ in range(2):
        job = start_edit(studio, studio.workspace(PAGE), request)
        assert job.ended.wait(60) and job.snapshot().state == "done", job.snapshot().error
    with gr.Blocks():
        yield ExportBox(studio, gr.State(PAGE))
    studio.jobs.close()


def step(box: ExportBox, name: str) -> None:
    """Undo or redo, and show the result of what is then on."""
    workspace = box.studio.workspace(PAGE)
    getattr(workspace, name)()
    show_current(box.studio, workspace)


def names(updates: dict, box: ExportBox) -> set[str]:
    return {file["orig_name"] for file in updates[box.files].value}


def test_the_exported_model_is_offered_under_its_own_result_alone(box):
    *_, last = box._merged(PAGE)
    assert names(last, box) == {"merged-model-run-2.zip"} and "as a zip" in last[box.told]
    going = box._merged(PAGE)
    next(going)
    step(box, "undo")
    *_, last = going
    assert box.files not in last and "Run 2’s model is in" in last[box.told] and "merged-model" in last[box.told]
    assert last[box.merged].interactive and last[box.bar] == ""
    going = box._merged(PAGE)
    next(going)
    step(box, "redo")
    *_, last = going
    assert box.files not in last and "Run 1’s model is in" in last[box.told]


def test_a_result_taken_off_and_put_on_again_meanwhile_is_offered(box):
    going = box._merged(PAGE)
    next(going)
    step(box, "undo")
    step(box, "redo")
    box.studio.workspace(PAGE).rest()
    *_, last = going
    assert names(last, box) == {"merged-model-run-2.zip"}


def test_results_are_not_offered_under_another_result(box, monkeypatch):
    export = export_box.export_results

    def meanwhile(*given):
        paths = export(*given)
        step(box, "undo")
        return paths

    monkeypatch.setattr(export_box, "export_results", meanwhile)
    told = box._results(PAGE)
    assert box.files not in told and "Run 2’s results are in" in told[box.told]
