"""The result of an edit on the page: headline, cards, case study with its filters, all protocols, modules."""

from typing import Any

import gradio as gr

from studio.components import case_study, metric_cards, result_summary
from studio.components.case_study import ALL, OUTCOMES, TYPES, Filter
from studio.components.export_box import ExportBox
from studio.components.markup import count
from studio.components.panel import panel
from studio.edit_job import FinishedEdit, show_current
from studio.studio import Studio
from studio.workspace import Workspace

Updates = dict[Any, Any]


class Results:
    """The components, made where the result shall stand. `show` fills them; `asked` says which prompt was clicked."""

    def __init__(self, studio: Studio, session: gr.State) -> None:
        self.studio, self.session = studio, session
        self.headline = panel(result_summary.NOTHING, elem_id="result-headline", css=result_summary.CSS)
        self.cards = panel(elem_id="result-cards", css=metric_cards.CSS, visible=False)
        with gr.Tabs(visible=False, elem_id="result-tabs") as self.tabs:
            with gr.Tab("Case study", elem_id="result-case-study-tab"):
                with gr.Row(elem_classes="toolbar filters"):
                    self.kind = gr.Dropdown(list(TYPES), value=ALL, label="Type", min_width=120, elem_id="case-type")
                    self.outcome = gr.Dropdown(
                        list(OUTCOMES), value=ALL, label="Result", min_width=120, elem_id="case-outcome"
                    )
                    self.search = gr.Textbox(
                        label="Search", placeholder="prompt, target, output or subject", max_lines=1, scale=3,
                        elem_id="case-search",
                    )  # fmt: skip
                self.asked = panel(elem_id="case-study", css=case_study.CSS, js_on_load=case_study.ASK)
                with gr.Row(elem_classes="toolbar below"):
                    self.place = panel(elem_id="case-place")
                    self.back = gr.Button("← Previous", size="sm", elem_id="case-previous")
                    self.forth = gr.Button("Next →", size="sm", elem_id="case-next")
            with gr.Tab("All protocols", elem_id="result-protocols-tab"):
                self.protocols = panel(elem_id="result-protocols", css=metric_cards.CSS)
            with gr.Tab("Modules", elem_id="result-modules-tab"):
                self.modules = panel(elem_id="result-modules")
            with gr.Tab("Export", elem_id="result-export-tab"):
                self.export = ExportBox(studio, session)
        self._page = gr.State(1)
        self._wire()

    @property
    def outputs(self) -> list[Any]:
        """Every component that `show` may change."""
        table = [self.asked, self.place, self.back, self.forth, self._page]
        filters = [self.kind, self.outcome, self.search]
        shown = [self.headline, self.cards, self.tabs, self.protocols, self.modules]
        return [*shown, *filters, *table, *self.export.outputs]

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
            self.kind: ALL,
            self.outcome: ALL,
            self.search: "",
            **self._table(edit, Filter(), 1),
            **self.export.cleared(),
        }

    def _table(self, edit: FinishedEdit, chosen: Filter, number: int) -> Updates:
        page = case_study.select(edit.run.outcome.instances, edit.facts, chosen, number)
        generated = sum(one.after.generated is not None for one in edit.run.outcome.instances if one.kind == "edit")
        told = f" · generated texts for the first {count(generated, 'fact')}" if generated < len(edit.facts) else ""
        return {
            self.asked: case_study.case_study_html(page, edit.facts),
            self.place: f'<span class="quiet">{case_study.page_text(page)}{told}</span>',
            self.back: gr.Button(interactive=page.number > 1),
            self.forth: gr.Button(interactive=page.number < page.count),
            self._page: page.number,
        }

    def _wire(self) -> None:
        quiet = {"show_progress": "hidden", "api_visibility": "private"}
        filters = [self.session, self.kind, self.outcome, self.search]
        table = [self.asked, self.place, self.back, self.forth, self._page]
        changes = [self.kind.change, self.outcome.change, self.search.change]
        gr.on(changes, self._turned(None), filters, table, trigger_mode="always_last", **quiet)
        each = {**quiet, "trigger_mode": "multiple", "concurrency_limit": 1}
        self.back.click(self._turned(-1), [*filters, self._page], table, **each)
        self.forth.click(self._turned(1), [*filters, self._page], table, **each)

    def _turned(self, pages: int | None):
        """A handler that turns so many pages, or to the first one."""

        def turn(session: str, kind: str, outcome: str, search: str, page: int = 1) -> Updates:
            edit = show_current(self.studio, self.studio.workspace(session))
            number = 1 if pages is None else page + pages
            return self._table(edit, Filter(kind, outcome, search), number) if edit else gr.skip()

        return turn
