"""The engine's facts, outputs and metrics ↔ rows of the database. It knows no connection and no query."""

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, is_dataclass
from itertools import groupby
from typing import Any

from engine.facts import Fact
from engine.generation import Probe, ProbeSide
from engine.metrics import Instance, Metric, Output

Row = dict[str, Any]
PHASES = ("before", "after")


def clean(text: str | None) -> str | None:
    """The text as UTF-8 can hold it: a lone surrogate becomes "?"."""
    return None if text is None else text.encode("utf-8", "replace").decode("utf-8")


def to_json(value: Any) -> str:
    """JSON that SQLite's json_extract reads: settings dataclasses as objects, NaN and ±∞ as null."""
    return clean(json.dumps(_plain(value), ensure_ascii=False))


def fact_row(run: int, position: int, fact: Fact) -> Row:
    return {
        "run": run,
        "position": position,
        "prompt": clean(fact.prompt),
        "target": clean(fact.target),
        "equivalent_json": to_json(fact.equivalent),
        "unrelated_json": to_json(fact.unrelated),
        "subject": clean(fact.subject),
        "old_target": clean(fact.old_target),
        "source_row": fact.row,
    }


def fact_from_row(row: Row) -> Fact:
    return Fact(
        prompt=row["prompt"],
        target=row["target"],
        equivalent=tuple(json.loads(row["equivalent_json"])),
        unrelated=tuple((prompt, answer) for prompt, answer in json.loads(row["unrelated_json"])),
        subject=row["subject"],
        old_target=row["old_target"],
        row=row["source_row"],
    )


def instance_rows(run: int, fact_id: int, number: int, one: Instance, phases: Sequence[str] = PHASES) -> list[Row]:
    """A row for each phase of the run's instance `number`."""
    sides = (("before", one.before, one.success_before), ("after", one.after, one.success))
    return [
        {
            "run": run,
            "fact": fact_id,
            "instance": number,
            "phase": phase,
            "kind": one.kind,
            "prompt": clean(one.prompt),
            "target": clean(one.target),
            "argmax": clean(output.argmax),
            "generated": clean(output.generated),
            "success_json": to_json(success),
        }
        for phase, output, success in sides
        if phase in phases
    ]


def probe_rows(run: int, number: int, prompt: str, probe: Probe) -> list[Row]:
    """One row, or two when there was an edit, of the run's instance `number`."""
    return [
        {
            "run": run,
            "instance": number,
            "phase": phase,
            "kind": "probe",
            "prompt": clean(prompt),
            "target": "",
            "generated": clean(side.text),
            "success_json": "{}",
            "probabilities_json": to_json(side.top),
        }
        for phase, side in (("before", probe.before), ("after", probe.after))
        if side is not None
    ]


def read_outputs(rows: Sequence[Row]) -> tuple[list[Instance], list[tuple[str, Probe]]]:
    """Instances, and probes with their prompts, from rows sorted by instance; `position` is the place of the row's fact
    in the batch."""
    instances, probes = [], []
    for first, phases in _phases(rows):
        before, after = phases["before"], phases.get("after")
        if first["kind"] == "probe":
            probes.append((first["prompt"], Probe(_probe_side(before), _probe_side(after) if after else None)))
        else:
            after = after or before  # the unedited model's own part of a comparison
            instances.append(
                Instance(
                    fact=first["position"],
                    kind=first["kind"],
                    prompt=first["prompt"],
                    target=first["target"],
                    before=Output(before["argmax"], before["generated"]),
                    after=Output(after["argmax"], after["generated"]),
                    success=json.loads(after["success_json"]),
                    success_before=json.loads(before["success_json"]),
                )
            )
    return instances, probes


def metric_row(run: int, metric: Metric) -> Row:
    return {"run": run, **_plain(metric)}


def metric_from_row(row: Row) -> Metric:
    return Metric(**{name: value for name, value in row.items() if name != "run"})


def run_from_row(row: Row) -> Row:
    """The row with its JSON columns read: hparams, versions and result."""
    texts = {"hparams_json", "versions_json", "result_json"}
    read = {name.removesuffix("_json"): json.loads(row[name]) for name in texts}
    return {name: value for name, value in row.items() if name not in texts} | read


def _phases(rows: Sequence[Row]) -> Iterator[tuple[Row, dict[str, Row]]]:
    for _, pair in groupby(rows, key=lambda row: row["instance"]):
        phases = {row["phase"]: row for row in pair}
        yield phases["before"], phases


def _probe_side(row: Row) -> ProbeSide:
    return ProbeSide(row["generated"], [tuple(one) for one in json.loads(row["probabilities_json"])])


def _plain(value: Any) -> Any:
    if is_dataclass(value):
        value = asdict(value)
    if isinstance(value, Mapping):
        return {str(name): _plain(item) for name, item in value.items()}
    if isinstance(value, (list, tuple, set, frozenset)):
        return [_plain(item) for item in value]
    if isinstance(value, (bool, str)) or value is None:
        return value
    if isinstance(value, int):
        return int(value)
    if hasattr(value, "item"):  # numpy's and torch's scalars
        return _plain(value.item())
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    return str(value)
