"""One database under several threads and processes, some of which are killed."""

import os
import sqlite3
import subprocess
import sys
import threading
from dataclasses import replace
from pathlib import Path

import psutil
import pytest
from sqlite_utils import Database

from engine.facts import Fact
from studio.connection import StoreError
from studio.store import INTERRUPTED, Store
from tests.studio.records import INSTANCES, PARIS, PLAIN, plain

ROOT = Path(__file__).parents[2]


def test_many_threads_write_and_read_one_store(store):
    session, errors = store.start_session("studio"), []

    def work(number):
        try:
            run = store.start_run(session, "edit", seed=number)
            with store.transaction():
                store.record_facts(run, [replace(PARIS, row=number), PLAIN])
                store.record_outputs(run, INSTANCES)
            store.runs(search="France")
            store.finish_run(run)
            whole = store.run(run)
            assert whole.facts[0].row == number == whole.row["seed"] and whole.outcome.instances == INSTANCES
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(12)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not errors
    assert store.count_runs(status="done") == 12


def python(code, path):
    """A process of its own that runs `code` with `store` open on `path`, from when it is sent a line."""
    start = f"import sys\nfrom studio.store import Store\nsys.stdin.readline()\nstore = Store(sys.argv[1])\n{code}"
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    return subprocess.Popen([sys.executable, "-c", start, str(path)], text=True, env=environment, **pipes)


def test_many_open_a_new_file_at_once(tmp_path):
    errors = []

    def work(path, barrier):
        barrier.wait(60)
        try:
            with Store(path) as store:
                store.finish_run(store.start_run(store.start_session("studio"), "edit"))
        except BaseException as error:
            errors.append(error)

    for attempt in range(5):
        path, barrier = tmp_path / f"{attempt}.db", threading.Barrier(6)
        threads = [threading.Thread(target=work, args=(path, barrier)) for _ in range(6)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert not errors
        assert Database(path)["runs"].count == 6


@pytest.mark.parametrize(("code", "tries"), [(sqlite3.SQLITE_BUSY, 3), (sqlite3.SQLITE_IOERR, 1)])
def test_a_file_that_another_is_just_switching_to_wal_is_tried_again(tmp_path, monkeypatch, code, tries):
    # The real collision is rare: seen 3 times in 300 rounds of six threads opening one new file.
    enable_wal, seen = Database.enable_wal, []

    def collide(db):
        seen.append(db)
        if len(seen) < 3:
            error = sqlite3.OperationalError("collision")
            error.sqlite_errorcode = code
            raise error
        enable_wal(db)

    monkeypatch.setattr(Database, "enable_wal", collide)
    try:
        Store(tmp_path / "studio.db").close()
    except StoreError as error:
        assert code == sqlite3.SQLITE_IOERR and "collision" in str(error)
    assert len(seen) == tries


def test_two_processes_write_to_one_file(tmp_path):
    path = tmp_path / "studio.db"
    code = """
session = store.start_session('command line')
for _ in range(20):
    store.finish_run(store.start_run(session, 'edit'))
"""
    workers = [python(code, path) for _ in range(2)]
    for worker in workers:
        worker.communicate("go\n", timeout=300)
    assert [worker.returncode for worker in workers] == [0, 0]
    with Store(path) as store:
        assert store.count_runs(status="done") == 40 and store.query("SELECT count(*) AS n FROM sessions", {}) == [{"n": 2}]


def test_runs_stay_running_while_their_process_lives_and_are_marked_once_it_was_killed(tmp_path):
    path = tmp_path / "studio.db"
    code = """
from engine.facts import Fact
session = store.start_session('studio')
run = store.start_run(session, 'compare')
store.record_facts(run, [Fact('kept', 'too')])
store.start_run(session, 'edit', parent=run)
store.finish_run(store.start_run(session, 'edit'))
print('at work', flush=True)
sys.stdin.readline()
transaction = store.transaction()
db = transaction.__enter__()
db['runs'].insert(db['runs'].get(1) | {'id': 99})
print('in the middle of a write', flush=True)
sys.stdin.read()
"""
    process = python(code, path)
    try:
        process.stdin.write("go\n")
        process.stdin.flush()
        assert process.stdout.readline() == "at work\n"
        with Store(path) as store:
            assert store.interrupted() == []
            assert store.count_runs(status="running") == 1
        process.stdin.write("go on\n")
        process.stdin.flush()
        assert process.stdout.readline() == "in the middle of a write\n"
    finally:
        process.kill()
        process.communicate()
    with Store(path) as store:
        rows = {row["id"]: row for row in plain(store)["runs"].rows}
        assert sorted(rows) == [1, 2, 3], "the write in hand is gone, the finished ones stay"
        assert [rows[id]["status"] for id in (1, 2, 3)] == ["failed", "failed", "done"]
        assert [rows[id]["error"] for id in (1, 2, 3)] == [INTERRUPTED, INTERRUPTED, ""]
        assert rows[1]["ended"] is None and rows[1]["duration"] is None
        assert store.run(1).facts == [Fact("kept", "too")]
        assert store.interrupted() == []


def test_a_later_process_with_the_same_number_is_not_taken_for_the_old_one(store, run):
    with store.transaction() as db:
        db["runs"].update(run, {"process_started": psutil.Process().create_time() - 60})
    assert store.interrupted() == [run]
    assert store.run(run).row["error"] == INTERRUPTED


def test_a_run_wrongly_marked_is_put_right_by_the_process_that_ends_it(store, run):
    with store.transaction() as db:
        db["runs"].update(run, {"process_started": 0.0})
    store.interrupted()
    store.finish_run(run)
    assert (store.run(run).row["status"], store.run(run).row["error"]) == ("done", "")


def test_a_reader_of_its_own_sees_a_whole_transaction_or_nothing_of_it(store, run):
    reader = plain(store)
    with store.transaction():
        store.record_facts(run, [PARIS, PLAIN])
        assert reader["facts"].count == 0
    assert reader["facts"].count == 2


@pytest.fixture
def locked(store):
    """Another program's connection to the store's file: what it begins keeps the store from writing, at once."""
    store._file.db.execute("PRAGMA busy_timeout = 0")
    other = sqlite3.connect(store.path, isolation_level=None)
    yield other
    other.close()


def test_an_end_that_could_not_be_written_is_written_with_the_next_transaction(store, run, locked):
    cancelled = store.start_run(1, "edit")
    locked.execute("BEGIN IMMEDIATE")
    with pytest.raises(StoreError, match="kept locked"):
        store.fail_run(run, "Out of patience.")
    with pytest.raises(StoreError, match="kept locked"):
        store.cancel_run(cancelled)
    locked.execute("ROLLBACK")
    assert store.count_runs(status="running") == 2
    with pytest.raises(ZeroDivisionError), store.transaction():
        raise ZeroDivisionError
    store.start_session("studio")
    rows = [store.run(one).row for one in (run, cancelled)]
    assert [(row["status"], row["error"]) for row in rows] == [("failed", "Out of patience."), ("cancelled", "")]
    assert all(row["ended"] and row["duration"] is not None for row in rows)


def test_an_end_that_could_not_be_written_is_written_on_closing(store, run, locked):
    locked.execute("BEGIN IMMEDIATE")
    with pytest.raises(StoreError, match="kept locked"):
        store.fail_run(run, "Out of patience.")
    locked.execute("ROLLBACK")
    store.close()
    with Store(store.path) as again:
        assert again.run(run).row["error"] == "Out of patience."


def test_a_run_undone_with_its_transaction_has_no_end_to_be_written_later(store, run, monkeypatch):
    def fails(*given):
        raise StoreError("No room.")

    with pytest.raises(StoreError, match="No room"), store.transaction(), monkeypatch.context() as patch:
        undone = store.start_run(1, "edit")
        patch.setattr(store, "_write_end", fails)
        store.cancel_run(undone)
    with Store(store.path) as other:
        assert other.start_run(1, "edit") == undone, "another run has its number"
    store.start_session("studio")
    assert store.run(undone).row["status"] == "running"
