"""Everything the studio did, in one SQLite file: sessions → runs → facts → outputs, metrics, artifacts.

    store = Store(path)
    session = store.start_session("studio", workspace)
    run = store.start_run(session, "edit", method="agrade", hparams=settings, model=…, model_sha=…, seed=0)
    with store.transaction():                       # several writes, all or none
        store.record_facts(run, facts)
        store.record_outputs(run, outcome.instances)
        store.record_metrics(run, outcome.metrics)
    store.add_artifact(run, "delta", path)
    store.finish_run(run, peak_memory_bytes=…, result={…})      # or fail_run(run, sentence), cancel_run(run)
    store.delete_run(run)                           # and nothing of it is left in the file

A run is a row before its work begins, so that a crash leaves a trace: opening the file marks the running rows
of dead processes as failed. The end of a failed or cancelled run that cannot be written (the file is locked, its disk
full) raises StoreError, and is written with the next transaction that succeeds. Every method may be called from any
thread. The schema is in `studio.migrations`, the engine's objects as rows in `studio.rows`. It knows no model and no
interface.
"""

import hashlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from platform import python_version
from typing import Any

from sqlite_utils import Database

from engine.facts import Fact
from engine.generation import Probe
from engine.metrics import Instance, Metric
from studio.connection import Connection, StoreError
from studio.process import is_alive, this_process
from studio.rows import PHASES, Row, clean, fact_row, instance_rows, metric_row, probe_rows, run_from_row, to_json
from studio.run_reader import RunReader, Status, StoredRun

INTERRUPTED = "The studio stopped while this run was going on."
LIBRARIES = ("torch", "transformers", "accelerate", "safetensors", "gradio", "sqlite-utils")


class Store(RunReader):
    """The database at `path`: made, with its folder, when there is none; brought up to date when it is older.

    Raises StoreError when the file is not SQLite, belongs to another program, cannot be written, or was
    written by a newer studio; what is in it is then left as it was. Use as a context manager, or `close`.
    """

    def __init__(self, path: str | Path) -> None:
        super().__init__(Connection(path))
        self._unwritten: dict[int, Row] = {}  # failed or cancelled run → its end
        self._pid, self._process_started = this_process()
        self._versions = to_json({"python": python_version()} | {name: version(name) for name in LIBRARIES})
        try:
            self.interrupted()
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> "Store":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        if self._unwritten:
            with suppress(StoreError), self.transaction():
                pass
        self._file.close()

    @contextmanager
    def transaction(self) -> Iterator[Database]:
        """The writes inside are kept together, or none of them. Nests. Holds the store's lock: keep it short."""
        with self._file.lock:
            late = {} if self._file.db.conn.in_transaction else dict(self._unwritten)
            with self._file.transaction() as db:
                for run, end in late.items():
                    self._write_end(run, end)
                yield db
            for run in late:
                del self._unwritten[run]

    def interrupted(self) -> list[int]:
        """Mark the running runs of processes that are no more as failed; their ids. Done on opening."""
        with self.transaction():
            rows = self._rows("SELECT id, pid, process_started FROM runs WHERE status = 'running'")
            dead = [row["id"] for row in rows if not is_alive(row["pid"], row["process_started"])]
            for run in dead:
                # Its end is unknown: neither `ended` nor `duration` is made up.
                self._file.db.table("runs").update(run, {"status": "failed", "error": INTERRUPTED})
        return dead

    def start_session(self, origin: str, name: str = "") -> int:
        """A new session's id. origin: "studio" or "command line"; name: the workspace or the command."""
        with self.transaction():
            return self._insert("sessions", {"origin": origin, "name": clean(name), "started": _now()})

    def start_run(
        self,
        session: int,
        kind: str,
        *,
        title: str = "",
        method: str = "",
        hparams: Any = None,
        model: str = "",
        model_sha: str = "",
        seed: int | None = None,
        parent: int | None = None,
    ) -> int:
        """Log a run before its work begins; its id. hparams: a mapping or a settings dataclass.

        parent: the run this one is a part of, as each method's run is of a comparison.
        """
        if seed is not None and not -(2**63) <= seed < 2**63:
            raise StoreError(f"The seed {seed} is too large to be kept: choose one below 2^63.")
        with self.transaction() as db:
            self._require("session", session)
            if parent is not None:
                self._require("run", parent)
            db.execute("UPDATE run_numbers SET last = last + 1")
            row = {
                "id": db.execute("SELECT last FROM run_numbers").fetchone()[0],
                "session": session,
                "parent": parent,
                "kind": kind,
                "title": clean(title),
                "method": method,
                "hparams_json": to_json({} if hparams is None else hparams),
                "model": clean(model),
                "model_sha": model_sha,
                "seed": seed,
                "status": "running",
                "started": _now(),
                "versions_json": self._versions,
                "pid": self._pid,
                "process_started": self._process_started,
            }
            return self._insert("runs", row)

    def finish_run(
        self, run: int, *, peak_memory_bytes: int | None = None, result: Mapping[str, Any] | None = None
    ) -> None:
        """The run is done. result: what else is worth keeping (notes, split times, norms), kept as JSON."""
        self._end(run, "done", "", peak_memory_bytes, result)

    def fail_run(self, run: int, error: str, *, peak_memory_bytes: int | None = None) -> None:
        """The run failed. error: the sentence shown to the person who started it."""
        self._end(run, "failed", error, peak_memory_bytes, None)

    def cancel_run(self, run: int, *, peak_memory_bytes: int | None = None) -> None:
        self._end(run, "cancelled", "", peak_memory_bytes, None)

    def add_note(self, run: int, note: str) -> None:
        """What a finished run's reader should know besides, such as a file that could not be written."""
        with self.transaction():
            result = run_from_row(self._require("run", run))["result"]
            result["notes"] = [*result.get("notes", []), clean(note)]
            self._file.db.table("runs").update(run, {"result_json": to_json(result)})

    def record_facts(self, run: int, facts: Iterable[Fact]) -> None:
        """The batch of a run, in its order. A comparison records it once: its parts use their parent's facts."""
        with self.transaction():
            self._require("run", run)
            self._file.db.table("facts").insert_all(fact_row(run, place, fact) for place, fact in enumerate(facts))

    def record_outputs(self, run: int, instances: Iterable[Instance], phases: Sequence[str] = PHASES) -> None:
        """Both outputs of every instance, or that of one phase. Raises StoreError when its fact was not recorded."""
        with self.transaction():
            self._require("run", run)
            ids = [row["id"] for row in self._facts(run)]
            rows = []
            for number, one in enumerate(instances, self._next_instance(run)):
                if not 0 <= one.fact < len(ids):
                    raise StoreError(
                        f"An output of run {run} belongs to fact {one.fact}, but facts 0 to {len(ids) - 1} were "
                        "recorded: record the run's facts first."
                        if ids
                        else f"Run {run} has no facts yet: record them before its outputs."
                    )
                rows += instance_rows(run, ids[one.fact], number, one, phases)
            self._file.db.table("outputs").insert_all(rows)

    def record_probe(self, run: int, prompt: str, probe: Probe) -> None:
        """A free prompt's continuation and likeliest next tokens, before and, where there is one, after the edit."""
        with self.transaction():
            self._require("run", run)
            self._file.db.table("outputs").insert_all(probe_rows(run, self._next_instance(run), prompt, probe))

    def record_metrics(self, run: int, metrics: Iterable[Metric]) -> None:
        """A run's metrics; one recorded again under the same name and protocol takes the old one's place."""
        with self.transaction():
            self._require("run", run)
            self._file.db.table("metrics").insert_all((metric_row(run, one) for one in metrics), replace=True)

    def add_artifact(
        self, run: int, kind: str, path: str | Path, settings: Mapping[str, Any] | None = None
    ) -> None:
        """A file the run wrote (delta, checkpoint, picture, …), with its sha256 and size in bytes.

        settings: what it was made by, where the run's own do not say. A file written again takes the old one's place.
        """
        path = Path(path).absolute()
        try:
            with path.open("rb") as file:
                digest = hashlib.file_digest(file, "sha256").hexdigest()
            size = path.stat().st_size
        except OSError as error:
            raise StoreError(f"{path} cannot be read ({error.strerror}), so run {run} keeps no {kind}.") from error
        with self.transaction():
            self._require("run", run)
            row = {"run": run, "kind": kind, "path": clean(str(path)), "sha256": digest, "bytes": size}
            self._file.db.table("artifacts").delete_where("run = ? AND path = ?", [run, row["path"]])
            self._insert("artifacts", row | {"settings_json": to_json(settings or {})})

    def deletable(self, run: int) -> StoredRun:
        """The run, if it may be deleted. Raises StoreError when it is not there, a part of another, or going on."""
        stored = self.run(run)
        if (parent := stored.row["parent"]) is not None:
            raise StoreError(f"Run {run} is a part of the comparison {parent}: delete that one.")
        if stored.row["status"] == "running":
            raise StoreError(f"Run {run} is still going on: cancel it, then delete it.")
        return stored

    def delete_run(self, run: int) -> None:
        """Delete a run with its parts and all that is kept of them; the file then holds none of their texts.

        Raises StoreError as `deletable` does.
        """
        with self.transaction() as db:
            self.deletable(run)
            db.table("runs").delete(run)
            for name in ("facts", "outputs"):
                db.table(name).optimize()  # the search index has deleted words until its parts are merged
        self._file.checkpoint()

    def _end(
        self, run: int, status: Status, error: str, peak_memory_bytes: int | None, result: Mapping[str, Any] | None
    ) -> None:
        end = {
            "status": status,
            "error": clean(error),
            "ended": _now(),
            "peak_memory_bytes": peak_memory_bytes,
            "result_json": to_json(result or {}),
        }
        self._require("run", run)
        with self._file.lock:
            nested = self._file.db.conn.in_transaction  # the run itself may be undone with the writes around
            try:
                with self.transaction():
                    self._write_end(run, end)
            except StoreError:
                if status != "done" and not nested:
                    self._unwritten[run] = end
                raise

    def _write_end(self, run: int, end: Row) -> None:
        for row in self._rows("SELECT started FROM runs WHERE id = ?", [run]):  # none where it was deleted meanwhile
            seconds = (datetime.fromisoformat(end["ended"]) - datetime.fromisoformat(row["started"])).total_seconds()
            self._file.db.table("runs").update(run, end | {"duration": max(0.0, seconds)})

    def _insert(self, table: str, row: Row) -> int:
        return self._file.db.table(table).insert(row).last_rowid

    def _next_instance(self, run: int) -> int:
        sql = "SELECT coalesce(max(instance) + 1, 0) AS next FROM outputs WHERE run = ?"
        return self._rows(sql, [run])[0]["next"]


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="milliseconds")
