"""The table of a comparison, as cells with the best ones marked: what the page, the terminal and the files show alike.

A reading says which protocols stand in it: the appendix's indicators, or what the paper's tables measure.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from engine.comparison import pareto_front
from engine.metrics import SCORES
from studio.comparison_record import Line, StoredComparison

APPENDIX = "exact+agreement"
READINGS = {
    APPENDIX: "exact + agreement (as in the paper’s appendix)",
    "token+label": "token + label (as in the paper’s tables)",
}
NONE = "–"


@dataclass(frozen=True)
class Column:
    """title, and what its numbers are in; `better`: max or min of them is the best, None where neither is."""

    title: str
    unit: str
    value: Callable[[Line], float | None]
    text: Callable[[float], str]
    better: Callable | None = None


@dataclass(frozen=True)
class Cell:
    text: str
    best: bool = False


def columns(reading: str = APPENDIX) -> list[Column]:
    """The table's columns after the method's name."""
    success, locality = SCORES[reading]
    metrics = (("ES", success), ("GS", success), ("LS", locality), ("Score", reading))
    return [
        *(
            Column(name, protocol, lambda line, key=(name, protocol): line.value(*key), "{:.3f}".format, max)
            for name, protocol in metrics
        ),
        Column("Preparation", "s, once", lambda line: line.prepare_seconds, _seconds),
        Column("Editing", "s per 100 facts", lambda line: line.seconds_per_100, _seconds, min),
        Column("Memory", "MB above the model", _megabytes, "{:,.0f}".format, min),
        Column("‖Δθ‖/‖W‖", "", lambda line: line.relative_norm, figures),
    ]


def cells(lines: Sequence[Line], reading: str = APPENDIX) -> list[list[Cell]]:
    """For each line its cells, in the order of `columns`. The unedited model is never the best: nothing was edited.

    Where all methods have the same value none is marked.
    """
    table = []
    for column in columns(reading):
        values = [column.value(line) if line.done else None for line in lines]
        edited = [value for line, value in zip(lines, values) if line.key and value is not None]
        best = column.better(edited) if column.better and len(set(edited)) > 1 else None
        texts = [NONE if value is None else column.text(value) for value in values]
        marked = [best is not None and bool(line.key) and value == best for line, value in zip(lines, values)]
        table.append(list(map(Cell, texts, marked)))
    return [list(row) for row in zip(*table)]


def worth(comparison: StoredComparison, reading: str = APPENDIX) -> tuple[str, str]:
    """The metric by which methods are ranked, with its protocol: the Score, or ES where no fact has all it needs."""
    scored = any(line.metric("Score", reading) for line in comparison.lines)
    return ("Score", reading) if scored else ("ES", SCORES[reading][0])


def fronts(lines: Sequence[Line], metric: tuple[str, str]) -> list[Line]:
    """Of these lines those on the Pareto front of the metric against the seconds of editing, the fastest first.

    To be fast is nothing where the metric is 0.
    """
    known = [line for line in lines if line.value(*metric) and line.seconds_per_100 is not None]
    return [known[index] for index in pareto_front([(line.seconds_per_100, line.value(*metric)) for line in known])]


def figures(value: float) -> str:
    """Three significant figures, as a plain number."""
    if value == 0:
        return "0"
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.1e}" if abs(value) < 1e-4 else f"{value:.3g}"


def reason(line: Line) -> str:
    """Why a line has no figures; "" when it has."""
    return {"done": "", "running": "at work", "cancelled": "cancelled"}.get(line.status, line.error)


def _seconds(value: float) -> str:
    return figures(value) if value >= 0.001 else "0"


def _megabytes(line: Line) -> float | None:
    return None if line.memory_bytes is None else line.memory_bytes / 1e6
