"""What a person says before a training: its facts, what to validate on, the method, a name, the settings."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import gradio as gr

from engine.editors import EDITORS
from engine.errors import EditingError, FactError
from engine.fact_readers import read_facts
from engine.facts import FactBatch
from engine.train_settings import METHODS, TrainSettings
from studio.components.panel import panel, said, shown
from studio.components.settings_form import control, value
from studio.components.training_state import data_html

COMMON = ("steps", "layers", "rank", "learning_rate", "largest_batch", "validate_every")
FILE_TYPES = [".csv", ".json", ".jsonl", ".ndjson"]
SHARE, FILES = "share", "files"
NEW = ("a new hypernetwork", "")
METHOD_HELP = (
    "MALMEN is AGRADE without Eq. 4: no gradient is projected against the previous module’s. "
    "MEND adds the projected rows up and solves nothing."
)
# What a training has to share with the checkpoint it begins with, and what it does well to share.
STRUCTURE = (
    "layers", "rank", "projection", "scope", "coefficient", "regularisation", "gradient_projection", "outer_prompts",
    "rounds", "old_keys",
)  # fmt: skip
OTHERS = tuple(item.name for item in fields(TrainSettings) if item.name not in (*COMMON, "method"))


@dataclass(frozen=True)
class Answers:
    """The form, read. valid: [] to hold out `held_out` (0…1) of each batch. start: a checkpoint's name, or ""."""

    batches: list[FactBatch]
    valid: list[FactBatch]
    held_out: float
    settings: TrainSettings
    name: str
    start: str


def read_files(uploads: Sequence[str] | None, paths: str, what: str, local: bool = True) -> list[FactBatch]:
    """The facts of the uploaded files and of those named by path, one a line. Raises FactError.

    Not `local`: whoever asks may sit elsewhere, and the files of this computer are none of theirs.
    """
    if paths.strip() and not local:
        raise FactError("This studio is open to other computers, so it reads uploaded files only: upload the file.")
    named = [Path(line.strip()).expanduser() for line in paths.splitlines() if line.strip()]
    files = [*map(Path, uploads or ()), *named]
    if not files:
        raise FactError(f"There are no {what} facts: upload a CSV, JSON or JSONL file, or give its path.")
    return [read_facts(path).require() for path in files]


def read_settings(method: str, answers: Sequence[Any]) -> TrainSettings:
    """The settings, COMMON then OTHERS. Raises EditingError naming the field that cannot be read."""
    items = {item.name: item for item in fields(TrainSettings)}
    chosen = {name: value(items[name], answer) for name, answer in zip((*COMMON, *OTHERS), answers, strict=True)}
    return TrainSettings(method=method, **chosen)


class TrainingForm:
    """The components. `inputs` go into an event; `read` turns what arrives from them into Answers."""

    def __init__(self, local: bool = True) -> None:
        self.local = local
        items = {item.name: item for item in fields(TrainSettings)}
        with gr.Column(elem_classes="block-section", elem_id="train-facts"):
            gr.Markdown("### Facts to learn from", elem_classes="section")
            self.files, self.paths = _file_choice("Training facts", "train", local)
            self.data = panel(elem_id="train-data", visible=False)
            self.validation = gr.Radio(
                [("hold out a share", SHARE), ("files of their own", FILES)],
                value=SHARE, label="Facts to validate on", elem_id="train-validation",
            )  # fmt: skip
            self.share = gr.Slider(
                1, 50, value=10, step=1, label="Share held out, %", elem_id="train-share",
                info="of each file, and never more than “Valid facts” below",
            )  # fmt: skip
            with gr.Column(visible=False) as self.own:
                self.valid_files, self.valid_paths = _file_choice("Validation facts", "train-valid", local)
        with gr.Column(elem_classes="block-section", elem_id="train-settings"):
            gr.Markdown("### Method and settings", elem_classes="section")
            self.method = gr.Radio(
                [(EDITORS[one].title, one) for one in METHODS], value=METHODS[0], label="Method", info=METHOD_HELP,
                elem_id="train-method",
            )  # fmt: skip
            self.name = gr.Textbox(
                label="Name of the checkpoint", max_lines=1, elem_id="train-name",
                info="letters, digits, - and _; left empty, it is named after method and data",
            )  # fmt: skip
            self.start = gr.Dropdown(
                [NEW], value="", label="Begin with", elem_id="train-begin",
                info="a trained hypernetwork of this model learns these facts in fewer steps; its structure is set below",
            )  # fmt: skip
            with gr.Row():
                self.controls = {one: control(items[one], "train") for one in COMMON}
            with gr.Accordion("All settings", open=False, elem_id="train-more"):
                with gr.Row():
                    self.controls |= {one: control(items[one], "train") for one in OTHERS}
        files = [self.files, self.paths, self.validation, self.share, self.valid_files, self.valid_paths]
        self.inputs = [*files, self.method, self.name, self.start, *self.controls.values()]
        self._wire()

    def read(
        self, files: list[str] | None, paths: str, validation: str, share: float, valid_files: list[str] | None,
        valid_paths: str, method: str, name: str, start: str | None, *answers: Any,
    ) -> Answers:  # fmt: skip
        """What `inputs` hold. Raises EditingError for a file, or for a setting, that cannot be used."""
        settings = read_settings(method, answers)
        valid = read_files(valid_files, valid_paths, "validation", self.local) if validation == FILES else []
        train = read_files(files, paths, "training", self.local)
        return Answers(train, valid, share / 100, settings, name, start or "")

    def begin_with(self, card: Mapping[str, Any]) -> dict[Any, Any]:
        """Updates: the method and the structure of the checkpoint with this card, as a training from it needs them."""
        settings = card["settings"]
        layers = ",".join(str(module["layer"]) for module in card["modules"])
        known = {name: settings[name] for name in STRUCTURE if name in settings} | {"layers": layers}
        shown = {self.controls[name]: gr.update(value=answer) for name, answer in known.items()}
        return {self.method: gr.update(value=settings["method"])} | shown

    def _wire(self) -> None:
        quiet = {"show_progress": "hidden", "api_visibility": "private"}
        changes = [self.files.change, self.paths.blur, self.paths.submit]
        gr.on(changes, self._summary, [self.files, self.paths], self.data, **quiet)
        self.validation.change(
            lambda kind: (gr.Slider(visible=kind == SHARE), gr.Column(visible=kind == FILES)),
            self.validation, [self.share, self.own], **quiet,
        )  # fmt: skip

    def _summary(self, files: list[str] | None, paths: str) -> gr.HTML:
        """What the chosen files hold, as soon as they are chosen."""
        if not files and not paths.strip():
            return shown("")
        try:
            return shown(data_html(read_files(files, paths, "training", self.local)))
        except EditingError as error:
            return shown(said("error", str(error)))


def _file_choice(label: str, prefix: str, local: bool) -> tuple[gr.File, gr.Textbox]:
    """Uploads, or paths of files that lie on the studio's computer already."""
    files = gr.File(label=label, file_count="multiple", file_types=FILE_TYPES, height=130, elem_id=f"{prefix}-files")
    paths = gr.Textbox(
        label="… or files on the studio’s computer", info="one path a line", placeholder="/path/to/facts.json",
        lines=1, max_lines=4, visible=local, elem_id=f"{prefix}-paths",
    )  # fmt: skip
    return files, paths
