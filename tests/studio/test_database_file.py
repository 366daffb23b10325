"""The database's file: its shape, its migrations, and files that cannot be used."""

import os
import sqlite3
import tempfile
from pathlib import Path

import pytest
from sqlite_utils import Database

from engine.facts import Fact
from engine.metrics import Output
from studio.connection import StoreError
from studio.migrations import migrations, unknown_steps
from studio.store import Store
from tests.studio.records import PARIS, PLAIN, edit, plain


def test_the_file_is_plain_sqlite_in_the_shape_promised(store):
    db = plain(store)
    assert db.journal_mode == "wal"
    tables = {"sessions", "runs", "facts", "outputs", "metrics", "artifacts", "entries"}
    assert tables | {"facts_fts", "outputs_fts"} <= set(db.table_names())
    assert all(db[name].strict for name in tables)
    with store.transaction() as own:
        assert own.execute("PRAGMA foreign_keys").fetchone() == (1,)
    with pytest.raises(StoreError, match="could not be used"), store.transaction() as own:
        own["runs"].update(store.start_run(store.start_session("studio"), "edit"), {"status": "paused"})


def test_folders_on_the_way_are_made_and_a_file_opens_again(tmp_path):
    path = tmp_path / "a" / "b" / "studio 1%?#.db"
    with Store(path) as store:
        run = edit(store, store.start_session("studio"))
    with Store(path) as store:
        assert store.run(run).facts == [PARIS, PLAIN]
    assert path.exists()


def apply_until(path, step):
    """A database as the studio made it before `step`."""
    db = Database(path)
    migrations.apply(db, stop_before=step)
    db.execute("PRAGMA foreign_keys = ON")
    return db


def test_a_database_from_before_search_is_brought_up_to_date_with_its_rows(tmp_path):
    path = tmp_path / "old.db"
    old = apply_until(path, "m002_search")
    assert "facts_fts" not in old.table_names()
    times = {"started": "2026-01-01T00:00:00.000+00:00"}
    old["sessions"].insert({"id": 1, "origin": "studio", "name": "", **times})
    old["runs"].insert(
        {"id": 1, "session": 1, "kind": "edit", "title": "", "method": "agrade", "hparams_json": "{}", "model": "m"}
        | {"model_sha": "", "status": "done", "versions_json": "{}", "pid": 1, "process_started": 0.0, **times}
    )
    old["facts"].insert(
        {"run": 1, "position": 0, "prompt": "Old prompt", "target": "Old target", "equivalent_json": '["Again"]'}
        | {"unrelated_json": '[["Other", "way"]]', "subject": "", "old_target": "", "source_row": 2}
    )
    sides = [("before", "ancient", '{"exact": 0.0}'), ("after", "modern", '{"exact": 1.0}')]
    old["outputs"].insert_all(
        {"run": 1, "fact": 1, "instance": 0, "phase": phase, "kind": "edit", "prompt": "Old prompt", "target": "t"}
        | {"argmax": said, "success_json": success}
        for phase, said, success in sides
    )
    old.close()
    with Store(path) as store:
        whole = store.run(1)
        assert whole.facts == [Fact("Old prompt", "Old target", ("Again",), (("Other", "way"),), row=2)]
        assert whole.outcome.instances[0].after == Output("modern")
        assert [store.count_runs(search=word) for word in ("again", "ancient", "nothing")] == [1, 1, 0]
        assert edit(store, 1, [PARIS]) == 2
        assert store.count_runs(search="France") == 1


@pytest.mark.parametrize("step", ["m002_search", "m003_comparisons"])
def test_a_step_on_the_way_up_leaves_the_same_schema_as_from_blank(tmp_path, store, step):
    apply_until(tmp_path / "old.db", step).close()
    with Store(tmp_path / "old.db") as risen:
        assert plain(risen).schema == plain(store).schema
        names = [step.name for step in migrations.applied(plain(risen))]
        assert names == [
            "m001_sessions_to_artifacts", "m002_search", "m003_comparisons", "m004_artifact_settings", "m005_run_numbers",
        ]  # fmt: skip


def test_a_migration_that_fails_leaves_the_file_as_it_was(tmp_path, monkeypatch):
    path = tmp_path / "old.db"
    apply_until(path, "m002_search").close()
    before = Database(path).schema

    def apply(db):
        db.execute("CREATE TABLE half (a)")
        raise sqlite3.OperationalError("disk I/O error")

    monkeypatch.setattr(migrations, "apply", apply)
    with pytest.raises(StoreError, match="disk I/O error"):
        Store(path)
    assert Database(path).schema == before


def test_a_file_of_a_newer_studio_is_refused_and_left_alone(tmp_path):
    path = tmp_path / "new.db"
    Store(path).close()
    db = Database(path)
    db["_sqlite_migrations"].insert({"migration_set": "agrade-studio", "name": "m999_later", "applied_at": ""})
    assert unknown_steps(db) == ["m999_later"]
    db.close()
    with pytest.raises(StoreError, match="newer AGRADE Studio.*m999_later.*Update"):
        Store(path)


def test_a_file_of_another_program_is_refused_and_left_alone(tmp_path):
    path = tmp_path / "recipes.db"
    db = Database(path)
    db["recipes"].insert({"title": "Bread"})
    db.close()
    before = path.read_bytes()
    with pytest.raises(StoreError, match="another program.*recipes"):
        Store(path)
    assert path.read_bytes() == before


@pytest.mark.parametrize(
    "content", [b"prompt,target\nA,B\n" * 200, bytes(range(256)) * 20, b"SQLite format 3\0" + b"x" * 4096]
)
def test_a_file_that_is_not_a_database_is_refused_and_left_alone(tmp_path, content):
    path = tmp_path / "facts.csv"
    path.write_bytes(content)
    with pytest.raises(StoreError, match="facts.csv is not a SQLite database.*--db"):
        Store(path)
    assert path.read_bytes() == content


def test_an_empty_file_becomes_a_database(tmp_path):
    (tmp_path / "empty.db").touch()
    with Store(tmp_path / "empty.db") as store:
        assert store.runs() == []


def test_a_folder_and_a_path_through_a_file_are_named(tmp_path):
    with pytest.raises(StoreError, match="cannot be opened: it is a folder"):
        Store(tmp_path)
    (tmp_path / "file").touch()
    with pytest.raises(StoreError, match="folder .*file for the database cannot be made"):
        Store(tmp_path / "file" / "studio.db")


@pytest.mark.skipif(os.name != "posix", reason="rights are POSIX's")
def test_a_read_only_database_is_named_and_left_alone():
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "studio.db"
        Store(path).close()
        path.chmod(0o444)
        Path(folder).chmod(0o555)
        try:
            said = _as_nobody(lambda: Store(path))
        finally:
            Path(folder).chmod(0o755)
    assert "is read-only" in said and "right to write" in said


def _as_nobody(action):
    """The StoreError that a user without root's powers gets."""
    if os.geteuid() != 0:
        with pytest.raises(StoreError) as caught:
            action()
        return str(caught.value)
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            os.setuid(65534)
            action()
            said = "nothing"
        except BaseException as error:
            said = f"{type(error).__name__}: {error}"
        os.write(write, said.encode())
        os._exit(0)
    os.waitpid(child, 0)
    os.close(write)
    with os.fdopen(read) as pipe:
        return pipe.read().removeprefix("StoreError: ")


def test_a_database_damaged_while_open_is_named(tmp_path):
    path = tmp_path / "studio.db"
    with Store(path) as store:
        edit(store, store.start_session("studio"))
    size = path.stat().st_size
    with path.open("r+b") as file:
        file.seek(4096)
        file.write(b"x" * (size - 4096))
    with pytest.raises(StoreError, match="is damaged"):
        Store(path)


def test_a_closed_store_says_so(tmp_path):
    store = Store(tmp_path / "studio.db")
    store.close()
    with pytest.raises(StoreError, match="could not be used: .*closed"):
        store.runs()
