"""The Projections tab: what runs computed, in two dimensions, before and after Eq. 4; hovered, clicked, lassoed, saved.

A picture is a job: PCA is there at once, t-SNE or UMAP follows, and either can be cancelled or replaced meanwhile.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gradio as gr

from engine.errors import EditingError
from studio.components import numbers_table
from studio.components.linked_plot import LinkedPlot
from studio.components.markup import empty, note, text
from studio.components.panel import panel, said, shown
from studio.components.progress_bar import CSS as BAR_CSS
from studio.components.progress_bar import watch
from studio.components.projection_choice import ProjectionChoice
from studio.components.projection_figure import MOST_ARROWS, projection_figure
from studio.components.selection_view import SelectionView
from studio.connection import StoreError
from studio.jobs import Job, JobError, Snapshot
from studio.picture import Picture, caption, pairs
from studio.picture_files import Saved
from studio.projection_job import (
    Gallery,
    cancel_projection,
    last_projection,
    start_figure3,
    start_picture,
    start_saving,
    start_tracing,
)
from studio.records import await_record, can_trace_again, find_record, open_record
from studio.studio import Studio

INTRODUCTION = (
    "Each point is a row of a matrix that an edit computed: a hidden unit of a module (features), or an answer "
    "position of a fact (tokens). Eq. 4 takes from each module's gradient what the previous module's already does; "
    "arrows show where it moved the rows."
)
NO_RUN = empty("Nothing to draw yet.", "Apply an edit in the Edit tab, by AGRADE, MALMEN or UltraEdit, or train.")
READING = empty("One moment.", "What the run computed is being read.")
REFUSALS = (EditingError, StoreError, JobError)
Updates = dict[Any, Any]


def build(studio: Studio, session: gr.State) -> None:
    """Build the tab inside the open layout. `session` holds the id of the page's workspace."""
    ProjectionsTab(studio, session)


class ProjectionsTab:
    """The form, the plot, what is under a lasso, the numbers and the files."""

    def __init__(self, studio: Studio, session: gr.State) -> None:
        self.studio, self.session, self.gallery = studio, session, Gallery()
        with gr.Column(elem_classes="block-section") as self.top:
            gr.Markdown(INTRODUCTION, elem_classes="hint")
            self.choice = ProjectionChoice(studio)
            with gr.Row(elem_classes="toolbar"):
                self.draw = gr.Button("Draw", variant="primary", min_width=110, elem_id="project-draw")
                self.cancel = gr.Button("Cancel", min_width=90, interactive=False, elem_id="project-cancel")
                self.figure3 = gr.Button("Figure 3", min_width=100, elem_id="project-figure3")
                self.save = gr.Button("Save this picture", min_width=140, elem_id="project-save")
                self.trace = gr.Button("Trace again", min_width=110, visible=False, elem_id="project-trace")
            self.bar = panel(elem_id="project-progress", css=BAR_CSS)
            self.problem = panel(elem_id="project-problem", visible=False)
            self.files = gr.File(
                label="Ready to download", file_count="multiple", interactive=False, visible=False,
                elem_id="project-files", elem_classes="offered",
            )  # fmt: skip
        with gr.Column(elem_classes="block-section", elem_id="project-picture"):
            self.plot = LinkedPlot(elem_id="project-plot")
            self.caption = panel(NO_RUN, elem_id="project-caption")
        self.selection = SelectionView(self.gallery)
        with gr.Column(elem_classes="block-section", visible=False) as self.beneath:
            gr.Markdown("### Numbers, from the full matrices", elem_classes="section")
            self.numbers = panel(elem_id="project-numbers", css=numbers_table.CSS)
        self._wire()

    def _wire(self) -> None:
        quiet = {"show_progress": "hidden", "api_visibility": "private"}
        streams = {**quiet, "concurrency_limit": None, "trigger_mode": "multiple"}
        last = {**quiet, "trigger_mode": "always_last"}
        form, look = self.choice, [self.choice.colour, self.choice.arrows]
        asked = [*form.inputs, *look]
        under = [self.selection.column, self.beneath]
        offered = [*form.outputs, self.problem, self.trace, self.plot, self.caption, self.files, *under]
        drawn = [
            self.plot, self.caption, self.bar, self.problem, self.draw, self.cancel, self.figure3, self.save,
            self.beneath, self.numbers, self.files, *self.selection.outputs,
        ]  # fmt: skip
        # The layout opens a gr.Tab around this; out of its sight an edit may have made another run.
        entered = self.top.parent.select(self._enter, [self.session, form.run, form.family], offered, **quiet)
        caught_up = entered.success(self._catch_up, [form.run, form.family, form.kinds], offered, **quiet)
        caught_up.success(self._draw_new, asked, drawn, **streams)
        for changed in (form.run, form.family):
            offers = changed.input(self._offer, [form.run, form.family], offered, **last)
            offers.success(self._draw_offered, asked, drawn, **streams)
        changes = [form.method.input, form.modules.input, form.kinds.input, form.beside.input, self.draw.click]
        gr.on([*changes, form.sample.submit], self._draw, asked, drawn, **streams)
        gr.on([form.colour.input, form.arrows.input], self._recolour, look, self.plot, **last)
        self.cancel.click(self._cancel, None, self.cancel, **quiet)
        made = [self.bar, self.problem, self.files, self.draw, self.cancel, self.figure3, self.save]
        self.figure3.click(self._figure3, form.inputs, made, **streams)
        self.save.click(self._save, look, made, **streams)
        traced = self.trace.click(self._trace, form.run, [*made, self.trace], **streams)
        again = traced.success(self._offer, [form.run, form.family], offered, **quiet)
        again.success(self._draw_offered, asked, drawn, **streams)
        self.selection.wire(self.plot)

    def _enter(self, session: str, run: int | None, family: str) -> Iterator[Updates]:
        """The runs there are now; the choice is made anew only for another run than before."""
        runs, chosen = self.choice.runs(self.studio.workspace(session), run)
        updates: Updates = {self.choice.run: gr.Dropdown(runs, value=chosen)}
        if chosen is None:
            yield updates | self._blank(NO_RUN)
        elif chosen == run:
            yield updates
        else:
            yield updates | {self.caption: READING}  # its record may still be being written
            # While the form is being mounted, an update that names no run may put back that none was chosen.
            yield updates | self._offer(chosen, family)

    def _catch_up(self, run: int | None, family: str, kinds: list[str]) -> Updates:
        """The other family's matrices, where it was chosen while the tab was being entered: they may have come first."""
        return self._offer(run, family) if run is not None and self.choice.overtaken(family, kinds) else gr.skip()

    def _offer(self, run: int | None, family: str) -> Updates:
        """What a run offers; why there is nothing to draw."""
        if run is None:
            return self._blank(NO_RUN)
        if not await_record(self.studio, run):
            told = f"What run {run} computed is still being kept. Choose the run again in a moment."
            return self._blank("") | {self.problem: shown(said("info", told))}
        try:
            stored = self.studio.store.run(run)
            offers = self.choice.show(open_record(stored), run, family, self.studio.store)
        except StoreError as error:
            return self._blank("") | {self.problem: shown(said("error", str(error)))}
        except EditingError as error:
            again = find_record(stored) is None and can_trace_again(stored)
            told = said("info" if again else "error", str(error))
            return self._blank("") | {self.problem: shown(told), self.trace: gr.Button(visible=again)}
        return offers | {self.problem: shown(""), self.trace: gr.Button(visible=False)}

    def _blank(self, told: str) -> Updates:
        hidden = {self.beneath: gr.Column(visible=False), **self.selection.hidden()}
        trace = gr.Button(visible=False)
        return {self.plot: "", self.caption: told, self.trace: trace, **self._no_files(), **hidden}

    def _no_files(self) -> Updates:
        """Nothing offered: the files were those of another picture."""
        return {self.files: gr.File(None, visible=False)}

    def _draw_new(self, request: gr.Request, run: int | None, *answers: Any) -> Iterator[Updates]:
        """Coming back to the tab, the picture that is there stays."""
        picture = self.gallery.picture(request.session_hash)
        if picture is None or run != picture.sources[0].number:
            yield from self._draw_offered(request, run, *answers)
        else:
            yield self._as_it_was()

    def _draw_offered(self, request: gr.Request, run: int | None, *answers: Any) -> Iterator[Updates]:
        """Draw what was just offered; where there is nothing, or no such run any more, why has been said."""
        try:
            there = run is not None and find_record(self.studio.store.run(run)) is not None
        except StoreError:
            there = False
        if there:
            yield from self._draw(request, run, *answers)
        else:
            yield self._as_it_was()

    def _draw(self, request: gr.Request, *answers: Any) -> Iterator[Updates]:
        page = request.session_hash
        *form, colour, arrows = answers
        if self.choice.overtaken(form[1], form[4]):
            yield self._as_it_was()
            return
        try:
            run, choice = self.choice.read(*form)
            job = start_picture(self.studio, page, self.gallery, run, choice)
        except REFUSALS as error:
            yield {self.problem: shown(said("error", str(error)))}
            return
        yield self._busy(True) | {self.problem: shown("")} | self._no_files()
        seen = 0
        for shot, bar in watch(self.studio.jobs, job.id):
            updates: Updates = {} if shot.ended else self._going(shot, bar)
            if shot.ended and self._replaced(page, job):
                return
            if len(shot.log) > seen:
                updates |= self._shown(page, colour, arrows, fresh=seen == 0)
                seen = len(shot.log)
            if shot.ended:
                updates |= self._ended(shot.state, shot.error, seen)
            yield updates

    def _as_it_was(self) -> Updates:
        """No change: of a generator that yields nothing Gradio blanks all outputs, and {} it does not take."""
        return {self.bar: gr.skip()}

    def _replaced(self, page: str, job: Job) -> bool:
        """Whether another picture of the page has taken the job's place meanwhile."""
        last = last_projection(self.studio, page)
        return last is not None and last.id != job.id

    def _ended(self, state: str, error: str, drawn: int) -> Updates:
        told = said("error", error)
        if state == "cancelled":
            told = note("info", "Cancelled: the picture stays as it was." if not drawn else "Cancelled: PCA stays.")
        return self._busy(False) | {self.bar: "", self.problem: shown(told)}

    def _going(self, shot: Snapshot, bar: str) -> Updates:
        """The bar, and the buttons each time: the page may miss the first of several updates that come at once."""
        return self._busy(True) | {self.bar: bar, self.cancel: gr.Button(interactive=not shot.cancelling)}

    def _busy(self, busy: bool) -> Updates:
        return {
            self.cancel: gr.Button(interactive=busy),
            self.figure3: gr.Button(interactive=not busy),
            self.save: gr.Button(interactive=not busy),
        }

    def _shown(self, page: str, colour: str, arrows: bool, fresh: bool) -> Updates:
        """The picture on show, its caption and numbers; `fresh`: the points are others than before."""
        picture = self.gallery.picture(page)
        if picture is None:
            return {}
        updates: Updates = {
            self.plot: LinkedPlot.value_of(projection_figure(picture, self.choice.look(colour, arrows))),
            self.caption: _caption(picture),
        }
        if fresh:
            cards = [(f"Run {one.number}", one.record.card) for one in picture.sources]
            numbers = numbers_table.numbers_html(cards)
            updates |= {
                self.beneath: gr.Column(visible=bool(numbers)),
                self.numbers: numbers,
                **self.selection.fresh(picture),
            }
        return updates

    def _recolour(self, request: gr.Request, colour: str, arrows: bool) -> str | dict:
        picture = self.gallery.picture(request.session_hash)
        if picture is None:  # the next picture has the colours
            return gr.skip()
        return LinkedPlot.value_of(projection_figure(picture, self.choice.look(colour, arrows)))

    def _cancel(self, request: gr.Request) -> gr.Button:
        cancel_projection(self.studio, request.session_hash)
        return gr.Button(interactive=False)

    def _figure3(self, request: gr.Request, *form: Any) -> Iterator[Updates]:
        try:
            run, choice = self.choice.read(*form)
            module = choice.modules[-1] if choice.modules else None
            job = start_figure3(self.studio, request.session_hash, run, choice.settings, module)
        except REFUSALS as error:
            yield {self.problem: shown(said("error", str(error)))}
            return
        told = f"Figure 3 with its caption, and its points, of run {run}."
        yield from self._follow_files(request.session_hash, job, told)

    def _save(self, request: gr.Request, colour: str, arrows: bool) -> Iterator[Updates]:
        picture = self.gallery.picture(request.session_hash)
        if picture is None:
            yield {self.problem: shown(said("error", "There is no picture to save: draw one first."))}
            return
        try:
            look = self.choice.look(colour, arrows)
            job = start_saving(self.studio, request.session_hash, picture, look)
        except REFUSALS as error:
            yield {self.problem: shown(said("error", str(error)))}
            return
        told = f"The picture as it is shown, and its points, of run {picture.sources[0].number}."
        yield from self._follow_files(request.session_hash, job, told)

    def _follow_files(self, page: str, job: Job, title: str) -> Iterator[Updates]:
        yield self._busy(True) | {self.problem: shown("")} | self._no_files()
        for shot, bar in watch(self.studio.jobs, job.id):
            if not shot.ended:
                yield self._going(shot, bar)
        if self._replaced(page, job):
            return
        done = self._busy(False) | {self.bar: ""}
        if shot.state != "done":
            told = said("error", shot.error) or note("info", "Cancelled: no file was written.")
            yield done | {self.problem: shown(told)}
            return
        saved: Saved = shot.result
        paths = [str(saved.paths[kind]) for kind in ("png", "svg", "html", "csv") if kind in saved.paths]
        told = note("done", title, [*saved.notes, f"The files also lie in {Path(paths[0]).parent}"])
        yield done | {self.problem: shown(told), self.files: gr.File(paths, visible=True)}

    def _trace(self, request: gr.Request, run: int | None) -> Iterator[Updates]:
        try:
            if run is None:
                raise EditingError("There is no run to trace: choose one.")
            job = start_tracing(self.studio, request.session_hash, run)
        except REFUSALS as error:
            yield {self.problem: shown(said("error", str(error)))}
            return
        yield self._busy(True) | {self.trace: gr.Button(interactive=False)}
        for shot, bar in watch(self.studio.jobs, job.id):
            if not shot.ended:
                yield self._going(shot, bar)
        ended = self._ended(shot.state, shot.error, drawn=0)
        yield ended | {self.trace: gr.Button(interactive=True)}


def _caption(picture: Picture) -> str:
    """The settings, and what a reader should know."""
    notes = "".join(f'<p class="quiet">{text(line)}</p>' for line in picture.notes)
    moved = [panel.clouds[after] for panel in picture.panels for _, after in pairs(picture, panel)]
    if any(len(picture.clouds[index].rows) > MOST_ARROWS for index in moved):
        notes += f'<p class="quiet">Arrows are drawn for {MOST_ARROWS} rows of each matrix.</p>'
    pending = "" if picture.final else '<p class="quiet">PCA for now; the method chosen follows.</p>'
    return f'{pending}<p class="quiet">{picture.count:,} points: {text(caption(picture))}</p>{notes}'
