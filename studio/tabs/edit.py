"""The Edit tab: facts in, an edit by a method, what changed and what did not, and any prompt asked before and after.

The edit is a job: it goes on when the page is closed, and the page finds it again when it is opened.
"""

from collections.abc import Iterator
from typing import Any

import gradio as gr

from engine.errors import EditingError
from studio.components import probe_view
from studio.components.edit_settings import FIRST, EditSettings
from studio.components.fact_sheet import FactSheet, problems_html
from studio.components.markup import count, empty, note
from studio.components.panel import panel, said
from studio.components.progress_bar import CSS as BAR_CSS
from studio.components.progress_bar import watch
from studio.components.results import Results
from studio.components.sidebar import Sidebar
from studio.connection import StoreError
from studio.edit_job import last_edit, show_current, start_edit
from studio.jobs import JobError
from studio.probing import ask
from studio.studio import Studio
from studio.workspace import Workspace

MODEL_QUEUE = "model"
NO_PROBE = empty("Ask the model anything.", "Type a prompt, or click one in the case study; both answers appear here.")
TO_RESULT = """
() => { if (!document.querySelector('#edit-problem .note'))
  document.getElementById('edit-result').scrollIntoView({behavior: 'smooth', block: 'start'}); }
"""
# In the page, so that it is asked of what is chosen at that moment; undefined: it stays.
LAST_APPLIED = f"(now, applied) => applied && now === '{FIRST}' ? applied : undefined"
TO_PROBE = "() => document.getElementById('edit-probe').scrollIntoView({behavior: 'smooth', block: 'nearest'})"
Updates = dict[Any, Any]


class EditTab:
    """The tab, built inside the open layout. `session` holds the id of the page's workspace."""

    def __init__(self, studio: Studio, session: gr.State, sidebar: Sidebar) -> None:
        self.studio, self.session, self.sidebar = studio, session, sidebar
        with gr.Column(elem_id="edit-facts", elem_classes="block-section") as self.top:
            gr.Markdown("### Facts", elem_classes="section")
            self.facts = FactSheet(studio, session)
        with gr.Column(elem_id="edit-method", elem_classes="block-section"):
            gr.Markdown("### Method", elem_classes="section")
            self.settings = EditSettings(studio)
            with gr.Row(elem_classes="toolbar"):
                self.apply = gr.Button("Apply", variant="primary", min_width=140, elem_id="apply")
                self.cancel = gr.Button("Cancel", min_width=100, interactive=False, elem_id="cancel")
            self.bar = panel(elem_id="edit-progress", css=BAR_CSS)
            self.problem = panel(elem_id="edit-problem")
        with gr.Column(elem_id="edit-result", elem_classes="block-section"):
            gr.Markdown("### Result", elem_classes="section")
            self.results = Results(studio, session)
        with gr.Column(elem_id="edit-probe", elem_classes="block-section"):
            gr.Markdown("### Probe", elem_classes="section")
            with gr.Row(equal_height=True, elem_classes="toolbar"):
                self.prompt = gr.Textbox(
                    show_label=False, label="Prompt", max_lines=4, scale=6, elem_id="probe-prompt",
                    placeholder="A sentence to go on, or a question",
                )  # fmt: skip
                self.ask = gr.Button("Probe", min_width=110, scale=1, elem_id="probe")
            self.answer = panel(NO_PROBE, elem_id="probe-answer", css=probe_view.CSS)
        self.followed = gr.State("")  # the job whose progress is shown; "" for none
        self.applied = gr.Textbox(visible=False)  # the method that was applied before the page was opened; "" for none
        self._wire()

    def _wire(self) -> None:
        quiet = {"show_progress": "hidden", "api_visibility": "private"}
        streams = {**quiet, "concurrency_limit": None}
        facts, settings, results, sidebar = self.facts, self.settings, self.results, self.sidebar
        run = [self.apply, self.cancel, self.bar, self.problem, facts.problems, self.followed]
        ended = [self.apply, self.cancel, self.bar, self.problem, *sidebar.weights, *results.outputs, self.answer]

        outcome = [self.session, self.followed]
        # Progress goes to few components: the page looks at every output again at every update.
        applied = self.apply.click(self._apply, [self.session, facts.sheet, *settings.inputs], run, **streams)
        applied.then(self._ended, outcome, ended, **quiet).then(None, None, None, js=TO_RESULT)
        self.cancel.click(self._cancel, self.session, self.cancel, **quiet)
        # What stopped the last edit was said of other facts or settings.
        gr.on([facts.rows.change, *settings.touches], None, None, self.problem, js="() => ''")
        # The session's id comes from the browser when the page is opened, and again when it is reloaded.
        state = [*sidebar.weights, *results.outputs]
        entry = [*state, *facts.outputs, facts.opened, self.apply, self.problem, self.followed, self.applied]
        entered = self.session.change(self._enter, self.session, entry, **quiet)
        watched = entered.then(self._follow, self.followed, [self.bar, self.apply, self.cancel], **streams)
        watched.then(self._ended, outcome, ended, **quiet)
        renewed = sidebar.loaded.change(self._renew, self.session, [*state, self.answer], **quiet)
        kept = entered.then(None, [settings.method, self.applied], settings.method, js=LAST_APPLIED)
        # Asked for afterwards: a method chosen meanwhile would be shown with the settings of the one before.
        kept.then(self._settings, [self.session, settings.method], settings.kept, **quiet)
        renewed.then(settings.show, settings.method, settings.outputs, **quiet)
        settings.method.input(
            settings.show, settings.method, settings.outputs, trigger_mode="always_last", **quiet
        )
        # The layout opens a gr.Tab around this; out of its sight a training may have made another hypernetwork.
        chosen = [settings.method, settings.hypernet]
        self.top.parent.select(settings.show, chosen, settings.outputs, **quiet)
        # Of a long file the sheet shows the first rows, which may be those of the file before; its status tells.
        costs = [facts.rows.change, facts.status.change, sidebar.loaded.change, *settings.changes]
        asked, told = [self.session, facts.rows, *settings.inputs], [settings.needs, settings.estimate]
        # What was probed before was answered by other weights.
        weights = [*sidebar.weights, *results.outputs, self.problem, self.answer]
        sidebar.returned.click(self._returned, [self.session, sidebar.stamp], weights, **quiet)
        held = [self.session, facts.rows, facts.opened]
        sidebar.returned.click(facts.come_back, held, facts.outputs, **quiet)
        each = {**quiet, "trigger_mode": "multiple", "concurrency_limit": 1}
        for button, step in ((sidebar.undo, "undo"), (sidebar.redo, "redo"), (sidebar.reset, "reset")):
            button.click(self._stepped(step), self.session, weights, **each)
        model = {"concurrency_id": MODEL_QUEUE, "concurrency_limit": 1, "api_visibility": "private"}
        last = {"trigger_mode": "always_last", "show_progress": "hidden"}
        gr.on(costs, self._forecast, asked, told, **last, **model)
        gr.on([self.ask.click, self.prompt.submit], self._probe, [self.session, self.prompt], self.answer, **model)
        results.cases.rows.select(None, None, None, js=TO_PROBE)
        clicked = results.cases.rows.select(self._probe_clicked, self.session, [self.prompt, self.answer], **model)
        clicked.then(None, None, None, js=TO_PROBE)

    def _apply(self, session: str, sheet: Any, *answers: Any) -> Iterator[Updates]:
        workspace = self.studio.workspace(session)
        try:
            batch = self.facts.read(session, sheet)
            if batch.errors:
                told = f"Nothing was edited: {count(len(batch.errors), 'problem')} to mend in the facts above."
                shown = {self.facts.problems: problems_html(batch, refused=True), self.problem: note("error", told)}
                yield shown | {self.followed: ""}
                return
            job = start_edit(self.studio, workspace, self.settings.request(batch, *answers))
        except (EditingError, StoreError, JobError) as error:
            # Another page of this browser may have an edit going on: it is followed here too, and can be cancelled.
            going = last_edit(self.studio, workspace)
            followed = going.id if going is not None and not going.ended else ""
            yield {self.problem: said("error", str(error)), self.followed: followed}
            yield from self._follow(followed)
            return
        workspace.hold(batch)
        workspace.asked = answers
        yield {self.problem: "", self.apply: gr.Button(interactive=False), self.followed: job.id}
        yield from self._follow(job.id)

    def _follow(self, job: str) -> Iterator[Updates]:
        """Watch a job to its end; it does not depend on being watched."""
        for shot, bar in watch(self.studio.jobs, job) if job else ():
            if not shot.ended:
                # Said each time: the page may miss the first of several updates that come at once.
                cancel = gr.Button(interactive=not shot.cancelling)
                yield {self.bar: bar, self.apply: gr.Button(interactive=False), self.cancel: cancel}
        yield {self.bar: ""}  # after a stream that said nothing, Gradio empties the outputs: no word on the button

    def _ended(self, session: str, job: str) -> Updates:
        """The result of the job that was followed, or why there is none."""
        if not job:
            return {self.bar: ""}
        workspace, shot = self.studio.workspace(session), self.studio.jobs.snapshot(job)
        if not shot.ended:  # Apply was pressed while the page was still being opened: its own events follow the job
            return gr.skip()
        failed = note("error", "Nothing was edited.", shot.error.splitlines())
        cancelled = note("info", "Cancelled: nothing was edited, the weights are as they were before.")
        return {
            self.bar: "",
            self.problem: {"failed": failed, "cancelled": cancelled}.get(shot.state, ""),
            self.apply: gr.Button(interactive=True),
            self.cancel: gr.Button(interactive=False),
            **self._state(workspace),
            **({self.answer: NO_PROBE} if shot.state == "done" else {}),
        }

    def _state(self, workspace: Workspace) -> Updates:
        return self.sidebar.show_weights(workspace) | self.results.show(workspace)

    def _current(self, workspace: Workspace) -> Updates:
        """The same, with the result of the edit that is on, read again where it is another or was let go."""
        try:
            show_current(self.studio, workspace)
        except (EditingError, StoreError) as error:
            return self._state(workspace) | {self.problem: said("error", str(error))}
        return self._state(workspace)

    def _cancel(self, session: str) -> gr.Button:
        shot = last_edit(self.studio, self.studio.workspace(session))
        if shot is not None and not shot.ended:
            self.studio.jobs.cancel(shot.id)
        return gr.Button(interactive=False)

    def _enter(self, session: str) -> Updates:
        """The workspace as it was left: its facts, its result, and the edit that is still going on or just failed."""
        workspace = self.studio.workspace(session)
        facts = self.facts.kept(session)
        shot = last_edit(self.studio, workspace)
        going = shot is not None and (not shot.ended or shot.state == "failed")
        followed = {self.apply: gr.Button(interactive=False), self.followed: shot.id} if going else {self.followed: ""}
        return facts | self._current(workspace) | followed | {self.applied: workspace.asked[0] if workspace.asked else ""}

    def _settings(self, session: str, method: str) -> Updates:
        """The method's settings, as they were when it was the one last applied."""
        asked = self.studio.workspace(session).asked
        return self.settings.again(*asked) if asked and asked[0] == method else self.settings.show(method)

    def _renew(self, session: str) -> Updates:
        """Another model is there: the workspace's edits are gone."""
        state = self._state(self.studio.workspace(session)) if session else {}
        return state | {self.answer: NO_PROBE}

    def _returned(self, session: str, stamp: tuple | None) -> Updates:
        """What another page of this browser did meanwhile; the page stays as it is when that is nothing."""
        if stamp is None:  # it is only being opened
            return gr.skip()
        workspace = self.studio.workspace(session)
        if stamp == workspace.stamp():
            return gr.skip()
        return self._current(workspace) | {self.answer: NO_PROBE}

    def _forecast(self, session: str, sheet: Any, *answers: Any) -> tuple[str, str]:
        try:
            batch = self.facts.read(session, sheet)
        except EditingError:  # the sheet says so itself
            return "", ""
        return self.settings.forecast(batch, *answers)

    def _stepped(self, step: str):
        """A handler that moves through the workspace's edits: undo, redo or reset."""

        def move(session: str) -> Updates:
            workspace = self.studio.workspace(session)
            try:
                getattr(workspace, step)()
            except EditingError as error:
                return self._state(workspace) | {self.problem: said("error", str(error))}
            return {self.problem: ""} | self._current(workspace) | {self.answer: NO_PROBE}

        return move

    def _probe(self, session: str, prompt: str) -> str:
        workspace = self.studio.workspace(session)
        try:
            return probe_view.probe_html(prompt, ask(self.studio, workspace, prompt), workspace.badge())
        except (EditingError, StoreError) as error:
            return said("error", str(error))

    def _probe_clicked(self, session: str, event: gr.SelectData) -> tuple[str, str]:
        return event.value, self._probe(session, event.value)
