"""A run: the engine's work with its row in the database and its files. Both the tabs and app.py call these.

A run is logged before its work begins, and ends as done, failed or cancelled, whatever happens.
"""

import csv
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any

from engine.editing import EditRun, default_hypernet, run_edit
from engine.editors import EDITORS
from engine.errors import Cancelled, CheckpointError, EditingError, ModelError
from engine.facts import Fact, FactBatch
from engine.metrics import PROTOCOLS
from engine.model import EditableModel
from engine.progress import Progress, silent
from engine.recorder import ROWS, Recorder
from studio.connection import StoreError
from studio.disk import disk_errors
from studio.records import KIND as RECORD
from studio.records import keep_record, keeps_rows, record_path
from studio.store import Store
from studio.studio import Studio

RESULTS = {"summary": "summary.json", "facts": "facts.csv", "delta": "delta.safetensors", "delta card": "delta.json"}


def own_defaults(method: str) -> dict[str, Any]:
    """What an edit of a person's own facts has where the engine's default is another.

    A comparison measures an edit by unrelated prompts that it was not told of; a person names them to be left alone.
    """
    own = {"keep_unrelated": True}
    known = {item.name for item in fields(EDITORS[method].Settings)} if method in EDITORS else set()
    return {name: value for name, value in own.items() if name in known}


@dataclass(frozen=True)
class EditRequest:
    """What to edit and how. `generate`: facts whose prompts are also generated; `out`: where files go.

    `keep`: rows of each matrix that the run keeps to be looked into (engine.recorder), where its method computes
    them; 0 for none.
    """

    facts: FactBatch
    method: str = "agrade"
    settings: Mapping[str, Any] = field(default_factory=dict)
    hypernet: Path | None = None
    generate: int = 64
    out: Path | None = None
    keep: int = ROWS


class NotKeptError(StoreError):
    """An edit is finished, and the database or its folder could not keep it. `run`: its failed row; `done`: the
    finished run."""

    def __init__(self, why: StoreError | EditingError, run: int, done: EditRun) -> None:
        super().__init__(str(why))
        self.run, self.done = run, done


@contextmanager
def logged(studio: Studio, run: int) -> Iterator[None]:
    """End the run's row as cancelled or failed when the work inside does not end well."""
    try:
        yield
    except BaseException as error:
        with suppress(StoreError):  # the store writes it when it can
            if isinstance(error, Cancelled):
                studio.store.cancel_run(run)
            else:
                studio.store.fail_run(run, str(error) or type(error).__name__)
        raise


def refuse_other_model(studio: Studio, model: EditableModel, words: str, unbegun: Callable[..., None]) -> None:
    """Raises ModelError when another model was loaded while the work for `model` waited; `unbegun` logs that.

    words: what was not done, and what to do, as “nothing was edited. Edit”.
    """
    if studio.model is not model:
        told = f"Another model was loaded meanwhile: {words} again with that one."
        with suppress(StoreError):
            unbegun(error=told)
        raise ModelError(told)


def execute_edit(
    studio: Studio,
    session: int,
    request: EditRequest,
    progress: Progress = silent,
    later: Callable[[int, Recorder, EditableModel], None] | None = None,
) -> tuple[int, EditRun]:
    """Edit, score, and keep everything: returns the run's number in the database and the finished run.

    `later`: takes the run's number and a recorder, to be written (`records.keep_record`) once the result is shown;
    without it the record is written before this returns. Raises errors of engine.errors, and NotKeptError; the row then
    says failed or cancelled, and no file was written to `out`, unless its disk was full.
    """
    model, request = studio.model, _with_its_hypernet(studio, request)
    run = _start_edit(studio.store, model, session, request)
    keep = request.keep if keeps_rows(request.method) else 0
    with logged(studio, run):
        recorder = Recorder(record_path(studio.store, run), keep) if keep else None
    with logged(studio, run), kept_if_done(recorder):
        facts = request.facts.require().facts
        studio.store.record_facts(run, facts)
        if request.out is not None:  # a folder that cannot be made is told before the work, not after it
            with disk_errors(request.out):
                request.out.mkdir(parents=True, exist_ok=True)
        done = run_edit(
            model,
            facts,
            request.method,
            request.settings,
            request.hypernet,
            studio.hypernet_folders,
            request.generate,
            progress,
            recorder=recorder,
        )
        try:
            _keep_edit(studio.store, run, request, done, recorder)
        except (StoreError, EditingError) as error:  # a full disk is the latter
            raise NotKeptError(error, run, done) from error
    if recorder and recorder.state:
        if later:
            later(run, recorder, model)
        else:
            keep_record(studio.store, run, recorder, model, progress)
    return run, done


def _with_its_hypernet(studio: Studio, request: EditRequest) -> EditRequest:
    """The request with the folder of its hypernetwork: another may be the first one when the same is done again."""
    folder = request.hypernet
    if folder is None and request.method in EDITORS and "hypernetwork" in EDITORS[request.method].needs:
        with suppress(CheckpointError):  # the edit will say so
            folder = default_hypernet(studio.model, request.method, studio.hypernet_folders)
    return replace(request, hypernet=folder and folder.absolute())


def _keep_edit(store: Store, run: int, request: EditRequest, done: EditRun, recorder: Recorder | None) -> None:
    with store.transaction():
        store.record_outputs(run, done.outcome.instances)
        store.record_metrics(run, done.outcome.metrics)
    if recorder and recorder.path.is_file():  # it was too large to be held until now
        store.add_artifact(run, RECORD, recorder.path)
    if request.out is not None:
        with disk_errors(request.out):
            paths = write_results(done, request.facts.facts, request.out)
        for kind, path in paths.items():
            store.add_artifact(run, kind, path)
    store.finish_run(run, peak_memory_bytes=done.peak_memory_bytes, result=edit_result(done))


def start_run(
    store: Store, model: EditableModel | None, session: int, kind: str, hparams: Mapping[str, Any], **about: Any
) -> int:
    """Log a run on the model before its work begins; its number. `about`: as of `Store.start_run`.

    `hparams` are kept with how the model was asked for: the same again needs that too.
    """
    named = {"model": model.name, "model_sha": model.sha256} if model else {}
    asked = model.asked if model else {}
    return store.start_run(session, kind, hparams={**hparams, **asked}, **named, **about)


def end_unbegun(store: Store, run: int, error: str) -> None:
    """The end of a run whose work never began: cancelled, or failed where `error` says why."""
    if error:
        store.fail_run(run, error)
    else:
        store.cancel_run(run)


def _start_edit(store: Store, model: EditableModel | None, session: int, request: EditRequest) -> int:
    count = len(request.facts)
    return start_run(
        store,
        model,
        session,
        "edit",
        title=f"{request.facts.source}: {count} fact{'' if count == 1 else 's'}",
        method=request.method,
        hparams=dict(request.settings)
        | {"hypernet": str(request.hypernet or ""), "generate": request.generate, "keep": request.keep},
    )


def log_unbegun_edit(store: Store, model: EditableModel, session: int, request: EditRequest, error: str = "") -> None:
    """The row of an edit that was cancelled while it waited, or could not begin: its facts are found again."""
    with store.transaction():
        run = _start_edit(store, model, session, request)
        store.record_facts(run, request.facts.facts)
        end_unbegun(store, run, error)


def edit_result(run: EditRun) -> dict[str, Any]:
    """What else of a finished edit is worth keeping with its row."""
    return {
        "seconds": run.seconds,
        "score_seconds": run.score_seconds,
        "prepare_seconds": run.prepare_seconds,
        "base_memory_bytes": run.base_memory_bytes,
        "hypernet": run.hypernet,
        "settings": run.settings,
        "notes": run.notes,
        "modules": run.per_module,
    }


@contextmanager
def kept_if_done(recorder: Recorder | None) -> Iterator[None]:
    """Remove what an edit kept when it does not end well: its row does not know the file."""
    try:
        yield
    except BaseException:
        if recorder:
            recorder.path.unlink(missing_ok=True)
        raise


def summary(run: EditRun) -> dict[str, Any]:
    """What summary.json holds."""
    return {
        "method": run.method,
        "model": run.model,
        "n_facts": run.n_facts,
        "seconds": run.seconds,
        "peak_memory_bytes": run.peak_memory_bytes,
        "metrics": [asdict(metric) for metric in run.outcome.metrics],
        "settings": run.settings,
        "hypernet": run.hypernet,
        "score_seconds": run.score_seconds,
        "notes": run.notes,
        "modules": run.per_module,
    }


def write_results(run: EditRun, facts: Sequence[Fact], folder: Path) -> dict[str, Path]:
    """Write the RESULTS, the delta with its card among them, into `folder`; returns their paths by kind."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = {kind: folder / name for kind, name in RESULTS.items()}
    text = json.dumps(summary(run), indent=2, ensure_ascii=False, default=str)
    paths["summary"].write_text(text + "\n", encoding="utf-8")
    write_instances(run, facts, paths["facts"])
    run.delta.save(folder / "delta")
    return paths


def write_instances(run: EditRun, facts: Sequence[Fact], path: Path) -> None:
    """One row an instance: fact (its row in the source), type, prompt, target, both outputs, each protocol."""
    protocols = list(dict.fromkeys(name for names in PROTOCOLS.values() for name in names))
    with path.open("w", newline="", encoding="utf-8-sig") as file:  # as `write_csv`, for Excel
        writer = csv.writer(file)
        generated = ["before_generated", "after_generated"]
        writer.writerow(["fact", "type", "prompt", "target", "before", "after", *generated, *protocols])
        for one in run.outcome.instances:
            row = facts[one.fact].row or one.fact + 1
            values = ["" if one.success.get(name) is None else f"{one.success[name]:g}" for name in protocols]
            said = [one.before.generated or "", one.after.generated or ""]
            writer.writerow([row, one.kind, one.prompt, one.target, one.before.argmax, one.after.argmax, *said, *values])
