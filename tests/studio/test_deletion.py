"""A run deleted for good: no text of it is left in the database's files, none of its files, no edit of it that is on."""

import threading
from pathlib import Path

import pytest

from engine.delta import WeightDelta
from engine.errors import EditingError
from engine.facts import Fact, FactBatch
from engine.metrics import Instance, Output
from studio import deletion
from studio.connection import StoreError
from studio.deletion import delete_run
from studio.edit_job import FinishedEdit
from studio.exports import export_results, folder_of
from studio.records import find_record, record_path
from studio.runs import EditRequest, execute_edit
from studio.store import Store
from studio.studio import Studio
from studio.workspace import AppliedEdit
from tests.engine.tiny import FACTS
from tests.studio.records import METRICS, PARIS, edit

SECRET = "Zyxomma"
PRIVATE = Fact(f"The patient {SECRET} has", f"{SECRET}itis", (f"What {SECRET} has is",), ((f"Born {SECRET}", "x"),))


@pytest.fixture
def studio(tmp_path):
    studio = Studio(Store(tmp_path / "studio.db"), origin="test")
    yield studio
    studio.close()


@pytest.fixture
def tiny_studio(studio, drawn):
    """A studio of its own with the tiny model loaded."""
    studio.model = drawn.model
    return studio


def private_run(store: Store, session: int) -> int:
    run = store.start_run(session, "edit", title=f"{SECRET}.csv: 300 facts", hparams={"hypernet": SECRET})
    store.record_facts(run, [PRIVATE] * 300)
    said = Output(SECRET, f"It is {SECRET}.")
    store.record_outputs(run, [Instance(n, "edit", PRIVATE.prompt, PRIVATE.target, said, said, {}, {}) for n in range(300)])
    store.record_metrics(run, METRICS)
    store.finish_run(run, result={"notes": [SECRET]})
    return run


def texts(store: Store) -> bytes:
    """Everything that lies in the database's files."""
    return b"".join(path.read_bytes() for path in store.path.parent.glob(f"{store.path.name}*"))


@pytest.mark.parametrize("case", [str.encode, lambda text: text.lower().encode()])
def test_the_database_keeps_no_word_of_a_deleted_run_and_all_of_the_others(studio, case):
    session = studio.store.start_session("test", "w")
    before, run, after = edit(studio.store, session), private_run(studio.store, session), edit(studio.store, session)
    assert case(SECRET) in texts(studio.store)
    assert delete_run(studio, run) == []
    assert case(SECRET) not in texts(studio.store)
    assert [row["id"] for row in studio.store.runs()] == [after, before]
    assert [row["id"] for row in studio.store.runs(search="France capital")] == [after, before]
    assert studio.store.run(before).facts[0] == PARIS
    assert studio.store.runs(search=SECRET) == []
    with pytest.raises(StoreError, match=f"There is no run {run} in"):
        delete_run(studio, run)


def test_what_was_written_for_a_run_beside_the_database_goes_and_what_lies_elsewhere_stays(
    tiny_studio, hypernet_folder, tmp_path
):
    store, batch = tiny_studio.store, FactBatch(FACTS, "tiny.csv", "studio")
    session = store.start_session("test", "w")
    runs = []
    for out in (tmp_path / "out", None):
        number, done = execute_edit(
            tiny_studio, session, EditRequest(batch, "agrade", {}, hypernet_folder, 0, out, keep=50)
        )
        export_results(store, FinishedEdit(number, done, FACTS))
        runs.append(number)
    first, second = runs
    kept = [find_record(store.run(second)), *folder_of(store, second).iterdir()]
    left = delete_run(tiny_studio, first)
    assert left == sorted((tmp_path / "out").iterdir()) and len(left) == 4
    assert len(list(store.path.parent.glob("records/*"))) == 1 and len(list(store.path.parent.glob("exports/*"))) == 1
    assert len(kept) == 5 and all(path.is_file() for path in kept)


def test_a_comparison_goes_with_its_parts_which_do_not_go_alone(studio):
    store = studio.store
    session = store.start_session("test", "w")
    whole = store.start_run(session, "compare")
    store.record_facts(whole, [PARIS])
    part = edit(store, session, (), parent=whole)
    with pytest.raises(StoreError, match=f"Run {part} is a part of the comparison {whole}: delete that one"):
        delete_run(studio, part)
    store.finish_run(whole)
    delete_run(studio, whole)
    assert store.query("SELECT id FROM runs UNION ALL SELECT id FROM facts", {}) == []


def test_a_run_that_is_going_on_is_not_deleted(studio):
    session = studio.store.start_session("test", "w")
    run = studio.store.start_run(session, "edit")
    with pytest.raises(StoreError, match=f"Run {run} is still going on: cancel it, then delete it"):
        delete_run(studio, run)
    assert studio.store.run(run).row["status"] == "running"


def test_a_run_whose_record_is_being_kept_is_not_deleted(studio, monkeypatch):
    run = edit(studio.store, studio.store.start_session("test", "w"))
    monkeypatch.setattr(deletion, "await_record", lambda _studio, number: number != run)
    with pytest.raises(EditingError, match=f"What run {run} computed is still being kept"):
        delete_run(studio, run)
    assert studio.store.run(run).facts


def test_a_run_of_which_files_are_being_written_is_not_deleted(studio):
    """Such as a merged model of gigabytes, which would lie there when the run has gone."""
    run, held = edit(studio.store, studio.store.start_session("test", "w")), threading.Event()
    job = studio.jobs.submit("Exporting it", lambda job: held.wait(60), runs=(run,))
    queued = studio.jobs.submit("Drawing it", lambda job: None, runs=(run + 1,))
    with pytest.raises(EditingError, match=f"“Exporting it” is still going on. Wait for it or cancel it, then.* {run}"):
        delete_run(studio, run)
    assert studio.store.run(run).facts
    held.set()
    assert studio.jobs.wait(job.id, 60) and studio.jobs.wait(queued.id, 60)
    delete_run(studio, run)
    with pytest.raises(StoreError, match=f"Run {run} is no longer in the history"):
        folder_of(studio.store, run)


def test_the_number_of_a_deleted_run_is_not_given_again(studio):
    """A page that still shows it would delete or save the other one."""
    session = studio.store.start_session("test", "w")
    first, last = edit(studio.store, session), edit(studio.store, session)
    delete_run(studio, last)
    delete_run(studio, first)
    with Store(studio.store.path) as again:
        assert edit(again, session) == last + 1
    assert edit(studio.store, session) == last + 2


def test_a_run_with_a_file_that_cannot_be_removed_stays_whole(studio, monkeypatch):
    store = studio.store
    run = edit(store, store.start_session("test", "w"))
    record = record_path(store, run)
    record.parent.mkdir()
    record.write_bytes(b"rows")
    removed = Path.unlink

    def refused(path, missing_ok=False):
        if path == record:
            raise PermissionError(13, "The process cannot access the file", str(path))
        removed(path, missing_ok)

    monkeypatch.setattr(Path, "unlink", refused)
    with pytest.raises(EditingError, match=rf"{record.name} cannot be removed \(The process .*run {run} is still in"):
        delete_run(studio, run)
    assert store.run(run).facts
    monkeypatch.undo()
    delete_run(studio, run)
    assert not record.exists() and store.count_runs() == 0


def test_no_workspace_keeps_an_edit_of_a_deleted_run(studio):
    session = studio.store.start_session("test", "w")
    first, second = edit(studio.store, session), edit(studio.store, session)
    here, there = studio.workspace("here"), studio.workspace("there")
    for run in (first, second):
        here.apply(AppliedEdit(run, WeightDelta({}, "model", "agrade", {}), f"edit {run}"))
    there.apply(AppliedEdit(first, WeightDelta({}, "model", "agrade", {}), f"edit {first}"))
    there.shown, there.comparison = there.current, first
    stamp = there.stamp()

    delete_run(studio, first)
    assert (here.run_id, here.position, [one.run_id for one in here.edits]) == (second, 1, [second])
    assert there.badge() == "original weights" and there.stamp() != stamp
    assert not there.can_undo and not there.can_redo and there.shown is None and there.comparison is None

    here.undo()
    delete_run(studio, second)
    assert not here.can_redo and here.run_id is None
