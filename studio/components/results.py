"""The result of an edit on the page: headline, cards, case study, all protocols, modules, export."""

from typing import Any

import gradio as gr

from studio.components import metric_cards, result_summary
from studio.components.case_table import Cases, CaseTable
from studio.components.export_box import ExportBox
from studio.components.panel import panel
from studio.edit_job import FinishedEdit, show_current
from studio.studio import Studio
from studio.workspace import Workspace

Updates = dict[Any, Any]


class Results:
    """The components, made where the result shall stand. `show` fills them; `cases.rows` says which prompt was clicked."""

    def __init__(self, studio: Studio, session: gr.State) -> None:
        self.studio, self.session = studio, session
        self.headline = panel(result_summary.NOTHING, elem_id="result-headline", css=result_summary.CSS)
        self.cards = panel(elem_id="result-cards", css=metric_cards.CSS, visible=False)
        with gr.Tabs(visible=False, elem_id="result-tabs") as self.tabs:
            with gr.Tab("Case study", elem_id="result-case-study-tab"):
                self.cases = CaseTable("case-", asks=True)
            with gr.Tab("All protocols", elem_id="result-protocols-tab"):
                self.protocols = panel(elem_id="result-protocols", css=metric_cards.CSS)
            with gr.Tab("Modules", elem_id="result-modules-tab"):
                self.modules = panel(elem_id="result-modules")
            with gr.Tab("Export", elem_id="result-export-tab"):
                self.export = ExportBox(studio, session)
        self.cases.wire(session, self._read)

    @property
    def outputs(self) -> list[Any]:
        """Every component that `show` may change."""
        shown = [self.headline, self.cards, self.tabs, self.protocols, self.modules]
        return [*shown, *self.cases.outputs, *self.export.outputs]

    def show(self, workspace: Workspace) -> Updates:
        """The workspace's result, all of it, from the first page on; what to do when there is none."""
        edit: FinishedEdit | None = workspace.shown
        if edit is None:
            hidden = {self.cards: gr.HTML(visible=False), self.tabs: gr.Tabs(visible=False)}
            return {self.headline: result_summary.NOTHING, **hidden}
        metrics = edit.run.outcome.metrics
        return {
            self.headline: result_summary.headline_html(edit, result_summary.standing(workspace)),
            self.cards: gr.HTML(metric_cards.cards_html(metrics), visible=True),
            self.tabs: gr.Tabs(visible=True),
            self.protocols: metric_cards.metrics_html(metrics),
            self.modules: result_summary.modules_html(edit),
            **self.cases.show(edit.run.outcome.instances, edit.facts),
            **self.export.cleared(),
        }

    def _read(self, session: str) -> Cases | None:
        edit = show_current(self.studio, self.studio.workspace(session))
        return (edit.run.outcome.instances, edit.facts) if edit else None
