"""A training as a run: the trainer's work with its row in the database, its log and its best checkpoint."""

from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from engine.checkpoint import CHECKPOINT_FILES, load_checkpoint
from engine.errors import CheckpointError, FactError
from engine.facts import Fact
from engine.memory import PeakMemory, memory_limit
from engine.model import EditableModel
from engine.progress import Progress, silent
from engine.recorder import Recorder
from engine.train_settings import TrainSettings
from engine.trainer import Trainer
from engine.training_state import STATE
from studio.components.markup import count
from studio.connection import StoreError
from studio.disk import disk_errors
from studio.records import KIND as RECORD
from studio.records import record_path
from studio.runs import end_unbegun, kept_if_done, logged, start_run
from studio.store import Store
from studio.studio import Studio

LOG = "log.jsonl"
# What a training writes into its folder.
TRAINING_FILES = (LOG, STATE, *(f"{place}/{name}" for place in ("best", "latest") for name in CHECKPOINT_FILES))


@dataclass(frozen=True)
class TrainRequest:
    """What to train on and where the checkpoint goes. `valid` may be empty: then nothing is validated.

    start: the folder of a checkpoint to begin with instead of a random hypernetwork. A resumed one has begun already.
    files, valid_files: where the facts were read, so that the run can tell; none where they lie in the folder's data.
    """

    train: Mapping[str, Sequence[Fact]]
    valid: Mapping[str, Sequence[Fact]]
    settings: TrainSettings
    folder: Path
    resume: bool = False
    start: Path | None = None
    files: Sequence[Path] = ()
    valid_files: Sequence[Path] = ()


def refuse_no_further(name: str, step: int, steps: int) -> None:
    """Raises FactError when a training at `step` that is to go on to step `steps` has nothing to do."""
    if steps <= step:
        raise FactError(f"{name} is at step {step} already: train on to a later step than that.")


def execute_training(
    studio: Studio,
    session: int,
    request: TrainRequest,
    progress: Progress = silent,
    on_step: Callable[[dict], None] = lambda record: None,
) -> tuple[int, Path]:
    """Train a hypernetwork, as a run of the database; returns its number and the best checkpoint's folder.

    Raises errors of engine.errors; CheckpointError, too, for a training that would begin anew over an earlier one, and
    FactError for one that is to go on and has no step left.
    """
    model = studio.model
    run = _start_training(studio.store, model, session, request)
    with logged(studio, run):
        if not request.resume and (request.folder / STATE).is_file():
            raise CheckpointError(
                f"{request.folder} holds a training already, which would be lost: go on with it by --resume, or name "
                "another folder."
            )
        trainer = Trainer(model, request.train, request.valid, request.settings, request.folder)
        if request.resume:
            trainer.resume()
            validated = any(score["step"] == trainer.step for score in trainer.scores)
            if validated or trainer.step > request.settings.steps:  # else its last validation is still to be made
                refuse_no_further(request.folder.absolute().name, trainer.step, request.settings.steps)
        elif request.start:
            trainer.start_from(load_checkpoint(request.start, model.device))
        recorder = Recorder(record_path(studio.store, run))
        try:
            with (
                kept_if_done(recorder),
                disk_errors(request.folder),
                PeakMemory(model.device) as memory,
                memory_limit("The training"),
            ):
                best = trainer.run(progress, on_step, recorder)
            if recorder.path.is_file():
                studio.store.add_artifact(run, RECORD, recorder.path)
        except BaseException:  # what a failed or cancelled training saved is worth finding again
            with suppress(StoreError):
                _keep_training(studio.store, run, trainer)
            raise
        _keep_training(studio.store, run, trainer)
        last = trainer.scores[-1] if trainer.scores else {}
        studio.store.finish_run(
            run,
            peak_memory_bytes=memory.peak_bytes,
            result={"folder": str(best), "steps": trainer.step, "seconds": trainer.seconds, "scores": last},
        )
    return run, best


def _start_training(store: Store, model: EditableModel | None, session: int, request: TrainRequest) -> int:
    sets = ", ".join(f"{count(len(facts), 'fact')} of {name}" for name, facts in request.train.items())
    return start_run(
        store,
        model,
        session,
        "train",
        title=f"{request.folder.name}: {sets}",
        method=request.settings.method,
        hparams=asdict(request.settings) | _told(request),
        seed=request.settings.seed,
    )


def _told(request: TrainRequest) -> dict[str, Any]:
    """What the same again needs beside the settings, as far as it is known: of a resumed one not what it began with."""
    files = {"train_files": request.files, "valid_files": request.valid_files}
    told: dict[str, Any] = {name: [str(path.absolute()) for path in paths] for name, paths in files.items() if paths}
    return told if request.resume else told | {"start": str(request.start.absolute()) if request.start else ""}


def log_unbegun_training(
    store: Store, model: EditableModel, session: int, request: TrainRequest, error: str = ""
) -> None:
    """The row of a training that was aborted while it waited, or could not begin."""
    with store.transaction():
        end_unbegun(store, _start_training(store, model, session, request), error)


def _keep_training(store: Store, run: int, trainer: Trainer) -> None:
    """The log and the best checkpoint, as far as they were written, become artifacts of the run."""
    kept = [("checkpoint", trainer.best_folder / name) for name in CHECKPOINT_FILES] + [("training log", trainer.log)]
    for kind, path in kept:
        if path.is_file():
            store.add_artifact(run, kind, path)
