"""Forgetting a run for good: its rows, what was written for it beside the database, and the edits that are still on."""

import shutil
from pathlib import Path

from engine.errors import EditingError
from studio.exports import folder_of
from studio.records import await_record, record_path
from studio.studio import Studio


def delete_run(studio: Studio, run: int) -> list[Path]:
    """Delete a run with its parts and their files; the files it wrote elsewhere, which stay: a checkpoint, an `--out`.

    Raises StoreError for a run that is not there or still going on, EditingError while files of it are being written
    and when one cannot be removed: the run is then still in the history.
    """
    store = studio.store
    stored = store.deletable(run)
    if not await_record(studio, run):
        raise EditingError(f"What run {run} computed is still being kept. Delete it when that is done.")
    numbers = [run, *(child["id"] for child in stored.children)]
    if writing := studio.jobs.writing(numbers):
        raise EditingError(f"“{writing.title}” is still going on. Wait for it or cancel it, then delete run {run}.")
    folders = [folder_of(store, number) for number in numbers]
    records = [record_path(store, number) for number in numbers]
    written = {Path(one["path"]) for one in stored.artifacts}
    try:
        for folder in folders:
            if folder.is_dir():
                shutil.rmtree(folder)
        for record in records:
            record.unlink(missing_ok=True)
    except OSError as error:
        raise EditingError(
            f"{error.filename} cannot be removed ({error.strerror}), so run {run} is still in the history. Close what "
            "has the file open, then delete the run again."
        ) from error
    store.delete_run(run)
    studio.forget(run)
    return sorted(path for path in written if path.is_file())
