"""The Train tab: a hypernetwork from facts, with live losses, and where the checkpoint went.

The training is a job: it goes on when the page is closed, and every page that is opened shows it.
"""

from collections.abc import Callable, Iterator
from dataclasses import fields
from pathlib import Path
from typing import Any

import gradio as gr

from engine.checkpoint import read_card
from engine.errors import EditingError
from engine.train_settings import METHODS, TrainSettings
from studio.api import await_model, check_kinds, uploaded_path
from studio.components.panel import panel, said, shown
from studio.components.settings_form import value, whole
from studio.components.sidebar import Sidebar
from studio.components.training_form import NEW, TrainingForm, read_files
from studio.components.training_view import TrainingView
from studio.connection import StoreError
from studio.jobs import Job, JobError, Snapshot
from studio.studio import Studio
from studio.training_job import last_training, new_request, resume_request, start_training
from studio.trainings import Resumable, resumable

INTRODUCTION = (
    "A hypernetwork learns from many facts how to edit this model; with it, any facts are then edited in seconds. "
    "Good training facts have equivalent prompts (the edit shall carry over) and unrelated prompts with their "
    "answers (these shall stay). On a processor the 400 steps of the default take hours, on a graphics card minutes; "
    "after two steps the time left is shown. Edits of this model wait meanwhile. A training can be aborted at any step, "
    "used as it is then, and resumed."
)
UNTIL = "Train until step"
REFUSALS = (EditingError, StoreError, JobError)
Updates = dict[Any, Any]


def build(studio: Studio, session: gr.State, sidebar: Sidebar) -> None:
    """Build the tab inside the open layout. `session` holds the id of the page's workspace."""
    TrainTab(studio, session, sidebar)


class TrainTab:
    """The form, the training beside it, and what can go on later."""

    def __init__(self, studio: Studio, session: gr.State, sidebar: Sidebar) -> None:
        self.studio, self.session, self.sidebar = studio, session, sidebar
        self.top = gr.Markdown(INTRODUCTION, elem_classes="hint")
        with gr.Row(equal_height=False):
            with gr.Column(scale=5, min_width=340):
                self.form = TrainingForm(studio.local)
            with gr.Column(scale=6, min_width=340):
                with gr.Column(elem_classes="block-section", elem_id="train-run"):
                    gr.Markdown("### Training", elem_classes="section")
                    with gr.Row(elem_classes="toolbar"):
                        self.start = gr.Button(
                            "Start training", variant="primary", min_width=150, elem_id="train-start"
                        )
                        self.abort = gr.Button("Abort", min_width=100, interactive=False, elem_id="train-abort")
                    self.problem = panel(elem_id="train-problem", visible=False)
                    self.view = TrainingView()
                with gr.Accordion("Resume a training", open=False, elem_id="train-resume-section") as self.section:
                    self.choice = gr.Dropdown(
                        choices=[], label="Training", elem_id="train-resume-choice",
                        info="those of this model that were saved at least once",
                    )  # fmt: skip
                    self.until = gr.Number(label=UNTIL, elem_id="train-resume-steps")
                    with gr.Row(elem_classes="toolbar"):
                        self.resume = gr.Button("Resume", min_width=120, elem_id="train-resume")
        self.seen = gr.State(None)  # the job that is shown, and whether it had ended; None: the page is being opened
        self._wire()

    def _wire(self) -> None:
        quiet = {"show_progress": "hidden", "api_visibility": "private"}
        streams = {**quiet, "concurrency_limit": None}
        live = [self.start, self.abort, self.resume, self.choice, self.problem, self.seen, *self.view.outputs]
        self.start.click(self._start, [self.session, *self.form.inputs], live, **streams)
        self.resume.click(self._resume, [self.session, self.choice, self.until], live, **streams)
        self.abort.click(self._abort, None, self.abort, **quiet)
        gr.on(fn=self._attach, outputs=live, **streams)
        # Another page may have trained meanwhile.
        back = self.sidebar.back_to(self.top.parent)
        back.then(self._look_again, self.seen, live, **streams)
        # What stopped the last training was said of other answers. Not a file's change: its summary would come first.
        answers = [
            event for one in self.form.inputs
            for event in ((one.upload, one.clear, one.delete) if isinstance(one, gr.File) else (one.change,))
        ]  # fmt: skip
        gr.on([*answers, self.choice.input, self.until.input], None, None, self.problem, js="() => ''")
        self.section.expand(lambda: gr.Dropdown(choices=self._choices()), None, self.choice, **quiet)
        self.choice.change(self._suggested_steps, self.choice, self.until, **quiet)
        begun = [self.problem, self.form.method, *self.form.controls.values()]
        self.form.start.focus(self._starts, None, self.form.start, **quiet)
        self.form.start.input(self._begin_with, self.form.start, begun, trigger_mode="always_last", **quiet)
        gr.api(train_endpoint(self.studio), api_name="train", concurrency_limit=None)

    def _start(self, session: str, *answers: Any) -> Iterator[Updates]:
        try:
            form = self.form.read(*answers)
            request = new_request(
                self.studio, form.batches, form.valid, form.held_out, form.settings, form.name, form.start
            )
            job = start_training(self.studio, self.studio.workspace(session), request)
        except REFUSALS as error:
            yield self._refused(error)
            return
        yield from self._follow(job)

    def _resume(self, session: str, name: str | None, steps: float | None) -> Iterator[Updates]:
        try:
            request = resume_request(self.studio, name or "", whole(UNTIL, steps or 0))
            job = start_training(self.studio, self.studio.workspace(session), request)
        except REFUSALS as error:
            yield self._refused(error)
            return
        yield from self._follow(job)

    def _attach(self) -> Iterator[Updates]:
        """A page that is opened finds the training that goes on, or the last one."""
        last = last_training(self.studio)
        yield {self.choice: gr.Dropdown(choices=self._choices()), self.seen: ()}
        if last is not None:
            yield from self._follow(last)

    def _look_again(self, seen: tuple | None) -> Iterator[Updates]:
        """The training that goes on or has ended since the page showed one; nothing new leaves it as it is."""
        last = last_training(self.studio)
        if seen is None or last is None or seen == (last.id, last.ended):
            yield {self.choice: gr.skip()}  # of a stream that says nothing Gradio empties the outputs
        else:
            yield from self._follow(last)

    def _follow(self, job: Job | Snapshot) -> Iterator[Updates]:
        going = {self.start: gr.Button(interactive=False), self.resume: gr.Button(interactive=False)}
        begun = {self.problem: shown(""), self.seen: (job.id, False)}
        yield going | begun | {self.abort: gr.Button("Abort", interactive=True)}
        for updates in self.view.follow(self.studio.jobs, job.id):
            # Said each time: the page may miss the first of several updates that come at once.
            abort = gr.Button(interactive=not self.studio.jobs.snapshot(job.id).cancelling)
            yield updates | going | {self.abort: abort, self.seen: (job.id, False)}
        yield {
            self.seen: (job.id, True),
            self.start: gr.Button(interactive=True),
            self.resume: gr.Button(interactive=True),
            self.abort: gr.Button("Abort", interactive=False),
            self.choice: gr.Dropdown(choices=self._choices()),
        }

    def _starts(self) -> gr.Dropdown:
        """The checkpoints of the model that is loaded now."""
        return gr.Dropdown([NEW, *(name for name, _folder in self.studio.hypernets())])

    def _begin_with(self, name: str | None) -> Updates:
        folder = dict(self.studio.hypernets()).get(name)
        if folder is None:
            return {self.problem: shown("")}
        try:
            return {self.problem: shown("")} | self.form.begin_with(read_card(folder))
        except EditingError as error:
            return self._refused(error)

    def _refused(self, error: Exception) -> Updates:
        return {self.problem: shown(said("error", str(error)))}

    def _abort(self) -> gr.Button:
        last = last_training(self.studio)
        if last is None or last.ended:
            return gr.Button("Abort", interactive=False)
        self.studio.jobs.cancel(last.id)
        return gr.Button("Aborting …", interactive=False)

    def _resumable(self) -> list[Resumable]:
        model = self.studio.model
        return resumable(self.studio.hypernet_folders[0], model.sha256) if model else []

    def _choices(self) -> list[tuple[str, str]]:
        return [(resume_label(one), one.name) for one in self._resumable()]

    def _suggested_steps(self, name: str | None) -> int | None:
        for one in self._resumable():
            if one.name == name:
                return one.settings.steps if one.step < one.settings.steps else 2 * one.step
        return None


def resume_label(training: Resumable) -> str:
    """A training that can go on, in one line."""
    score = "" if training.score is None else f", Score {training.score:.3f}"
    return f"{training.name}: step {training.step} of {training.settings.steps}{score}"


def train_endpoint(studio: Studio) -> Callable[..., dict[str, Any]]:
    """The Train tab for programs: a named endpoint that needs no component."""
    items = {item.name: item for item in fields(TrainSettings)}

    def train(
        request: gr.Request,
        files: list[dict[str, Any]],
        valid: list[dict[str, Any]] = [],  # noqa: B006: Gradio shows the default to clients, nobody changes it
        held_out: float = 0.1,
        method: str = METHODS[0],
        name: str = "",
        settings: dict[str, Any] = {},  # noqa: B006
        start: str = "",
    ) -> dict[str, Any]:
        """Train a hypernetwork on files of facts and wait for its end. Without validation files, a share is held out.

        start: the name of a trained one to begin with, whose method and modules `settings` have to share.
        Returns the checkpoint's name, which `apply` takes as hypernet, its folder and its card.
        """
        try:
            given = {"files": files, "valid": valid, "held_out": held_out, "method": method, "name": name, "start": start}
            check_kinds(train, **given, settings=settings)
            if method not in METHODS:
                raise EditingError(f"method is {method!r}: give one of {', '.join(METHODS)}.")
            if settings.get("method", method) != method:
                raise EditingError(f"settings say {settings['method']!r}, method {method!r}: give the method as method.")
            if unknown := set(settings) - set(items):
                raise EditingError(f"There is no setting {', '.join(sorted(unknown))}; there are {', '.join(items)}.")
            await_model(studio)
            answers = {key: value(items[key], answer) for key, answer in settings.items()}
            chosen = TrainSettings(**answers | {"method": method})
            batches = read_files([uploaded_path(file) for file in files], "", "training")
            others = read_files([uploaded_path(file) for file in valid], "", "validation") if valid else []
            asked = new_request(studio, batches, others, held_out, chosen, name, start)
            job = start_training(studio, studio.caller(request.session_hash), asked)
        except REFUSALS as error:
            raise gr.Error(str(error), print_exception=False) from error
        job.ended.wait()
        shot = job.snapshot()
        if shot.state != "done":
            raise gr.Error(shot.error or "The training was aborted.", print_exception=False)
        folder = Path(shot.result)
        return {"hypernet": folder.name, "folder": str(folder), "card": read_card(folder)}

    return train
