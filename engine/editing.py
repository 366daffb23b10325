"""One edit from facts to figures: choose the editor, compute Δθ, score it. What the interface and the command line call."""

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from engine.checkpoint import find_checkpoints, load_checkpoint, outline
from engine.delta import WeightDelta
from engine.editors import EDITORS, Editor
from engine.errors import CheckpointError, EditingError
from engine.facts import Fact
from engine.memory import PeakMemory, give_back, memory_limit
from engine.metrics import Outcome, Unedited, score
from engine.model import EditableModel
from engine.progress import Progress, silent
from engine.recorder import LIMIT_BYTES, Recorder
from engine.setting_bounds import check_settings


@dataclass(frozen=True)
class EditRun:
    """A finished edit. seconds: the edit itself, tokenisation included; score_seconds: before and after outputs;
    prepare_seconds: before the edit, loading the hypernetwork and measuring the covariance that is then kept.

    peak_memory_bytes: the most held until the edit was made (the loaded model and a hypernetwork included, the rows
    of a recorder not);
    base_memory_bytes: what the loaded model and the rest of the program held before.
    """

    method: str
    model: str
    settings: dict[str, Any]
    hypernet: str | None
    delta: WeightDelta
    outcome: Outcome
    n_facts: int
    seconds: float
    score_seconds: float
    tokens: int
    peak_memory_bytes: int
    base_memory_bytes: int
    notes: list[str] = field(default_factory=list)
    per_module: list[dict[str, Any]] = field(default_factory=list)
    prepare_seconds: float = 0.0


def make_editor(
    model: EditableModel,
    method: str,
    settings: Mapping[str, Any] | None = None,
    hypernet: Path | None = None,
    folders: tuple[Path, ...] = (),
    weights: bool = True,
) -> tuple[Editor, str | None]:
    """The editor `method` with `settings`, ready for `model`, and the name of its hypernetwork.

    Without `hypernet`, the first checkpoint of the method for this model is taken, shipped ones first. Not `weights`:
    it is outlined, to be asked what it would do, and cannot edit.
    Raises EditingError for an unknown method or setting and for a value that it cannot take, CheckpointError when no
    hypernetwork fits, or the named one is another model's or another method's.
    """
    if method not in EDITORS:
        raise EditingError(f"Unknown method {method!r}: choose {', '.join(EDITORS)}.")
    cls = EDITORS[method]
    check_settings(cls.title, cls.Settings, settings or {})
    chosen = cls.Settings(**(settings or {}))
    if "hypernetwork" not in cls.needs:
        return cls(chosen), None
    folder = hypernet or default_hypernet(model, method, folders)
    checkpoint = load_checkpoint(folder, model.device) if weights else outline(folder)
    if checkpoint.card["model_sha256"] != model.sha256:
        raise CheckpointError(
            f"The hypernetwork {checkpoint.name} was trained for {checkpoint.card['model']}, not for {model.name}. "
            "Choose another one, or train one for this model."
        )
    trained = checkpoint.card["settings"]["method"]
    if trained != method:
        learned = EDITORS[trained].title if trained in EDITORS else trained
        raise CheckpointError(
            f"The hypernetwork {checkpoint.name} was trained for {learned}, not for {cls.title}. Choose one of "
            f"{cls.title}, or edit by {learned}."
        )
    return cls(chosen, checkpoint), checkpoint.name


def default_hypernet(model: EditableModel, method: str, folders: tuple[Path, ...] = ()) -> Path:
    """The folder of the first checkpoint for this model and method. Raises CheckpointError when there is none."""
    for folder, card in sorted(find_checkpoints(model.sha256, folders), key=lambda pair: not pair[1].get("default", False)):
        if card["settings"]["method"] == method:
            return folder
    raise CheckpointError(
        f"{EDITORS[method].title} needs a hypernetwork trained for {model.name}, and there is none. "
        "Train one in the Train tab, or with `python app.py train`, or choose one with --hypernet."
    )


def run_edit(
    model: EditableModel,
    facts: Sequence[Fact],
    method: str,
    settings: Mapping[str, Any] | None = None,
    hypernet: Path | None = None,
    folders: tuple[Path, ...] = (),
    generate: int = 64,
    progress: Progress = silent,
    unedited: Unedited | None = None,
    recorder: Recorder | None = None,
) -> EditRun:
    """Edit `facts` at once from the original weights and score the result, under the model's lock.

    `generate`: how many facts' prompts are also generated. `unedited`: what `engine.metrics.ask` found for these
    facts, which then is not asked again. `recorder`: is handed what the edit computed, unless the method computes
    nothing of the kind, to be written by the caller; what is too large to be held until then is written before the
    scoring. Raises errors of engine.errors; the model keeps its original weights whatever happens.
    """
    with model.lock, memory_limit("The edit"), _giving_back(model):
        with PeakMemory(model.device) as memory:
            started = time.perf_counter()
            editor, name = make_editor(model, method, settings, hypernet, folders)
            loaded = time.perf_counter() - started
            recording = (recorder,) if recorder and editor.records else ()
            edit = editor.edit(model, facts, progress, *recording)
        notes = list(edit.notes)
        recorded_bytes = recorder.row_bytes if recording and model.device.type != "cuda" else 0
        if recording and recorder.held_bytes > LIMIT_BYTES:
            notes += recorder.try_write(model, progress)
        started = time.perf_counter()
        outcome = score(model, facts, edit.delta, generate, progress, unedited)
        unsaid = sum(one.kind == "edit" and one.success["exact"] != 1 for one in outcome.instances)
        notes += editor.advice(unsaid, len(facts))
        return EditRun(
            method,
            model.name,
            {item.name: getattr(editor.settings, item.name) for item in fields(editor.settings)},
            name,
            edit.delta,
            outcome,
            len(facts),
            edit.seconds,
            time.perf_counter() - started,
            edit.tokens,
            memory.peak_bytes - recorded_bytes,
            memory.start_bytes,
            notes,
            edit.per_module,
            loaded + edit.prepare_seconds,
        )


@contextmanager
def _giving_back(model: EditableModel) -> Iterator[None]:
    try:
        yield
    finally:
        give_back(model.device)
