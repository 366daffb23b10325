"""A training on the page: where it stands, its losses and scores as they come, at its end the checkpoint's card."""

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gradio as gr

from engine.checkpoint import read_card
from engine.errors import CheckpointError
from studio.components.checkpoint_card import card_html
from studio.components.panel import panel, shown
from studio.components.progress_bar import CSS as BAR_CSS
from studio.components.training_plot import curve_of, loss_figure, read_log, validation_table
from studio.components.training_state import NOTHING, head_of, state_html, steps_of
from studio.jobs import Jobs
from studio.trainings import LOG

WATCH_SECONDS = 0.5
REDRAW_SECONDS = 1.0
Updates = dict[Any, Any]


class TrainingView:
    """The components, `outputs`, and what they show of a job."""

    def __init__(self) -> None:
        self.state = panel(NOTHING, elem_id="train-state", css=BAR_CSS)
        self.plot = gr.Plot(show_label=False, visible=False, elem_id="train-plot")
        self.table = panel(elem_id="train-table", visible=False)
        self.card = panel(elem_id="train-card", visible=False)
        self.outputs = [self.state, self.plot, self.table, self.card]

    def follow(self, jobs: Jobs, id: str) -> Iterator[Updates]:
        """Updates until the job ends, the plot at most one a second. The job does not depend on being followed."""
        yield {self.plot: gr.Plot(value=None, visible=False), self.table: shown(""), self.card: shown("")}
        seen, last = -1, 0.0
        for shot in jobs.watch(id, WATCH_SECONDS):
            updates: Updates = {self.state: state_html(shot)}
            folder, steps, now = head_of(shot).get("folder"), len(steps_of(shot)), time.monotonic()
            if folder and steps != seen and (shot.ended or now - last >= REDRAW_SECONDS):
                updates |= self._losses(Path(folder) / LOG)
                seen, last = steps, now
            if shot.ended and folder:
                updates[self.card] = shown(card_of(Path(folder)))
            yield updates

    def _losses(self, log: Path) -> Updates:
        # The file, not the job's own record: it also holds the steps before a resume.
        curve = curve_of(read_log(log))
        figure = loss_figure(curve) if curve.steps else None
        return {
            self.plot: gr.Plot(value=figure, visible=figure is not None),
            self.table: shown(validation_table(curve)),
        }


def card_of(folder: Path) -> str:
    """The card of the checkpoint in `folder`; "" when there is none that can be read."""
    try:
        return card_html(read_card(folder), folder)
    except (CheckpointError, KeyError, TypeError):
        return ""
