"""What is chosen in the linked plot, on the page: the facts under a lasso with their CSV, and a point's neighbours."""

import tempfile
from pathlib import Path
from typing import Any

import gradio as gr

from studio.components import selection
from studio.components.linked_plot import LinkedPlot
from studio.components.panel import panel, shown
from studio.components.selection import COLUMNS, NEIGHBOUR_COLUMNS
from studio.picture import Picture
from studio.projection_job import Gallery

LET_GO = '<span class="quiet">Other pages’ pictures have taken this one’s place: press Draw to have it again.</span>'
Updates = dict[Any, Any]


class SelectionView:
    """The components. `gallery` knows the picture that the page shows."""

    def __init__(self, gallery: Gallery) -> None:
        self.gallery = gallery
        with gr.Column(elem_classes="block-section", visible=False) as self.column:
            gr.Markdown("### Selected points", elem_classes="section")
            with gr.Row(elem_classes="toolbar below"):
                self.summary = panel(elem_id="project-summary")
                self.download = gr.DownloadButton("CSV", size="sm", interactive=False, elem_id="project-csv")
            self.table = gr.Dataframe(
                headers=list(COLUMNS), interactive=False, visible=False, max_height=340, show_label=False,
                elem_id="project-table",
            )  # fmt: skip
            self.clicked = panel(elem_id="project-clicked", visible=False)
            self.near = gr.Dataframe(
                headers=list(NEIGHBOUR_COLUMNS), interactive=False, visible=False, max_height=340, show_label=False,
                elem_id="project-neighbours",
            )  # fmt: skip
        self.chosen = gr.State([])
        self._files = tempfile.TemporaryDirectory(prefix="agrade-selection-")

    def wire(self, plot: LinkedPlot) -> None:
        """Follow what is lassoed and clicked in the plot."""
        quiet = {"show_progress": "hidden", "api_visibility": "private"}
        # Not "always_last": it would ask for the first of two lassos again. One at a time, so that the last one stays.
        each = {**quiet, "trigger_mode": "multiple", "concurrency_limit": 1}
        shown_first = [self.summary, self.table, self.download, self.chosen]
        chosen = plot.select(self._selected, None, shown_first, **each)
        # The button gives out the file that it has when it is pressed.
        chosen.then(self._written, self.chosen, self.download, trigger_mode="always_last", **quiet)
        plot.click(self._clicked, None, [self.clicked, self.near], **each)

    @property
    def outputs(self) -> list[Any]:
        """Every component that `fresh` and `hidden` may change."""
        return [self.column, self.summary, self.table, self.download, self.chosen, self.clicked, self.near]

    def fresh(self, picture: Picture) -> Updates:
        """For a picture with other points: nothing is chosen."""
        nobody_near = {self.clicked: shown(""), self.near: gr.Dataframe(visible=False)}
        return {self.column: gr.Column(visible=True), **self._none(picture), **nobody_near}

    def hidden(self) -> Updates:
        """Without a picture."""
        return {self.column: gr.Column(visible=False)}

    def _none(self, picture: Picture) -> Updates:
        return {
            self.chosen: [],
            self.summary: selection.summary_html(picture, []),
            self.table: gr.Dataframe(visible=False),
            self.download: gr.DownloadButton(interactive=False),
        }

    def _selected(self, request: gr.Request, event: gr.SelectData) -> Updates:
        picture = self.gallery.picture(request.session_hash)
        if picture is None:
            return {self.chosen: [], self.summary: LET_GO}
        chosen = selection.read_selection(picture, event.value)
        if not chosen:
            return self._none(picture)
        rows = selection.selected_rows(picture, chosen, selection.MOST_SHOWN)
        return {
            self.chosen: chosen,
            self.summary: selection.summary_html(picture, chosen),
            self.table: gr.Dataframe(selection.as_table(picture, COLUMNS, rows), visible=True),
            self.download: gr.DownloadButton(interactive=False),
        }

    def _clicked(self, request: gr.Request, event: gr.EventData) -> Updates:
        picture = self.gallery.picture(request.session_hash)
        if picture is None:
            return {self.clicked: shown(LET_GO)}
        found = selection.read_selection(picture, [{"cloud": event.cloud, "rows": [event.row]}])
        if not found:
            return {self.near: gr.skip()}
        cloud, row = found[0][0], found[0][1][0]
        near = selection.neighbour_rows(picture, cloud, row)
        return {
            self.clicked: shown(selection.neighbours_title(picture, cloud, row)),
            self.near: gr.Dataframe(selection.as_table(picture, NEIGHBOUR_COLUMNS, near), visible=True),
        }

    def _written(self, request: gr.Request, chosen: list) -> gr.DownloadButton:
        """The button with the CSV of what is chosen."""
        picture = self.gallery.picture(request.session_hash)
        if picture is None or not chosen:
            return gr.DownloadButton(interactive=False)
        path = Path(self._files.name) / request.session_hash / f"run-{picture.sources[0].number}-selection.csv"
        return gr.DownloadButton(value=str(selection.write_selection(picture, chosen, path)), interactive=True)
