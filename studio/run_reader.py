"""What the database knows of runs: found, counted, and one of them whole. It changes nothing.

    reader.runs(search="paris", status="done")      # rows, newest first; count_runs(…) takes the same filters
    reader.run(run)                                 # StoredRun: everything needed to show it again
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from engine.facts import Fact
from engine.generation import Probe
from engine.metrics import Metric, Outcome
from studio.connection import Connection, StoreError
from studio.rows import Row, clean, fact_from_row, metric_from_row, read_outputs, run_from_row

Status = Literal["running", "done", "failed", "cancelled"]
# A comparison keeps the unedited model's outputs once, with that part of it whose instances are counted alike.
OUTPUTS = """
    SELECT outputs.*, facts.position FROM outputs LEFT JOIN facts ON facts.id = outputs.fact WHERE outputs.run = :run
    UNION ALL
    SELECT outputs.*, facts.position FROM outputs JOIN facts ON facts.id = outputs.fact
    WHERE outputs.run = (SELECT unedited FROM entries WHERE run = :run)
        AND instance IN (SELECT instance FROM outputs WHERE run = :run)
    ORDER BY instance
"""


@dataclass(frozen=True)
class StoredRun:
    """One run, whole.

    row: the columns of `runs`, with `hparams`, `versions` and `result` as dicts. facts: the run's own, or its
    parent's. outcome: instances and metrics as recorded. probes: what was asked of its edit, and what was answered.
    artifacts, children: rows.
    """

    row: Row
    facts: list[Fact]
    outcome: Outcome
    probes: list[tuple[str, Probe]]
    artifacts: list[Row]
    children: list[Row]


class RunReader:
    """Reads the open database. `path`: its file. Every method may be called from any thread."""

    def __init__(self, file: Connection) -> None:
        self._file = file
        self.path = file.path
        self._rows = file.rows

    def runs(
        self,
        *,
        search: str = "",
        kind: str = "",
        status: Status | None = None,
        limit: int = 50,
        offset: int = 0,
    ) -> list[Row]:
        """Runs that are no part of another, newest first: the columns of `runs` (hparams, versions, result as
        dicts), `origin` and `session_name`, `fact_count`, and `metrics`, a list of Metric.

        search: words, the last of which may be a beginning, that stand together in a prompt, target or output
        of the run or of one of its parts, or a piece of its title, method, model or error.
        """
        where, values = _filters(search, kind, status)
        with self._file.lock:
            rows = self._rows(
                "SELECT runs.*, sessions.origin, sessions.name AS session_name,"
                " (SELECT count(*) FROM facts WHERE facts.run = runs.id) AS fact_count"
                f" FROM runs JOIN sessions ON sessions.id = runs.session WHERE {where}"
                " ORDER BY runs.id DESC LIMIT :limit OFFSET :offset",
                values | {"limit": limit, "offset": offset},
            )
            return [run_from_row(row) | {"metrics": self._metrics(row["id"])} for row in rows]

    def count_runs(self, *, search: str = "", kind: str = "", status: Status | None = None) -> int:
        """How many runs `runs` finds without a limit."""
        where, values = _filters(search, kind, status)
        return self._rows(f"SELECT count(*) AS n FROM runs WHERE {where}", values)[0]["n"]

    def run(self, run: int) -> StoredRun:
        """Everything kept of one run. Raises StoreError when there is none with that id."""
        with self._file.lock:
            row = self._require("run", run)
            instances, probes = read_outputs(self._rows(OUTPUTS, {"run": run}))
            children = self._rows(
                "SELECT runs.*, entries.key, entries.name, entries.n_facts, entries.unedited FROM runs"
                " LEFT JOIN entries ON entries.run = runs.id WHERE parent = ? ORDER BY runs.id",
                [run],
            )
            return StoredRun(
                row=run_from_row(row),
                facts=[fact_from_row(fact) for fact in self._facts(run)],
                outcome=Outcome(instances, self._metrics(run)),
                probes=probes,
                artifacts=self._rows("SELECT * FROM artifacts WHERE run = ? ORDER BY id", [run]),
                children=[run_from_row(child) | {"metrics": self._metrics(child["id"])} for child in children],
            )

    def query(self, sql: str, values: Mapping[str, Any]) -> list[Row]:
        """The rows of a SELECT, for what is read across runs."""
        return self._rows(sql, values)

    def _require(self, noun: Literal["run", "session"], number: int) -> Row:
        found = self._rows(f"SELECT * FROM {noun}s WHERE id = ?", [number])
        if not found:
            gone = ": it may have been deleted. Choose another one" if noun == "run" else ""
            raise StoreError(f"There is no {noun} {number} in {self.path}{gone}.")
        return found[0]

    def _facts(self, run: int) -> list[Row]:
        sql = "SELECT * FROM facts WHERE run = {} ORDER BY position"
        return self._rows(sql.format("?"), [run]) or self._rows(
            sql.format("(SELECT parent FROM runs WHERE id = ?)"), [run]
        )

    def _metrics(self, run: int) -> list[Metric]:
        return [metric_from_row(row) for row in self._rows("SELECT * FROM metrics WHERE run = ? ORDER BY rowid", [run])]


def _filters(search: str, kind: str, status: str | None) -> tuple[str, Row]:
    """A WHERE clause over `runs` and its values."""
    where, values = ["runs.parent IS NULL"], {"kind": kind, "status": status}
    where += [f"runs.{name} = :{name}" for name, value in values.items() if value]
    if words := clean(search).replace("\0", " ").split():
        values["words"] = " ".join('"' + word.replace('"', '""') + '"' for word in words) + "*"
        values["piece"] = " ".join(words)
        found = (
            "SELECT run FROM facts WHERE id IN (SELECT rowid FROM facts_fts WHERE facts_fts MATCH :words)"
            " UNION SELECT run FROM outputs WHERE id IN (SELECT rowid FROM outputs_fts WHERE outputs_fts MATCH :words)"
        )
        columns = "runs.title || char(10) || runs.method || char(10) || runs.model || char(10) || runs.error"
        where.append(
            f"(runs.id IN ({found}) OR runs.id IN (SELECT parent FROM runs WHERE id IN ({found}))"
            f" OR instr(lower({columns}), lower(:piece)) > 0)"
        )
    return " AND ".join(where), values
