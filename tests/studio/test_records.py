"""What an edit computed is written when its result is there: as a job of its own, which may fail or be awaited."""

import errno
import threading

import pytest

from engine.errors import EditingError
from engine.facts import FactBatch
from engine.recorder import Recorder
from studio.edit_job import start_edit
from studio.records import (
    await_record,
    can_trace_again,
    find_record,
    keep_record,
    open_record,
    record_path,
    trace_again,
)
from studio.runs import EditRequest, execute_edit
from studio.store import Store
from tests.engine import tiny

BATCH = FactBatch(tiny.FACTS, "tiny.csv", "studio")
LONG = 60


def edited(studio, hypernet_folder, **changes) -> int:
    """Apply in a workspace of its own; the run's number once the result is shown."""
    workspace = studio.workspace()
    job = start_edit(studio, workspace, EditRequest(BATCH, "agrade", {}, hypernet_folder, 0, **changes))
    assert job.ended.wait(LONG)
    shot = job.snapshot()
    assert shot.state == "done", shot.error
    assert workspace.shown.run_id == workspace.run_id == shot.result
    return shot.result


def test_the_result_is_shown_first_and_the_record_follows(drawn, hypernet_folder, monkeypatch):
    go, write = threading.Event(), Recorder.write

    def slow(recorder, *arguments):
        assert go.wait(LONG)
        return write(recorder, *arguments)

    monkeypatch.setattr(Recorder, "write", slow)
    run = edited(drawn, hypernet_folder)
    stored = drawn.store.run(run)
    assert stored.row["status"] == "done" and stored.outcome.metrics and find_record(stored) is None
    assert not await_record(drawn, run, seconds=0)
    go.set()
    assert await_record(drawn, run)
    assert open_record(drawn.store.run(run)).card.fact_count == len(tiny.FACTS)


def test_a_run_without_a_record_to_come_is_not_awaited(drawn, hypernet_folder):
    assert await_record(drawn, edited(drawn, hypernet_folder, keep=0), seconds=0)
    assert await_record(drawn, 10**6, seconds=0)


def test_a_record_that_cannot_be_written_is_a_note_and_the_run_can_be_traced(drawn, hypernet_folder, monkeypatch):
    def full(recorder, *_arguments):
        raise OSError("No space left on device")

    monkeypatch.setattr(Recorder, "write", full)
    run = edited(drawn, hypernet_folder)
    assert await_record(drawn, run)
    stored = drawn.store.run(run)
    assert stored.row["status"] == "done" and "No space left" in stored.row["result"]["notes"][-1]
    assert find_record(stored) is None and can_trace_again(stored)


def test_tracing_again_onto_a_full_disk_says_so(drawn, hypernet_folder, monkeypatch):
    session = drawn.store.start_session("test", "w6")
    run, _ = execute_edit(drawn, session, EditRequest(BATCH, "agrade", {}, hypernet_folder, 0, keep=0))

    def full(recorder, *_arguments):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Recorder, "write", full)
    with pytest.raises(EditingError, match="could not be written to .*: No space left on device. Free some room"):
        trace_again(drawn, drawn.store.run(run))


def test_too_little_memory_is_a_note_too(drawn, hypernet_folder, monkeypatch):
    def short(recorder, *_arguments):
        raise MemoryError

    session = drawn.store.start_session("test", "w6")
    computed = []
    request = EditRequest(BATCH, "agrade", {}, hypernet_folder, 0)
    run, _ = execute_edit(drawn, session, request, later=lambda *own: computed.append(own))
    [(number, recorder, model)] = computed
    assert number == run and find_record(drawn.store.run(run)) is None
    monkeypatch.setattr(Recorder, "write", short)
    [note] = keep_record(drawn.store, run, recorder, model)
    assert "ran out of memory" in note and drawn.store.run(run).row["result"]["notes"][-1] == note


def test_a_method_that_solves_nothing_keeps_nothing_and_says_nothing(drawn):
    session = drawn.store.start_session("test", "w7")
    run, done = execute_edit(drawn, session, EditRequest(BATCH, "ft", {"steps": 1, "layers": "1"}, None, 0))
    assert not any("kept" in note for note in done.notes) and find_record(drawn.store.run(run)) is None


def test_too_few_rows_fail_the_run(drawn, hypernet_folder):
    session = drawn.store.start_session("test", "w8")
    with pytest.raises(EditingError, match="too few"):
        execute_edit(drawn, session, EditRequest(BATCH, "agrade", {}, hypernet_folder, 0, keep=1))
    assert drawn.store.runs(limit=1)[0]["status"] == "failed"


def test_a_record_of_another_size_is_not_the_runs(drawn, hypernet_folder):
    run = edited(drawn, hypernet_folder)
    assert await_record(drawn, run)
    path = find_record(drawn.store.run(run))
    path.write_bytes(path.read_bytes() + b"\0")
    assert find_record(drawn.store.run(run)) is None and can_trace_again(drawn.store.run(run))


def test_databases_of_one_name_after_another_have_records_of_their_own(tmp_path):
    places = set()
    for name in ("runs.db", "runs.db", "runs.sqlite"):
        if (tmp_path / name).exists():
            (tmp_path / name).rename(tmp_path / "old.db")
        with Store(tmp_path / name) as store:
            places.add(record_path(store, store.start_run(store.start_session("test"), "edit")))
    assert len(places) == 3
