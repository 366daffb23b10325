"""One opened run on the page: what it was, its scores and case study or its losses and card, its files, its command.

    view = RunView(store)       # where it shall stand, inside the open layout
    view.show(12)               # updates for view.outputs: whatever is kept of run 12
    view.again(12, "done")      # the same for run 12 when it is looked at again, and was "done" before
"""

from pathlib import Path
from typing import Any

import gradio as gr

from engine.errors import EditingError
from studio.components import probe_view
from studio.components.case_table import Cases, CaseTable
from studio.components.comparison_view import ComparisonView
from studio.components.markup import note
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
LATER = "The training has gone on since this run. Its losses, scores and card are shown as they are now."


def facts_file(run: StoredRun, folder: Path) -> Path:
    """The run's facts as a file that can be edited again: CSV; where a published set contradicts itself, JSON.

    Written anew each time: one that lies there may have been changed. Raises EditingError when the disk is full.
    """
    return write_facts(run.facts, folder / f"run-{run.row['id']}-facts")


class RunView:
    """The components, and what they show of a run. `outputs` go into an event's outputs."""

    def __init__(self, store: Store) -> None:
        self.store = store
        self.head = panel(elem_id="history-head")
        with gr.Column(visible=False) as self.compared:
            self.comparison = ComparisonView(store, "history-comparison")
        with gr.Column(visible=False, elem_classes="block-section") as self.scored:
            self.cards = panel(elem_id="history-cards", css=CARDS_CSS)
            with gr.Accordion("Every metric under every protocol", open=False, elem_id="history-metrics-section"):
                self.metrics = panel(elem_id="history-metrics")
            self.cases = CaseTable("history-case-", asks=False)
        with gr.Accordion("Probes", open=False, visible=False, elem_id="history-probes-section") as self.probed:
            self.probes = panel(elem_id="history-probes", css=probe_view.CSS)
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
        self.run, self.status = gr.State(None), gr.State("")
        self.outputs = [
            self.head, self.scored, self.cards, self.metrics, *self.cases.outputs, self.probed, self.probes,
            self.trained, self.later, self.plot, self.validation, self.card, self.settings, self.files, self.command, self.facts, self.take, self.no_facts,
            self.versions, self.run, self.status, self.compared, *self.comparison.outputs,
        ]  # fmt: skip
        self.cases.wire(self.run, self._read)

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
            self.settings: shown("" if compared else settings_html(run.row)),
            self.files: shown(artifacts_html(run.artifacts)),
            self.versions: versions_html(run.row["versions"]),
            self.run: number,
            self.status: run.row["status"],
            **self._probed(run),
            **self._training(run),
            **self._repeat(run),
        }
        if scored:
            updates |= {self.cards: cards_html(run.outcome.metrics), self.metrics: metrics_html(run.outcome.metrics)}
            updates |= self.cases.show(run.outcome.instances, run.facts)
        return updates

    def again(self, number: int, status: str) -> Updates:
        """Updates that show what is new of the run since its state was `status`. Raises StoreError when it has gone.

        One that had ended keeps its page, filters and opened facts: only its files, probes or training may be others.
        """
        if status == "running":
            return self.show(number)
        run = self.store.run(number)
        return {self.files: shown(artifacts_html(run.artifacts)), **self._probed(run), **self._training(run)}

    def _probed(self, run: StoredRun) -> Updates:
        sides = [probe_view.probe_html(prompt, probe, "this edit") for prompt, probe in run.probes]
        return {
            self.probed: gr.Accordion(f"Probes ({len(sides):,})", visible=bool(sides)),
            self.probes: "".join(sides),
        }

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

    def _read(self, number: int | None) -> Cases | None:
        if number is None:
            return None
        run = self.store.run(number)
        return run.outcome.instances, run.facts
