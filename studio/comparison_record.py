"""A comparison as the database keeps it: a line for each method and size, and every fact's outputs side by side."""

import json
from dataclasses import dataclass, field
from itertools import groupby
from typing import Any

from engine.facts import Fact
from engine.metrics import Kind, Metric, Output
from studio.connection import StoreError
from studio.rows import Row
from studio.store import Store

# ES and GS by the exact protocol, LS by agreement: the appendix's indicators.
VERDICTS = """
    SELECT outputs.run, facts.position, outputs.kind, count(*) AS n,
        sum(json_extract(success_json, iif(outputs.kind = 'unrelated', '$.agreement', '$.exact'))) AS good
    FROM runs JOIN outputs ON outputs.run = runs.id JOIN facts ON facts.id = outputs.fact
    WHERE runs.parent = :comparison
    GROUP BY outputs.run, facts.position, outputs.kind
"""
ANSWERS = """
    SELECT outputs.* FROM runs JOIN outputs ON outputs.run = runs.id JOIN facts ON facts.id = outputs.fact
    WHERE runs.parent = :comparison AND facts.position = :position
    ORDER BY outputs.instance, outputs.run
"""


@dataclass(frozen=True)
class Line:
    """One method at one size, finished or not. key "" is the unedited model.

    seconds: of the edit alone; memory_bytes: the most held above the loaded model; relative_norm: ‖Δθ‖/‖W‖.
    None: not known, or for the unedited model. settings, modules and notes are those of the finished edit.
    """

    run: int
    key: str
    name: str
    method: str
    n_facts: int
    status: str
    error: str
    metrics: list[Metric]
    seconds: float | None = None
    prepare_seconds: float | None = None
    score_seconds: float | None = None
    peak_memory_bytes: int | None = None
    memory_bytes: int | None = None
    relative_norm: float | None = None
    hypernet: str | None = None
    settings: dict[str, Any] = field(default_factory=dict)
    modules: list[dict[str, Any]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    @property
    def done(self) -> bool:
        return self.status == "done"

    @property
    def seconds_per_100(self) -> float | None:
        """Seconds of editing for 100 facts, at this size's rate."""
        return None if self.seconds is None else 100 * self.seconds / self.n_facts

    def metric(self, name: str, protocol: str) -> Metric | None:
        return next((one for one in self.metrics if (one.name, one.protocol) == (name, protocol)), None)

    def value(self, name: str, protocol: str) -> float | None:
        one = self.metric(name, protocol)
        return one.value if one else None


@dataclass(frozen=True)
class StoredComparison:
    """A comparison's run: its row, its facts, and its lines, the unedited model first.

    lines: of the whole batch; sweep: those of smaller sizes. waiting: the names of the methods that were not begun.
    """

    number: int
    row: Row
    facts: list[Fact]
    lines: list[Line]
    sweep: list[Line]
    waiting: list[str]

    @property
    def plan(self) -> Row:
        """What was asked for, as `studio.comparisons.plan_of` wrote it."""
        return self.row["hparams"]

    @property
    def edited(self) -> list[Line]:
        """The methods that edited the whole batch."""
        return [line for line in self.lines if line.key and line.done]


@dataclass(frozen=True)
class Verdict:
    """How many of a fact's instances of one kind succeeded: `good` of `n`."""

    good: float
    n: int

    @property
    def share(self) -> float:
        return self.good / self.n


@dataclass(frozen=True)
class Answer:
    """What one method's edited model says to an instance, and its success under each protocol that applies."""

    output: Output
    success: dict[str, float | None]


@dataclass(frozen=True)
class Question:
    """One instance of a fact, with the answers by the run of the line that gave them."""

    kind: Kind
    prompt: str
    target: str
    answers: dict[int, Answer]


def read_comparison(store: Store, number: int) -> StoredComparison:
    """What is kept of a comparison so far. Raises StoreError when the run is none."""
    run = store.run(number)
    if run.row["kind"] != "compare":
        raise StoreError(f"Run {number} is no comparison: open it in the History tab.")
    lines = [_line(child) for child in run.children]
    whole = [line for line in lines if line.n_facts == len(run.facts)]
    begun = {line.key for line in whole}
    return StoredComparison(
        number,
        run.row,
        run.facts,
        whole,
        [line for line in lines if line.n_facts != len(run.facts)],
        [entry["name"] for entry in run.row["hparams"].get("entries", []) if entry["key"] not in begun],
    )


def read_verdicts(store: Store, number: int) -> dict[int, dict[int, dict[Kind, Verdict]]]:
    """Line's run → fact's position → kind → how many succeeded, by the appendix's indicators."""
    found: dict[int, dict[int, dict[Kind, Verdict]]] = {}
    for row in store.query(VERDICTS, {"comparison": number}):
        verdict = Verdict(row["good"] or 0.0, row["n"])
        found.setdefault(row["run"], {}).setdefault(row["position"], {})[row["kind"]] = verdict
    return found


def read_questions(store: Store, number: int, position: int) -> list[Question]:
    """Every instance of the fact at `position`, with all answers to it."""
    rows = store.query(ANSWERS, {"comparison": number, "position": position})
    questions = []
    for _, group in groupby(rows, key=lambda row: row["instance"]):
        same = list(group)
        first = same[0]
        answers = {
            row["run"]: Answer(Output(row["argmax"], row["generated"]), json.loads(row["success_json"])) for row in same
        }
        questions.append(Question(first["kind"], first["prompt"], first["target"], answers))
    return questions


def _line(row: Row) -> Line:
    result = row["result"]
    peak, base = row["peak_memory_bytes"], result.get("base_memory_bytes")
    names = ("seconds", "prepare_seconds", "score_seconds", "relative_norm", "hypernet", "settings", "modules", "notes")
    return Line(
        run=row["id"],
        key=row["key"],
        name=row["name"],
        method=row["method"],
        n_facts=row["n_facts"],
        status=row["status"],
        error=row["error"],
        metrics=row["metrics"],
        peak_memory_bytes=peak,
        memory_bytes=None if peak is None or base is None else max(0, peak - base),
        **{name: result[name] for name in names if name in result},
    )
