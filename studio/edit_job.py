"""What Apply sets going: one edit as a job, put on in the person's workspace when it is done. It knows no page."""

from contextlib import suppress
from dataclasses import dataclass, fields
from functools import partial

from engine.delta import WeightDelta
from engine.editing import EditRun, make_editor
from engine.editors import EDITORS
from engine.errors import EditingError, FactError, ModelError
from engine.facts import Fact
from studio.connection import StoreError
from studio.jobs import Job, JobError, Snapshot
from studio.records import write_later
from studio.runs import EditRequest, NotKeptError, execute_edit, log_unbegun_edit, refuse_other_model
from studio.store import Store
from studio.studio import Studio
from studio.workspace import AppliedEdit, Workspace


@dataclass(frozen=True)
class FinishedEdit:
    """A run with its facts, as the result pages show it. `run_id`: its number in the database."""

    run_id: int
    run: EditRun
    facts: tuple[Fact, ...]


def jobs_of(workspace: Workspace) -> str:
    """The name under which a workspace's edits are found among all jobs; its trainings have another."""
    return f"{workspace.id} edit"


def last_edit(studio: Studio, workspace: Workspace) -> Snapshot | None:
    """The workspace's running edit, else its last one."""
    return studio.jobs.latest(jobs_of(workspace))


def refuse_server_files(studio: Studio, request: EditRequest) -> None:
    """Raises FactError for a setting that names a file of this computer, when the page is open to other computers."""
    named = [
        item.name
        for item in fields(EDITORS[request.method].Settings)
        if item.metadata.get("file") and request.settings.get(item.name)
    ]
    if named and not studio.local:
        raise FactError(
            f"This studio is open to other computers, so it reads no files of its own: leave {', '.join(named)} empty, "
            "or use `python app.py edit` on the studio's computer."
        )


def start_edit(studio: Studio, workspace: Workspace, request: EditRequest) -> Job:
    """Check the request and queue it. When it is done, its delta is on in the workspace and its result shown there.

    Raises EditingError for facts or settings that cannot be edited with, where no hypernetwork fits, without a model,
    and while another edit is going on: what is bound to fail does not wait for its turn.
    """
    model = studio.require_model()
    facts = request.facts.require().facts
    asked = request.method, request.settings, request.hypernet
    editor, _ = make_editor(model, *asked, studio.hypernet_folders, weights=False)
    editor.notes(facts)
    refuse_server_files(studio, request)
    last = last_edit(studio, workspace)
    if last is not None and not last.ended:
        raise EditingError(f"“{last.title}” is still going on. Wait for it, or cancel it.")

    def work(job: Job) -> int:
        refuse_other_model(studio, model, "nothing was edited. Edit", unbegun)
        computed, later = [], lambda *own: computed.append(own)
        try:
            run_id, run = execute_edit(studio, workspace.session, request, job.progress, later)
        except NotKeptError as error:  # the person has waited for the edit
            run_id, run = error.run, error.done
            run.notes.append(f"This edit is not in the history, which could not keep it. {error}")
        if studio.model is not model:
            told = f"Another model was loaded meanwhile: the edit is not on, the history has it as run {run_id}."
            raise ModelError(told)
        workspace.apply(AppliedEdit(run_id, run.delta, label(run)))
        workspace.shown = FinishedEdit(run_id, run, facts)
        studio.rest_idle(but=workspace)
        with suppress(JobError):  # the studio is closing: the run can be traced again
            for own in computed:
                write_later(studio, *own)
        return run_id

    noun = "fact" if len(facts) == 1 else "facts"
    title = f"Edit {len(facts):,} {noun} by {EDITORS[request.method].title}"
    unbegun = partial(log_unbegun_edit, studio.store, model, workspace.session, request)
    return studio.jobs.submit(title, work, model=model.sha256, workspace=jobs_of(workspace), unbegun=unbegun)


def label(run: EditRun) -> str:
    """What the badge says of an edit."""
    noun = "fact" if run.n_facts == 1 else "facts"
    return f"edited: {run.n_facts:,} {noun} by {EDITORS[run.method].title}"


def show_current(studio: Studio, workspace: Workspace) -> FinishedEdit | None:
    """The shown result: that of the edit which is on, read again after undo, redo or rest; without one it stays.

    Raises StoreError when the run is no longer in the database, CheckpointError when the delta's file has gone.
    """
    current = workspace.current
    if current is not None and (workspace.shown is None or workspace.shown.run_id != current.run_id):
        workspace.shown = reopened(studio.store, current.run_id, current.delta)
    return workspace.shown


def reopened(store: Store, run_id: int, delta: WeightDelta) -> FinishedEdit:
    """A finished edit as the database keeps it, with its delta. Raises StoreError when it was not kept."""
    stored = store.run(run_id)
    row, result = stored.row, stored.row["result"]
    if row["status"] != "done":
        raise StoreError(f"The result of run {run_id} is not in the history. {row['error']}".rstrip())
    run = EditRun(
        method=row["method"],
        model=row["model"],
        settings=result["settings"],
        hypernet=result["hypernet"],
        delta=delta,
        outcome=stored.outcome,
        n_facts=len(stored.facts),
        seconds=result["seconds"],
        score_seconds=result["score_seconds"],
        tokens=0,
        peak_memory_bytes=row["peak_memory_bytes"],
        base_memory_bytes=0,
        notes=result["notes"],
        per_module=result["modules"],
    )
    return FinishedEdit(run_id, run, tuple(stored.facts))
