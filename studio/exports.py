"""Files of a finished edit that a person takes away: its results, its delta, the whole edited model."""

import copy
import json
import shutil
import zipfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from engine.fact_readers import write_csv
from engine.fact_records import fact_to_record, parse_records
from engine.facts import Fact
from engine.model import EditableModel
from engine.progress import Progress, silent
from studio.disk import disk_errors
from studio.edit_job import FinishedEdit
from studio.records import files_name
from studio.runs import write_results
from studio.store import Store
from studio.trainings import published_record

CHUNK_BYTES = 16_000_000


def exports_folder(store: Store) -> Path:
    """Where all exports lie, beside the database: the only files but its own that the page gives out."""
    return store.path.absolute().parent / "exports"


def folder_of(store: Store, run_id: int) -> Path:
    """Where a run's exports lie: for each run a folder."""
    return exports_folder(store) / files_name(store, run_id)


def write_facts(facts: Sequence[Fact], stem: Path) -> Path:
    """The facts as a file that is read as they are: `stem`.csv, or .json where a published set contradicts itself.

    Written whole or not at all. Raises EditingError when the disk is full or the folder cannot be written.
    """
    strict = parse_records([fact_to_record(fact) for fact in facts], "facts").errors
    path = stem.with_name(f"{stem.name}.{'json' if strict else 'csv'}")
    part = path.with_name(path.name + ".part")
    with disk_errors(path.parent):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            if strict:
                records = [published_record(fact) for fact in facts]
                part.write_text(json.dumps(records, ensure_ascii=False, indent=1), encoding="utf-8")
            else:
                write_csv(facts, part)
            part.replace(path)
        finally:
            part.unlink(missing_ok=True)
    return path


def export_results(store: Store, edit: FinishedEdit) -> list[Path]:
    """summary.json, facts.csv, delta.safetensors and its card delta.json, noted as artifacts of the run."""
    folder = folder_of(store, edit.run_id)
    with disk_errors(folder):
        paths = write_results(edit.run, edit.facts, folder)
    for kind, path in paths.items():
        store.add_artifact(edit.run_id, kind, path)
    return list(paths.values())


def export_model(
    store: Store, edit: FinishedEdit, model: EditableModel, progress: Progress = silent
) -> tuple[Path, Path]:
    """The edited model as `save_pretrained` writes it: its folder, and the same in one zip, named after the run.

    Raises CheckpointError when the edit was made for another model, EditingError when the disk is full.
    """
    folder = folder_of(store, edit.run_id) / "merged-model"
    partial = folder.with_name("merged-model.partial")
    shutil.rmtree(partial, ignore_errors=True)
    with disk_errors(folder):
        partial.mkdir(parents=True)
        try:
            progress("Writing the edited model", 0, 1)
            with model.lock, model.edited(edit.run.delta), _saveable_generation(model):
                model.lm.save_pretrained(partial)
                model.tokenizer.save_pretrained(partial)
            for weights in partial.glob("*.safetensors"):
                shutil.copymode(partial / "config.json", weights)  # else its owner's alone to read
            shutil.rmtree(folder, ignore_errors=True)
            partial.rename(folder)
        finally:
            shutil.rmtree(partial, ignore_errors=True)
        return folder, _zipped(folder, folder.with_name(f"{folder.name}-run-{edit.run_id}.zip"), progress)


@contextmanager
def _saveable_generation(model: EditableModel) -> Iterator[None]:
    """With its generation settings as transformers is willing to save them: it loads a temperature of a model that is
    not told to sample, as published ones have it, but writes it only of one that is. What it refuses is left out."""
    own = model.lm.generation_config
    sampling = copy.deepcopy(own)
    sampling.do_sample = True
    tokens = {name: getattr(own, name) for name in ("bos_token_id", "eos_token_id") if getattr(own, name) is not None}
    for tried in (own, sampling, type(own)(**tokens)):
        with suppress(ValueError):
            tried.validate(strict=True)
            model.lm.generation_config = tried
            break
    try:
        yield
    finally:
        model.lm.generation_config = own


def _zipped(folder: Path, target: Path, progress: Progress) -> Path:
    """The folder's files in `target`, stored without compression: weights do not shrink."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    total, done = sum(path.stat().st_size for path in files), 0
    try:
        with zipfile.ZipFile(target, "w", zipfile.ZIP_STORED, allowZip64=True) as archive:
            for path in files:
                with path.open("rb") as source, archive.open(path.name, "w", force_zip64=True) as sink:
                    while chunk := source.read(CHUNK_BYTES):
                        sink.write(chunk)
                        done += len(chunk)
                        progress("Packing the edited model", done, total)
    except BaseException:
        target.unlink(missing_ok=True)
        raise
    return target
