"""A comparison on the page: its table, plots, the fact × method grid with the outputs side by side, and its files.

    view = ComparisonView(store, "compare")     # where it shall stand, inside the open layout
    view.show(12)                               # updates for view.outputs: whatever is kept of run 12 so far
    view.grown(12, 3)                           # update for view.parts: of run 12 three parts have ended by now
"""

from dataclasses import dataclass
from typing import Any

import gradio as gr

from engine.errors import EditingError
from studio.comparison_files import export_comparison
from studio.comparison_record import StoredComparison, read_comparison, read_questions, read_verdicts
from studio.comparison_table import APPENDIX, READINGS
from studio.comparisons import command_of
from studio.components import comparison_html, fact_grid
from studio.components.comparison_plot import memory_figure, pareto_figure, scores_figure, sweep_figure
from studio.components.markup import note, span
from studio.components.panel import panel, said, shown
from studio.connection import StoreError
from studio.store import Store

Updates = dict[Any, Any]
TO_DETAIL = "(id) => document.getElementById(id)?.scrollIntoView({behavior: 'smooth', block: 'nearest'})"


@dataclass(frozen=True)
class Exported:
    """A comparison written to files, or why not: what is said of it, their paths, the command that repeats it."""

    number: int
    told: str
    paths: tuple[str, ...] = ()
    command: str = ""


class ComparisonView:
    """The components. Every elem_id begins with `prefix`; the view turns its own pages and opens its own facts."""

    def __init__(self, store: Store, prefix: str) -> None:
        self.store, self.prefix = store, prefix
        self.number, self.page, self.place, self.parts = gr.State(None), gr.State(1), gr.State(None), gr.State(None)
        self.exported = gr.State(None)  # the comparison that was written to files, and what is said of it
        self.head = panel(comparison_html.NOTHING, elem_id=f"{prefix}-head", css=comparison_html.CSS)
        with gr.Column(visible=False, elem_classes="block-section") as self.scored:
            self.reading = gr.Radio(
                [(title, name) for name, title in READINGS.items()], value=APPENDIX, label="Protocols",
                elem_id=f"{prefix}-reading",
            )  # fmt: skip
            self.table = panel(elem_id=f"{prefix}-table", css=comparison_html.CSS)
            with gr.Accordion("Every metric under every protocol", open=False, elem_id=f"{prefix}-protocols-section"):
                self.protocols = panel(elem_id=f"{prefix}-protocols", css=comparison_html.CSS)
        with gr.Column(visible=False, elem_classes="block-section") as self.drawn:
            gr.Markdown("#### Scores with 95 % intervals", elem_classes="section")
            self.scores = gr.Plot(show_label=False, elem_id=f"{prefix}-scores")
            with gr.Row():
                with gr.Column(scale=3, min_width=360):
                    gr.Markdown("#### Score against seconds", elem_classes="section")
                    self.front = gr.Plot(show_label=False, elem_id=f"{prefix}-front")
                with gr.Column(scale=2, min_width=360):
                    gr.Markdown("#### Peak memory", elem_classes="section")
                    self.memory = gr.Plot(show_label=False, elem_id=f"{prefix}-memory")
            with gr.Column(visible=False) as self.swept:
                gr.Markdown("#### Sizes", elem_classes="section")
                self.sizes = gr.Plot(show_label=False, elem_id=f"{prefix}-sizes")
                with gr.Accordion("The sizes as a table", open=False, elem_id=f"{prefix}-sizes-section"):
                    self.sizes_table = panel(elem_id=f"{prefix}-sizes-table", css=comparison_html.CSS)
        with gr.Column(visible=False, elem_classes="block-section") as self.compared:
            gr.Markdown("#### Facts", elem_classes="section")
            self.order = gr.Dropdown(
                list(fact_grid.ORDERS), value=fact_grid.DISAGREEMENT, label="Sorted", elem_id=f"{prefix}-order"
            )
            self.grid = panel(elem_id=f"{prefix}-grid", css=fact_grid.GRID_CSS, js_on_load=fact_grid.CHOOSE)
            with gr.Row(elem_classes="toolbar below"):
                self.where = panel(elem_id=f"{prefix}-where")
                self.back = gr.Button("← Previous", size="sm", elem_id=f"{prefix}-previous")
                self.forth = gr.Button("Next →", size="sm", elem_id=f"{prefix}-next")
            self.detail = panel(elem_id=f"{prefix}-detail", css=fact_grid.DETAIL_CSS, visible=False)
        with gr.Column(visible=False, elem_classes="block-section") as self.taken:
            gr.Markdown("#### Take away", elem_classes="section")
            with gr.Row(elem_classes="toolbar"):
                self.export = gr.Button("Write table, summary, plots as files", size="sm", elem_id=f"{prefix}-export")
            self.told = panel(elem_id=f"{prefix}-told", visible=False)
            self.files = gr.File(
                label="Ready to download", file_count="multiple", interactive=False, visible=False,
                elem_id=f"{prefix}-files", elem_classes="offered",
            )  # fmt: skip
            self.command = gr.Textbox(
                label="The same again, from the command line", buttons=["copy"], interactive=False, visible=False,
                lines=2, elem_id=f"{prefix}-command",
            )  # fmt: skip
        self._read = [self.table, self.scores, self.front, self.sizes, self.sizes_table, self.swept]
        self._grid = [self.grid, self.where, self.back, self.forth, self.page]
        self._grows = [
            self.head, self.scored, self.drawn, self.compared, self.taken, self.protocols, self.memory,
            *self._read, *self._grid,
        ]  # fmt: skip
        self._written = [self.told, self.files, self.command]
        # Not `parts`: as an output of a first `show` it counts as changed, and everything is drawn twice.
        chosen = [self.reading, self.order, self.detail, self.number, self.place]
        self.outputs = [*chosen, *self._written, *self._grows]
        self._wire()

    def show(self, number: int | None) -> Updates:
        """Updates that show the comparison from its beginning; None: what will be here. Raises StoreError."""
        if number is None:
            hidden = (self.scored, self.drawn, self.compared, self.taken)
            columns = {one: gr.Column(visible=False) for one in hidden}
            return {self.number: None, self.head: comparison_html.NOTHING, **columns}
        return {
            self.number: number,
            self.reading: APPENDIX,
            self.order: fact_grid.DISAGREEMENT,
            self.detail: shown(""),
            self.told: shown(""),
            self.files: gr.File(None, visible=False),
            self.command: gr.Textbox(visible=False),
            self.place: None,
            **self._all(number, APPENDIX, fact_grid.DISAGREEMENT, 1, None),
        }

    def grown(self, number: int, parts: int) -> Updates:
        """The update of `parts` after which what was added is shown too, in the reading and order chosen meanwhile."""
        return {self.parts: (number, parts)}

    def _all(self, number: int | None, reading: str, order: str, page: int, place: int | None) -> Updates:
        if number is None:
            return gr.skip()
        found = read_comparison(self.store, number)
        any_done, edited = any(line.done for line in found.lines), bool(found.edited)
        results = edited or any(line.key and line.done for line in found.sweep)
        memory = memory_figure(found)
        return {
            self.head: comparison_html.head_html(found) + comparison_html.parts_html(found),
            self.scored: gr.Column(visible=bool(found.lines)),
            self.drawn: gr.Column(visible=any_done),
            self.compared: gr.Column(visible=edited),
            self.taken: gr.Column(visible=results and found.row["status"] != "running"),
            self.protocols: comparison_html.protocols_html(found),
            self.memory: gr.Plot(value=memory, visible=memory is not None),
            **self._in_reading(found, reading),
            **self._page(found, order, page, place),
        }

    def _in_reading(self, found: StoredComparison, reading: str) -> Updates:
        drawn = zip(self._read[1:3], (scores_figure(found, reading), pareto_figure(found, reading)))
        swept = sweep_figure(found, reading)
        return {
            self.table: comparison_html.table_html(found, reading),
            self.swept: gr.Column(visible=swept is not None),
            self.sizes: gr.Plot(value=swept),
            self.sizes_table: comparison_html.sizes_html(found, reading),
            **{plot: gr.Plot(value=figure, visible=figure is not None) for plot, figure in drawn},
        }

    def _page(self, found: StoredComparison, order: str, number: int, place: int | None) -> Updates:
        verdicts, lines = read_verdicts(self.store, found.number), found.edited
        page = fact_grid.select(found.facts, lines, verdicts, order, number)
        first = (page.number - 1) * fact_grid.PAGE_FACTS
        told = span(first + 1, first + len(page.places), page.total, "fact") if page.places else ""
        return {
            self.grid: fact_grid.grid_html(page, found.facts, lines, verdicts, place),
            self.where: f'<span class="quiet">{told}</span>',
            self.back: gr.Button(interactive=page.number > 1, visible=page.count > 1),
            self.forth: gr.Button(interactive=page.number < page.count, visible=page.count > 1),
            self.page: page.number,
        }

    def _wire(self) -> None:
        quiet = {"show_progress": "hidden", "api_visibility": "private"}
        last = {**quiet, "trigger_mode": "always_last"}
        chosen = [self.number, self.reading, self.order, self.page, self.place]
        self.parts.change(self._all, chosen, self._grows, **quiet)
        self.reading.input(self._read_so, [self.number, self.reading], self._read, **last)
        turned = [self.number, self.order, self.page, self.place]
        self.order.input(self._turned(None), turned, self._grid, **last)
        each = {**quiet, "trigger_mode": "multiple", "concurrency_limit": 1}
        self.back.click(self._turned(-1), turned, self._grid, **each)
        self.forth.click(self._turned(1), turned, self._grid, **each)
        # Not "always_last": it would ask for the first of two facts again. One at a time, so that the last one stays.
        each = {**quiet, "trigger_mode": "multiple", "concurrency_limit": 1}
        opened = self.grid.select(self._open, self.number, [self.detail, self.place], **each)
        opened.then(None, None, None, js=f"() => ({TO_DETAIL})('{self.prefix}-detail')")
        # Another comparison may be shown by the time the files are there: that is asked only then.
        exported = self.export.click(
            self._export, self.number, self.exported, trigger_mode="always_last", api_visibility="private",
            show_progress_on=self.export,
        )  # fmt: skip
        exported.success(self._offer, [self.number, self.exported], self._written, **quiet)

    def _read_so(self, number: int | None, reading: str) -> Updates:
        return gr.skip() if number is None else self._in_reading(read_comparison(self.store, number), reading)

    def _turned(self, pages: int | None):
        """A handler that turns so many pages, or to the first one."""

        def turn(number: int | None, order: str, page: int, place: int | None) -> Updates:
            if number is None:
                return gr.skip()
            found = read_comparison(self.store, number)
            return self._page(found, order, 1 if pages is None else page + pages, place)

        return turn

    def _open(self, number: int | None, event: gr.SelectData) -> Updates:
        if number is None:
            return gr.skip()
        place = int(event.value)
        found, questions = read_comparison(self.store, number), read_questions(self.store, number, place)
        lines = [line for line in found.lines if line.done]
        html = fact_grid.detail_html(found.facts[place], place, lines, questions)
        return {self.detail: shown(html), self.place: place}

    def _export(self, number: int | None) -> Exported | None:
        if number is None:
            return None
        try:
            found = read_comparison(self.store, number)
            paths, notes = export_comparison(self.store, found)
        except (EditingError, StoreError) as error:
            return Exported(number, said("error", str(error)))
        lines = [f"They lie in {paths[0].parent}", *notes]
        told = note("done", "Summary, tables, plots, facts and the command.", lines)
        command = command_of(found.plan, found.row["model"], str(paths[0]))
        return Exported(number, told, tuple(map(str, paths)), command)

    def _offer(self, number: int | None, exported: Exported | None) -> Updates:
        """The files under their own comparison; of another one they are found in its folder."""
        if exported is None or exported.number != number:
            return gr.skip()
        return {
            self.told: shown(exported.told),
            self.files: gr.File(list(exported.paths) or None, visible=bool(exported.paths)),
            self.command: gr.Textbox(exported.command, visible=bool(exported.command)),
        }
