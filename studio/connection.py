"""The database file: opened once, checked, brought up to date, shared by all threads under one lock.

It knows nothing of runs; its tables are made in `studio.migrations` and used in `studio.store`.
"""

import sqlite3
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from sqlite_utils import Database

from studio.migrations import migrations, unknown_steps

WAIT_SECONDS = 30.0


class StoreError(ValueError):
    """The database cannot be used, or was asked for what is not in it."""


class Connection:
    """The database at `path`: made, with its folder, when there is none; brought up to date when it is older.

    Raises StoreError when the file is not SQLite, belongs to another program, cannot be written, or was
    written by a newer studio; what is in it is then left as it was.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path).expanduser().absolute()
        self.lock = threading.RLock()
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise StoreError(
                f"The folder {self.path.parent} for the database cannot be made ({error.strerror}). "
                "Choose another place with --db."
            ) from error
        with self._explained():
            connection = sqlite3.connect(
                self.path, timeout=WAIT_SECONDS, isolation_level="IMMEDIATE", check_same_thread=False
            )
        try:
            with self._explained():
                self.db = Database(connection)
                self._refuse_strangers()
                self._enable_wal()
                self.db.execute("PRAGMA foreign_keys = ON")
                self.db.execute("PRAGMA secure_delete = ON")  # what is deleted is overwritten, not only let go
            with self.transaction():
                migrations.apply(self.db)
        except BaseException:
            connection.close()
            raise

    def close(self) -> None:
        with self.lock:
            self.db.close()

    @contextmanager
    def transaction(self) -> Iterator[Database]:
        """The writes inside are kept together, or none of them. Nests. Holds `lock`: keep it short."""
        with self.lock, self._explained():
            if self.db.conn.in_transaction:
                yield self.db
                return
            # Not sqlite-utils' atomic(): its plain BEGIN fails at once where this one waits for another process.
            self.db.execute("BEGIN IMMEDIATE")
            try:
                yield self.db
            except BaseException:
                self.db.rollback()
                raise
            self.db.commit()

    def checkpoint(self) -> None:
        """Move what was written into the file, and empty the log beside it; where another process reads, it does later."""
        with self.lock, self._explained():
            self.db.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()

    def rows(self, sql: str, values: Sequence[Any] | Mapping[str, Any] = ()) -> list[dict[str, Any]]:
        with self.lock, self._explained():
            try:
                return list(self.db.query(sql, values))
            except OverflowError as error:  # 64 bits are all that SQLite has
                raise StoreError("No run has so large a number. The History tab lists those there are.") from error

    def _refuse_strangers(self) -> None:
        if newer := unknown_steps(self.db):
            raise StoreError(
                f"The database {self.path} was written by a newer AGRADE Studio (it has {', '.join(newer)}). "
                "Update the studio, or choose another file with --db."
            )
        if not migrations.applied(self.db) and (names := self.db.table_names()):
            raise StoreError(
                f"The database {self.path} belongs to another program (it has the tables {', '.join(names)}). "
                "Choose another file with --db."
            )

    def _enable_wal(self) -> None:
        # SQLite does not wait when two processes switch a new file at once; the second one finds it done.
        give_up = time.monotonic() + WAIT_SECONDS
        while True:
            try:
                return self.db.enable_wal()
            except sqlite3.OperationalError as error:
                if error.sqlite_errorcode != sqlite3.SQLITE_BUSY or time.monotonic() > give_up:
                    raise
            time.sleep(0.05)

    @contextmanager
    def _explained(self) -> Iterator[None]:
        try:
            yield
        except sqlite3.Error as error:
            raise StoreError(_sentence(error, self.path)) from error


def _sentence(error: sqlite3.Error, path: Path) -> str:
    # Extended codes keep the plain one in their low byte.
    code = (getattr(error, "sqlite_errorcode", None) or 0) & 0xFF
    another = "Choose another file with --db."
    match code:
        case sqlite3.SQLITE_NOTADB:
            return f"The file {path} is not a SQLite database. {another}"
        case sqlite3.SQLITE_READONLY:
            return f"The database {path} is read-only: give yourself the right to write to it and its folder. {another}"
        case sqlite3.SQLITE_CANTOPEN:
            return f"The database {path} cannot be opened: it is a folder, or you may not read or write it. {another}"
        case sqlite3.SQLITE_BUSY | sqlite3.SQLITE_LOCKED:
            return f"The database {path} is kept locked by another program: close that program and try again."
        case sqlite3.SQLITE_FULL:
            return f"The disk with the database {path} is full: make room and try again."
        case sqlite3.SQLITE_CORRUPT:
            return f"The database {path} is damaged ({error}). Move it away to begin a new one, or restore a copy."
        case _:
            return f"The database {path} could not be used: {error}."
