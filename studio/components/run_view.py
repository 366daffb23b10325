"""One opened run on the page: what it was, its scores and case study or its losses and card, its files, its command.

    view = RunView(store)       # where it shall stand, inside the open layout
    view.show(12)               # updates for view.outputs: whatever is kept of run 12
    view.again(12, "done")      # the same for run 12 when it is looked at again, and was "done" before
"""

from pathlib import Path
from typing import Any

import gradio as gr

from engine.errors import EditingError
from studio.components.case_study import ALL, OUTCOMES, TYPES, Filter, case_study_html, page_text, select
from studio.components.case_study import CSS as CASE_CSS
from studio.components.comparison_view import ComparisonView
from studio.components.markup import note, text
from studio.components.metric_cards import CSS as CARDS_CSS
from studio.components.metric_cards import cards_html, metrics_html
from studio.components.panel import panel, said, shown
from studio.components.run_detail import (
    FILES_CSS,
    artifacts_html,
    changed_since,
    command_line,
    head_html,
    log_of,
    settings_html,
    versions_html,
)
from studio.components.training_plot import curve_of, loss_figure, read_log, validation_table
from studio.components.training_view import card_of
from studio.exports import folder_of, write_facts
from studio.run_reader import StoredRun
from studio.store import Store

Updates = dict[Any, Any]
# There is no probe box here that a clicked prompt could go to.
NOT_ASKED = "button.ask { pointer-events: none; }"
LATER = "The training has gone on since this run. Its losses, scores and card are shown as they are now."


def facts_file(run: StoredRun, folder: Path) -> Path:
    """The run's facts as a file that can be edited again: CSV; where a published set contradicts itself, JSON.

    Written anew each time: one that lies there may have been changed. Raises EditingError when the disk is full.
    """
    return write_facts(run.facts, folder / f"run-{run.row['id']}-facts")


class RunView:
    """The components, and what they show of a run. `outputs` go into an event's outputs; the case study turns
    its own pages."""

    def __init__(self, store: Store) -> None:
        self.store = store
        self.head = panel(elem_id="history-head")
        with gr.Column(visible=False) as self.compared:
            self.comparison = ComparisonView(store, "history-comparison")
        with gr.Column(visible=False, elem_classes="block-section") as self.scored:
            self.cards = panel(elem_id="history-cards", css=CARDS_CSS)
            with gr.Accordion("Every metric under every protocol", open=False, elem_id="history-metrics-section"):
                self.metrics = panel(elem_id="history-metrics")
            with gr.Row(elem_classes="toolbar filters"):
                self.type = gr.Dropdown(list(TYPES), value=ALL, label="Type", min_width=120, elem_id="history-type")
                self.outcome = gr.Dropdown(
                    list(OUTCOMES), value=ALL, label="Result", min_width=120, elem_id="history-outcome"
                )
                self.words = gr.Textbox(
                    label="Search in this run", placeholder="prompt, target, output or subject", max_lines=1, scale=3,
                    elem_id="history-words",
                )  # fmt: skip
            self.cases = panel(elem_id="history-cases", css=CASE_CSS + NOT_ASKED)
            with gr.Row(elem_classes="toolbar below"):
                self.place = panel(elem_id="history-case-place")
                self.previous = gr.Button("← Previous", size="sm", elem_id="history-previous")
                self.next = gr.Button("Next →", size="sm", elem_id="history-next")
        with gr.Column(visible=False, elem_classes="block-section") as self.trained:
            self.later = panel(elem_id="history-later")
            self.plot = gr.Plot(show_label=False, elem_id="history-plot")
            self.validation = panel(elem_id="history-validation")
            self.card = panel(elem_id="history-card")
        with gr.Column(elem_classes="block-section"):
            self.settings = panel(elem_id="history-settings")
            self.files = panel(elem_id="history-files", css=FILES_CSS)
            self.command = gr.Textbox(
                label="The same again, from the command line", buttons=["copy"], interactive=False,
                elem_id="history-command",
            )  # fmt: skip
            with gr.Row(elem_classes="toolbar"):
                self.facts = gr.DownloadButton("Download the facts", size="sm", elem_id="history-facts")
                self.take = gr.Button("Edit these facts", size="sm", elem_id="history-take")
            self.no_facts = panel(elem_id="history-no-facts", visible=False)
            self.versions = panel(elem_id="history-versions")
        self.run, self.status, self.page = gr.State(None), gr.State(""), gr.State(1)
        self.outputs = [
            self.head, self.scored, self.cards, self.metrics, self.outcome, self.type, self.words, self.cases,
            self.previous, self.place, self.next, self.trained, self.later, self.plot, self.validation, self.card,
            self.settings, self.files, self.command, self.facts, self.take, self.no_facts, self.versions, self.run,
            self.status, self.page, self.compared, *self.comparison.outputs,
        ]  # fmt: skip
        self._wire()

    def show(self, number: int) -> Updates:
        """Updates that show run `number` from its beginning. Raises StoreError when there is none."""
        run = self.store.run(number)
        scored = bool(run.outcome.instances or run.outcome.metrics)
        compared = run.row["kind"] == "compare"
        updates: Updates = {
            self.head: shown("" if compared else head_html(run)),
            self.compared: gr.Column(visible=compared),
            **self.comparison.show(number if compared else None),
            self.scored: gr.Column(visible=scored),
            self.outcome: ALL,
            self.type: ALL,
            self.words: "",
            self.settings: shown("" if compared else settings_html(run.row)),
            self.files: shown(artifacts_html(run.artifacts)),
            self.versions: versions_html(run.row["versions"]),
            self.run: number,
            self.status: run.row["status"],
            **self._training(run),
            **self._repeat(run),
        }
        if scored:
            updates |= {self.cards: cards_html(run.outcome.metrics), self.metrics: metrics_html(run.outcome.metrics)}
            updates |= self._cases(run, Filter(), 1)
        return updates

    def again(self, number: int, status: str) -> Updates:
        """Updates that show what is new of the run since its state was `status`. Raises StoreError when it has gone.

        One that had ended keeps its page, filters and opened facts: only its files, or its training, may be others.
        """
        if status == "running":
            return self.show(number)
        run = self.store.run(number)
        return {self.files: shown(artifacts_html(run.artifacts)), **self._training(run)}

    def _training(self, run: StoredRun) -> Updates:
        log = log_of(run.artifacts)
        if log is None:
            return {self.trained: gr.Column(visible=False)}
        folder = Path(log["path"]).parent
        curve = curve_of(read_log(Path(log["path"])))
        return {
            self.trained: gr.Column(visible=True),
            self.later: shown(note("info", LATER) if changed_since(log) else ""),
            self.plot: gr.Plot(value=loss_figure(curve) if curve.steps else None, visible=bool(curve.steps)),
            self.validation: shown(validation_table(curve)),
            self.card: shown(card_of(folder)),
        }

    def _repeat(self, run: StoredRun) -> Updates:
        file, why = None, ""
        if run.facts:
            try:
                file = facts_file(run, folder_of(self.store, run.row["id"]))
            except EditingError as error:
                why = str(error)
        command = command_line(run, file.name if file else "FACTS")
        return {
            self.command: gr.Textbox(value=command, visible=bool(command)),
            self.facts: gr.DownloadButton(
                f"Download {file.name}" if file else "", value=str(file) if file else None, visible=file is not None
            ),
            self.take: gr.Button(visible=file is not None),
            self.no_facts: shown(said("warning", why)),
        }

    def _cases(self, run: StoredRun, chosen: Filter, number: int) -> Updates:
        page = select(run.outcome.instances, run.facts, chosen, number)
        return {
            self.cases: case_study_html(page, run.facts),
            self.place: f'<span class="quiet">{text(page_text(page))}</span>',
            self.previous: gr.Button(interactive=page.number > 1),
            self.next: gr.Button(interactive=page.number < page.count),
            self.page: page.number,
        }

    def _wire(self) -> None:
        chosen = [self.run, self.type, self.outcome, self.words, self.page]
        outputs = [self.cases, self.place, self.previous, self.next, self.page]

        def turn(step: int | None):
            def turned(number: int | None, kind: str, outcome: str, words: str, page: int) -> Updates:
                if number is None:
                    return gr.skip()
                place = 1 if step is None else page + step
                return self._cases(self.store.run(number), Filter(kind, outcome, words), place)

            return turned

        hidden = {"api_visibility": "private", "show_progress": "hidden"}
        # A Textbox's `input` is silent when text is pasted; its `change` is not.
        changes = [self.type.input, self.outcome.input, self.words.change]
        gr.on(changes, turn(None), chosen, outputs, trigger_mode="always_last", **hidden)
        each = {**hidden, "trigger_mode": "multiple", "concurrency_limit": 1}
        self.previous.click(turn(-1), chosen, outputs, **each)
        self.next.click(turn(1), chosen, outputs, **each)
