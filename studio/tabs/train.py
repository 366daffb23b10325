"""The Train tab: a hypernetwork from facts, with live losses, and where the checkpoint went.

The training is a job: it goes on when the page is closed, and every page that is opened shows it again.
"""

import time
from collections.abc import Iterator, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

import gradio as gr

from engine.checkpoint import read_card
from engine.errors import CheckpointError, EditingError, FactError
from engine.fact_readers import read_facts
from engine.facts import FactBatch
from engine.trainer import METHODS, TrainSettings
from studio import trainings
from studio.components.checkpoint_card import TITLES, card_html
from studio.components.panel import panel, said, shown
from studio.components.progress_bar import CSS as BAR_CSS
from studio.components.settings_form import control, value
from studio.components.training_plot import curve_of, loss_figure, read_log, validation_table
from studio.components.training_state import NOTHING, data_html, head_of, state_html, steps_of
from studio.connection import StoreError
from studio.jobs import JobError
from studio.runs import TrainRequest
from studio.studio import Studio

# The model trains for everybody at once, so a training belongs to the studio and not to one workspace.
WORKSPACE = "training"
COMMON = ("steps", "layers", "rank", "learning_rate", "largest_batch", "validate_every")
FILE_TYPES = [".csv", ".json", ".jsonl", ".ndjson"]
REDRAW_SECONDS = 1.0
INTRODUCTION = (
    "A hypernetwork learns from many facts how to edit this model; with it, any facts are then edited in seconds. "
    "Good training facts have equivalent prompts (the edit shall carry over) and unrelated prompts with their "
    "answers (these shall stay)."
)

Updates = dict[Any, Any]


def read_files(uploads: Sequence[str] | None, paths: str, what: str) -> list[FactBatch]:
    """The facts of the uploaded files and of those named by path, one a line. Raises FactError."""
    named = [Path(line.strip()).expanduser() for line in paths.splitlines() if line.strip()]
    files = [*map(Path, uploads or ()), *named]
    if not files:
        raise FactError(f"There are no {what} facts: upload a CSV, JSON or JSONL file, or give its path.")
    return [read_facts(path).require() for path in files]


def read_settings(method: str, names: Sequence[str], answers: Sequence[Any]) -> TrainSettings:
    """The form's answers as settings. Raises EditingError naming the field that cannot be read."""
    items = {item.name: item for item in fields(TrainSettings)}
    chosen = {name: value(items[name], answer) for name, answer in zip(names, answers, strict=True)}
    return TrainSettings(method=method, **chosen)


def build(studio: Studio, session: gr.State) -> None:
    """Build the tab inside the open layout. `session` holds the id of the page's workspace."""
    root = studio.hypernet_folders[0]
    items = {item.name: item for item in fields(TrainSettings) if item.name != "method"}
    names = [*COMMON, *(name for name in items if name not in COMMON)]

    gr.Markdown(INTRODUCTION)
    with gr.Row(equal_height=False):
        with gr.Column(scale=2, min_width=340):
            files = gr.File(
                label="Training facts", file_count="multiple", file_types=FILE_TYPES, height=132, elem_id="train-files"
            )
            paths = gr.Textbox(
                label="… or files on the studio's computer", lines=1, max_lines=4, placeholder="/path/to/facts.json",
                info="one path a line", elem_id="train-paths",
            )
            data = panel(elem_id="train-data", visible=False)
            validation = gr.Radio(
                [("hold out a share", "share"), ("files of their own", "files")],
                value="share", label="Validation facts", elem_id="train-validation",
            )
            share = gr.Slider(
                1, 50, value=10, step=1, label="Share held out, %", elem_id="train-share",
                info="never more than “Valid facts” of each file",
            )
            with gr.Group(visible=False) as own:
                valid_files = gr.File(
                    label="Validation facts", file_count="multiple", file_types=FILE_TYPES, height=132,
                    elem_id="train-valid-files",
                )
                valid_paths = gr.Textbox(
                    label="… or files on the studio's computer", lines=1, max_lines=4, elem_id="train-valid-paths"
                )
            method = gr.Radio(
                [(TITLES[name], name) for name in METHODS], value=METHODS[0], label="Method", elem_id="train-method",
                info=items_help("method"),
            )
            name = gr.Textbox(
                label="Name of the checkpoint", max_lines=1, elem_id="train-name",
                info="letters, digits, - and _; left empty, it is named after method and data",
            )
            with gr.Row(elem_classes="settings-grid"):
                controls = [control(items[one], "train") for one in COMMON]
            with gr.Accordion("All settings", open=False, elem_id="train-more"):
                with gr.Row(elem_classes="settings-grid"):
                    controls += [control(items[one], "train") for one in names[len(COMMON) :]]
            with gr.Accordion("Resume", open=False, elem_id="train-resume-section") as section:
                choice = gr.Dropdown(
                    choices=[], label="Training", elem_id="train-resume-choice",
                    info="those of this model that were saved at least once",
                )
                until = gr.Number(precision=0, label="Train until step", elem_id="train-resume-steps")
                resume = gr.Button("Resume training", elem_id="train-resume")
        with gr.Column(scale=3, min_width=380):
            with gr.Row():
                start = gr.Button("Start training", variant="primary", scale=2, elem_id="train-start")
                abort = gr.Button("Abort", variant="stop", interactive=False, scale=1, elem_id="train-abort")
            problem = panel(elem_id="train-problem", visible=False)
            state = panel(NOTHING, elem_id="train-state", css=BAR_CSS)
            plot = gr.Plot(show_label=False, visible=False, elem_id="train-plot")
            table = panel(elem_id="train-table", visible=False)
            card = panel(elem_id="train-card", visible=False)

    live = [problem, data, state, plot, table, card, start, abort, resume, choice]

    def refuse(error: Exception) -> Updates:
        return {problem: shown(said("error", str(error)))}

    def require_free() -> None:
        shot = studio.jobs.latest(WORKSPACE)
        if shot is not None and not shot.ended:
            raise FactError("A training is going on already: wait for its end, or abort it first.")
        if studio.model is None:
            raise FactError(studio.model_error or "The model is still being loaded: wait until the sidebar names it.")

    def choices() -> list[tuple[str, str]]:
        found = trainings.resumable(root, studio.model.sha256) if studio.model else []
        return [(resume_label(one), one.name) for one in found]

    def submit(workspace: str, request: TrainRequest) -> str:
        run = lambda job: trainings.train(studio, studio.workspace(workspace).session, request, job)  # noqa: E731
        title = f"Training {request.folder.name}"
        return studio.jobs.submit(title, run, model=studio.model.sha256, workspace=WORKSPACE).id

    def drawn(folder: str) -> Updates:
        curve = curve_of(read_log(Path(folder) / trainings.LOG))
        figure = loss_figure(curve) if curve.steps else None
        return {plot: gr.Plot(value=figure, visible=figure is not None), table: shown(validation_table(curve))}

    def watch(job: str) -> Iterator[Updates]:
        yield {
            problem: shown(""), card: shown(""), table: shown(""), plot: gr.Plot(value=None, visible=False),
            start: gr.Button(interactive=False), resume: gr.Button(interactive=False),
            abort: gr.Button("Abort", interactive=True),
        }  # fmt: skip
        seen, last = -1, 0.0
        for shot in studio.jobs.watch(job, interval=0.5):
            updates: Updates = {state: state_html(shot)}
            folder, steps, now = head_of(shot).get("folder"), len(steps_of(shot)), time.monotonic()
            if folder and steps != seen and (shot.ended or now - last >= REDRAW_SECONDS):
                updates |= drawn(folder)
                seen, last = steps, now
            if shot.ended:
                updates |= {
                    card: shown(card_of(folder)), choice: gr.Dropdown(choices=choices()),
                    start: gr.Button(interactive=True), resume: gr.Button(interactive=True),
                    abort: gr.Button("Abort", interactive=False),
                }  # fmt: skip
            yield updates

    def begin(
        workspace: str, files: list[str] | None, paths: str, validation: str, share: float,
        valid_files: list[str] | None, valid_paths: str, method: str, name: str, *answers: Any,
    ) -> Iterator[Updates]:  # fmt: skip
        """Train a hypernetwork; the values stream until the training has ended."""
        try:
            require_free()
            settings = read_settings(method, names, answers)
            trainings.check(settings, studio.model)
            train = trainings.name_sets(read_files(files, paths, "training"))
            if validation == "share":
                train, valid = trainings.hold_out(train, share / 100, settings.valid_facts, settings.seed)
            else:
                valid = trainings.name_sets(read_files(valid_files, valid_paths, "validation"))
            wanted = name.strip() or trainings.free_name(root, trainings.clean_name(f"{method}-{'-'.join(train)}"))
            request = TrainRequest(train, valid, settings, trainings.new_folder(root, wanted))
            job = submit(workspace, request)
        except (EditingError, StoreError, JobError) as error:
            yield refuse(error)
            return
        yield from watch(job)

    def go_on(workspace: str, chosen: str | None, steps: float | None) -> Iterator[Updates]:
        """Resume a training until a later step; the values stream until it has ended."""
        try:
            require_free()
            job = submit(workspace, trainings.resume_request(find(chosen), int(steps or 0)))
        except (EditingError, StoreError, JobError) as error:
            yield refuse(error)
            return
        yield from watch(job)

    def find(chosen: str | None) -> trainings.Resumable:
        for one in trainings.resumable(root, studio.model.sha256):
            if one.name == chosen:
                return one
        raise FactError("Choose a training to go on with. Those of another model are not offered.")

    def stop() -> Updates:
        """Abort the training after the step it is at; what was saved is kept."""
        shot = studio.jobs.latest(WORKSPACE)
        if shot is None or shot.ended:
            return {abort: gr.Button("Abort", interactive=False)}
        studio.jobs.cancel(shot.id)
        return {abort: gr.Button("Aborting …", interactive=False)}

    def attach() -> Iterator[Updates]:
        shot = studio.jobs.latest(WORKSPACE)
        yield {choice: gr.Dropdown(choices=choices())}
        if shot is not None:
            yield from watch(shot.id)

    def summarise(files: list[str] | None, paths: str) -> Updates:
        try:
            batches = read_files(files, paths, "training") if files or paths.strip() else []
            return {data: shown(data_html(batches) if batches else "")}
        except EditingError as error:
            return {data: shown(said("error", str(error)))}

    def suggest_steps(chosen: str | None) -> int | None:
        found = next((one for one in trainings.resumable(root, studio.model.sha256) if one.name == chosen), None)
        return found and (found.settings.steps if found.step < found.settings.steps else 2 * found.step)

    hidden = {"show_progress": "hidden", "api_visibility": "private"}
    streams = {"show_progress": "hidden", "concurrency_limit": None}
    given = [files, paths, validation, share, valid_files, valid_paths, method, name]
    start.click(begin, [session, *given, *controls], live, api_name="train", **streams)
    resume.click(go_on, [session, choice, until], live, api_name="train_resume", **streams)
    abort.click(stop, None, [abort], api_name="train_abort", show_progress="hidden")
    gr.on(fn=attach, outputs=live, **streams, api_visibility="private")
    gr.on([files.change, paths.blur, paths.submit], summarise, [files, paths], [data], **hidden)
    validation.change(
        lambda kind: (gr.Slider(visible=kind == "share"), gr.Group(visible=kind == "files")),
        validation, [share, own], **hidden,
    )  # fmt: skip
    section.expand(lambda: gr.Dropdown(choices=choices()), None, choice, **hidden)
    choice.change(suggest_steps, choice, until, **hidden)


def items_help(name: str) -> str:
    """The help text of a setting."""
    return next(item.metadata["help"] for item in fields(TrainSettings) if item.name == name)


def resume_label(training: trainings.Resumable) -> str:
    """A training that can go on, in one line."""
    score = "" if training.score is None else f", Score {training.score:.3f}"
    return f"{training.name}: step {training.step} of {training.settings.steps}{score}"


def card_of(folder: str | None) -> str:
    """The card of the published checkpoint in `folder`; "" when there is none."""
    try:
        return card_html(read_card(Path(folder)), Path(folder)) if folder else ""
    except CheckpointError:
        return ""
