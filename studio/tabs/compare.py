"""The Compare tab: the same facts through several methods, each from the original weights, side by side.

The comparison is a job whose parts are kept as they end: it goes on when the page is closed, and is found again.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gradio as gr

from engine.errors import EditingError
from studio.compare_job import last_comparison, run_of, start_comparison
from studio.components.compare_form import CompareForm
from studio.components.comparison_view import ComparisonView
from studio.components.fact_sheet import FactSheet, problems_html, sample_title, samples, status_html
from studio.components.markup import count, note
from studio.components.panel import panel, said
from studio.components.progress_bar import CSS as BAR_CSS
from studio.components.progress_bar import watch
from studio.components.sidebar import Sidebar
from studio.connection import StoreError
from studio.jobs import JobError, Snapshot
from studio.studio import Studio
from studio.workspace import Workspace

HINT = (
    "The facts are those of the Edit tab’s sheet. Each method edits all of them at once, from the original weights; "
    "your own edit is not touched. Unlike the Edit tab, AGRADE and MALMEN are not told here of the unrelated prompts "
    "(*Keep unrelated* is off), as the other methods are not: LS may be lower than there."
)
Updates = dict[Any, Any]


class CompareTab:
    """The tab, built inside the open layout. `facts`: the Edit tab's sheet."""

    def __init__(self, studio: Studio, session: gr.State, sidebar: Sidebar, facts: FactSheet) -> None:
        self.studio, self.session, self.sidebar, self.facts = studio, session, sidebar, facts
        with gr.Column(elem_id="compare-facts", elem_classes="block-section") as self.top:
            gr.Markdown("### Facts", elem_classes="section")
            gr.Markdown(HINT, elem_classes="hint")
            with gr.Row(elem_classes="toolbar"):
                self.samples = [
                    (path, gr.Button(sample_title(path), size="sm", elem_id=f"compare-sample-{path.stem}"))
                    for path in samples()
                ]
                self.upload = gr.UploadButton("Upload CSV, JSON or JSONL", size="sm", elem_id="compare-upload")
            self.status = panel(elem_id="compare-status")
            self.problems = panel(elem_id="compare-problems")
        with gr.Column(elem_id="compare-methods", elem_classes="block-section"):
            gr.Markdown("### Methods", elem_classes="section")
            self.form = CompareForm(studio)
            with gr.Row(elem_classes="toolbar"):
                self.start = gr.Button("Compare", variant="primary", min_width=140, elem_id="compare")
                self.cancel = gr.Button("Cancel", min_width=100, interactive=False, elem_id="compare-cancel")
            self.bar = panel(elem_id="compare-progress", css=BAR_CSS)
            self.problem = panel(elem_id="compare-problem")
        with gr.Column(elem_id="compare-result"):
            gr.Markdown("### Comparison", elem_classes="section")
            self.view = ComparisonView(studio.store, "compare")
        self.seen = gr.State(None)  # the job that is shown, and whether it had ended; None: the page is being opened
        self._wire()

    def _wire(self) -> None:
        quiet = {"show_progress": "hidden", "api_visibility": "private"}
        streams = {**quiet, "concurrency_limit": None}
        facts, form, sheet = self.facts, self.form, self.facts.sheet
        live = [self.start, self.cancel, self.bar, self.problem, self.seen, self.view.parts, *self.view.outputs]
        self.start.click(self._start, [self.session, sheet, *form.inputs], [*live, self.problems], **streams)
        self.cancel.click(self._cancel, self.session, self.cancel, **quiet)
        self.session.change(self._enter, self.session, live, **streams)
        self.session.change(self._form, self.session, form.kept, **quiet)
        # Another page may have compared meanwhile.
        back = self.sidebar.back_to(self.top.parent)
        back.then(self._look_again, [self.session, self.seen], live, **streams)
        # What stopped the last comparison was said of other facts or answers.
        gr.on([facts.rows.change, *form.changes], None, None, self.problem, js="() => ''")
        loads = [
            button.click(self._loaded(path), self.session, facts.outputs, **quiet) for path, button in self.samples
        ]
        loads.append(self.upload.upload(self._uploaded, [self.session, self.upload], facts.outputs, **quiet))
        # The layout opens a gr.Tab around this; out of its sight the sheet or the hypernetworks may have changed.
        told = [self.session, sheet, *form.inputs]
        looked = [self.status, self.problems, *form.outputs]
        changes = [self.top.parent.select, self.sidebar.loaded.change, *form.changes]
        gr.on(changes, self._look, told, looked, trigger_mode="always_last", **quiet)
        self.sidebar.loaded.change(form.show, form.which, form.method_settings.outputs, **quiet)
        for loaded in loads:  # a sheet out of sight may keep its change to itself
            loaded.then(self._look, told, looked, **quiet)

    def _look(self, session: str, sheet: Any, *answers: Any) -> Updates:
        """What there is to compare on, and what each chosen method still needs for it."""
        try:
            batch = self.facts.read(session, sheet)
        except EditingError as error:
            return {self.status: "", self.problems: note("warning", "Which facts are meant?", [str(error)])}
        told = problems_html(batch) if batch.errors else ""
        needed = self.form.look(batch, *answers, before=self.studio.workspace(session).compared)
        return {self.status: status_html(batch), self.problems: told, **needed}

    def _loaded(self, path: Path):
        return lambda session: self.facts.load(session, path)

    def _uploaded(self, session: str, path: str) -> Updates:
        return self.facts.load(session, Path(path))

    def _start(self, session: str, sheet: Any, *answers: Any) -> Iterator[Updates]:
        workspace = self.studio.workspace(session)
        try:
            batch = self.facts.read(session, sheet)
            if batch.errors:
                told = f"Nothing was compared: {count(len(batch.errors), 'problem')} to mend in the facts above."
                yield {self.problems: problems_html(batch, refused=True), self.problem: note("error", told)}
                return
            job = start_comparison(self.studio, workspace, self.form.request(batch, *answers))
        except (EditingError, StoreError, JobError) as error:
            told, going = said("error", str(error)), last_comparison(self.studio, workspace)
            if going is None or going.ended:
                yield {self.problem: told}
            else:  # begun on another page of this browser
                yield from self._follow(workspace, going.id, told)
            return
        workspace.hold(batch)
        workspace.compared = answers
        yield from self._follow(workspace, job.id)

    def _follow(self, workspace: Workspace, job: str, told: str = "") -> Iterator[Updates]:
        """Watch a job to its end, `told` meanwhile; each part is shown as it ends. It does not depend on being watched."""
        number = None
        for shot, bar in watch(self.studio.jobs, job):
            begun = run_of(shot)
            updates: Updates = {}
            if begun is not None:
                parts = len(shot.log) + shot.ended  # its own end is no part, but changes what is shown
                updates = self.view.show(begun) if number is None else self.view.grown(begun, parts)
                number = begun
            updates[self.seen] = _stamp(shot, workspace)
            if shot.ended:
                yield updates | self._ended(shot, number is not None)
                return
            # Said each time: the page may miss the first of several updates that come at once.
            cancel = gr.Button(interactive=not shot.cancelling)
            yield updates | {
                self.bar: bar, self.problem: told, self.start: gr.Button(interactive=False), self.cancel: cancel
            }  # fmt: skip

    def _ended(self, shot: Snapshot, begun: bool) -> Updates:
        failed = said("error", shot.error)
        kept = "what was finished before is kept below." if begun else "nothing had begun."
        cancelled = note("info", f"Cancelled: {kept}")
        return {
            self.bar: "",
            self.problem: {"failed": failed, "cancelled": cancelled}.get(shot.state, ""),
            self.start: gr.Button(interactive=True),
            self.cancel: gr.Button(interactive=False),
        }

    def _cancel(self, session: str) -> gr.Button:
        shot = last_comparison(self.studio, self.studio.workspace(session))
        if shot is not None and not shot.ended:
            self.studio.jobs.cancel(shot.id)
        return gr.Button(interactive=False)

    def _enter(self, session: str) -> Iterator[Updates]:
        """The workspace as it was left: its last comparison, or the one that is still going on."""
        workspace = self.studio.workspace(session)
        shot = last_comparison(self.studio, workspace)
        if shot is not None and not shot.ended:
            yield from self._follow(workspace, shot.id)
        else:
            yield self.view.show(workspace.comparison) | {self.seen: _stamp(shot, workspace)}

    def _form(self, session: str) -> Updates:
        """The form as it was when the last comparison was begun."""
        said = self.studio.workspace(session).compared
        return self.form.again(*said) if said else {self.form.methods: gr.skip()}

    def _look_again(self, session: str, seen: tuple | None) -> Iterator[Updates]:
        """What has changed since the page showed a comparison: another goes on or has ended, or its run was deleted."""
        workspace = None if seen is None else self.studio.workspace(session)
        shot = last_comparison(self.studio, workspace) if workspace else None
        if workspace is None or seen == _stamp(shot, workspace):
            yield {self.bar: gr.skip()}  # of a stream that says nothing Gradio empties the outputs
        elif shot is not None and not shot.ended:
            yield from self._follow(workspace, shot.id)
        else:
            ended = self._ended(shot, run_of(shot) is not None) if shot else {}
            yield self.view.show(workspace.comparison) | ended | {self.seen: _stamp(shot, workspace)}


def _stamp(shot: Snapshot | None, workspace: Workspace) -> tuple:
    """What a page has seen: another stamp means that the page is behind."""
    return *((shot.id, shot.ended) if shot else ()), workspace.comparison
