"""What runs keep to be looked into: where a run's record lies, whether there is one, and making it later."""

import re
import time
from pathlib import Path

from engine.edit_record import EditRecord
from engine.editing import make_editor
from engine.editors import EDITORS
from engine.errors import EditingError, MemoryLimitError
from engine.memory import give_back, memory_limit
from engine.model import EditableModel
from engine.progress import Progress, silent
from engine.recorder import ROWS, Recorder
from studio.connection import StoreError
from studio.disk import disk_errors
from studio.jobs import Job
from studio.rows import Row
from studio.run_reader import StoredRun
from studio.store import Store
from studio.studio import Studio

KIND = "record"
WAIT_SECONDS = 20.0
DRAWING_SECONDS = 0.7
# What a run's row keeps beside the settings of its method: how its model was asked for, and what else an edit or a
# training was told.
ASKED = ("module_pattern", "device", "dtype")
BESIDE = ("hypernet", "generate", "keep", "start", "train_files", "valid_files", *ASKED)


def files_name(store: Store, run: int) -> str:
    """What a run's files are called. When it began is in it: an earlier database of that name had such a run too.

    Raises StoreError for a run that is not there.
    """
    found = store.query("SELECT started FROM runs WHERE id = :run", {"run": run})
    if not found:
        raise StoreError(f"Run {run} is no longer in the history: nothing was written.")
    began = re.sub(r"\D", "", found[0]["started"][:23])  # to the millisecond, without the time zone
    return f"{store.path.name}-run-{run}-{began}"


def record_path(store: Store, run: int) -> Path:
    """Where the record of a run is written: beside the database."""
    return store.path.absolute().parent / "records" / f"{files_name(store, run)}.safetensors"


def keeps_rows(method: str) -> bool:
    """Whether edits by the method compute what can be looked into."""
    return method in EDITORS and EDITORS[method].records


def write_later(studio: Studio, run: int, recorder: Recorder, model: EditableModel) -> Job:
    """Queue the writing of a finished run's record, before the model's other work: until then its sums are held."""

    def work(job: Job) -> list[str]:
        time.sleep(DRAWING_SECONDS)  # the page draws the result, maybe on the same processors
        return keep_record(studio.store, run, recorder, model, job.progress)

    title = f"Keeping what run {run} computed"
    return studio.jobs.submit(title, work, model=model.sha256, workspace=_jobs_of(run), first=True, runs=(run,))


def keep_record(
    store: Store, run: int, recorder: Recorder, model: EditableModel, progress: Progress = silent
) -> list[str]:
    """Write a finished run's record and make it an artifact of the run; why it could not be is a note of the run."""
    try:
        with model.lock, memory_limit("Keeping what the edit computed"):
            notes = recorder.try_write(model, progress)
    except MemoryLimitError as error:
        notes = [str(error)]
    finally:
        give_back(model.device)
    for note in notes:
        store.add_note(run, note)
    if not notes:
        store.add_artifact(run, KIND, recorder.path)
    return notes


def await_record(studio: Studio, run: int, seconds: float = WAIT_SECONDS) -> bool:
    """Wait while the run's record is being written; False when that still goes on."""
    shot = studio.jobs.latest(_jobs_of(run))
    return shot is None or shot.ended or studio.jobs.wait(shot.id, seconds)


def find_record(run: StoredRun) -> Path | None:
    """The record among the run's artifacts, if its file is still there and has its size."""
    kept = [(Path(one["path"]), one["bytes"]) for one in reversed(run.artifacts) if one["kind"] == KIND]
    return next((path for path, size in kept if path.is_file() and path.stat().st_size == size), None)


def open_record(run: StoredRun) -> EditRecord:
    """The run's record. Raises EditingError with why there is none, CheckpointError when it is damaged."""
    path = find_record(run)
    if path is None:
        raise EditingError(why_none(run))
    return EditRecord(path)


def method_title(name: str) -> str:
    """What people call a method: “FT, batched” for ft-batched. One that is no longer there keeps its name."""
    return EDITORS[name].title if name in EDITORS else name.upper()


def why_none(run: StoredRun) -> str:
    """Why a run without a record has none, and what to do."""
    row = run.row
    start = f"Run {row['id']} cannot be drawn:"
    if row["status"] != "done":
        return f"{start} it is {row['status']}. Choose one that is done."
    if row["kind"] not in ("edit", "train"):
        return f"{start} it is neither an edit nor a training. Choose one of these."
    if row["kind"] == "edit" and not keeps_rows(row["method"]):
        return f"{start} {method_title(row['method'])} solves no system M Δθ = HᵀG. Choose a run by {_methods()}."
    if row["kind"] == "train":
        return f"{start} it kept nothing of its last step. Choose another run, or train on with Resume."
    return (
        f"{start} it kept nothing of what it computed. Trace again, in the Projections tab, repeats the language "
        "model's work for it; an edit without --keep 0 keeps it."
    )


def can_trace_again(run: StoredRun) -> bool:
    """Whether `trace_again` could make the record that the run lacks."""
    row = run.row
    return row["status"] == "done" and row["kind"] == "edit" and keeps_rows(row["method"]) and bool(run.facts)


def trace_again(studio: Studio, run: StoredRun, rows: int = ROWS, progress: Progress = silent) -> EditRecord:
    """Edit the run's facts once more with its settings, for the record alone: nothing is scored or applied.

    Raises EditingError when another model is loaded than the run's, or by another module pattern, and what the editor
    raises.
    """
    row, model = run.row, studio.require_model()
    if not can_trace_again(run):
        raise EditingError(why_none(run))
    if model.sha256 != row["model_sha"]:
        raise EditingError(
            f"Run {row['id']} edited {row['model']}, and {model.name} is loaded. Load {row['model']} first."
        )
    pattern = row["hparams"].get("module_pattern")
    if pattern != model.asked.get("module_pattern"):
        how = f"with the module pattern {pattern}" if pattern else "without a module pattern"
        raise EditingError(f"Run {row['id']} edited {row['model']} {how}. Load it so first.")
    settings = {name: value for name, value in row["hparams"].items() if name not in BESIDE}
    hypernet = row["hparams"].get("hypernet")
    with model.lock, memory_limit("The edit"):
        editor, _ = make_editor(
            model, row["method"], settings, Path(hypernet) if hypernet else None, studio.hypernet_folders
        )
        recorder = Recorder(record_path(studio.store, row["id"]), rows)
        editor.edit(model, run.facts, progress, recorder)
        with disk_errors(recorder.path.parent):
            record = recorder.write(model, progress)
    studio.store.add_artifact(row["id"], KIND, record.path)
    return record


def drawable(row: Row) -> bool:
    """Whether a run of the list may be drawn: a finished edit by a method that records, or a training."""
    return row["status"] == "done" and (row["kind"] == "train" or (row["kind"] == "edit" and keeps_rows(row["method"])))


def _jobs_of(run: int) -> str:
    return f"run {run} record"


def _methods() -> str:
    return ", ".join(editor.title for editor in EDITORS.values() if editor.records)
