"""What a training's log says: its losses, its validation scores, and both as a figure and a table.

A record is one line of the trainer's log.jsonl, as `engine.trainer` writes it. It knows no job and no database.
"""

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import plotly.graph_objects as go
from plotly.subplots import make_subplots

from engine.trainer import mean_score
from studio.components.markup import figure, text

METRICS = {"ES": "#2f81c7", "GS": "#2a9d6f", "LS": "#d98a1f", "Score": "#b04a9c"}
NAMES = {"L_equiv": "L_equiv, shall follow", "L_unrel": "L_unrel, shall not change"}
LOSSES = {"L_equiv": "#2f81c7", "L_unrel": "#d98a1f"}
DASHES = ("solid", "dash", "dot", "dashdot")
# Lines are seen on a light and on a dark page, words are read on a white one: on the page studio.css gives them its own
# colour, for none is read on both.
INK, GRID = "#6e7684", "rgba(128, 136, 150, 0.25)"
UNUSED_TOOLS = ["select2d", "lasso2d", "zoomin", "zoomout", "autoscale"]
SMOOTHING_STEPS = 12
FIGURE_HEIGHT = 460


@dataclass(frozen=True)
class Validation:
    """The scores after one step: data set → metric (ES, GS, LS, Score) → 0…1, or None where nothing was scored."""

    step: int
    scores: dict[str, dict[str, float | None]]
    mean_score: float


@dataclass(frozen=True)
class Curve:
    """A training so far. steps, equivalent (L_equiv), unrelated (L_unrel): a value a step, in nats per prompt."""

    steps: list[int]
    equivalent: list[float]
    unrelated: list[float]
    validations: list[Validation]

    @property
    def best(self) -> Validation | None:
        """The validation whose checkpoint is kept as the best; of equal ones the last."""
        return max(self.validations, key=lambda one: (one.mean_score, one.step), default=None)


def read_log(path: Path) -> list[dict[str, Any]]:
    """The records of a log.jsonl; [] when there is none. A line cut short by a crash is left out."""
    if not path.is_file():
        return []
    records = []
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            record = json.loads(line)
        except ValueError:
            continue
        if isinstance(record, dict) and isinstance(record.get("step"), int):
            records.append(record)
    return records


def curve_of(records: Iterable[Mapping[str, Any]]) -> Curve:
    """The curve of a log's records, or of a card's validations, which hold no losses."""
    records = list(records)
    losses = [one for one in records if "loss_equivalent" in one and "loss_unrelated" in one]
    return Curve(
        [one["step"] for one in losses],
        [one["loss_equivalent"] for one in losses],
        [one["loss_unrelated"] for one in losses],
        [Validation(one["step"], scores, mean_score(one)) for one in records if (scores := _scores(one))],
    )


def loss_figure(curve: Curve) -> go.Figure:
    """Losses above, each step faint and its running mean strong; validation scores below once there are any."""
    rows = 2 if curve.validations else 1
    figure = make_subplots(rows, 1, shared_xaxes=True, vertical_spacing=0.09)
    for name, values in (("L_equiv", curve.equivalent), ("L_unrel", curve.unrelated)):
        if curve.steps and not any(values):
            continue  # there are no such prompts
        line = {"color": LOSSES[name]}
        faint = {"mode": "lines", "line": line | {"width": 1}, "opacity": 0.35, "showlegend": False}
        strong = {"mode": "lines" if len(values) > 1 else "markers", "line": line | {"width": 2}, "marker": line}
        hover = f"step %{{x}}<br>{name} %{{y:.3f}}<extra></extra>"
        figure.add_scatter(x=curve.steps, y=values, hoverinfo="skip", **faint, row=1, col=1)
        figure.add_scatter(
            x=curve.steps, y=running_mean(values), name=NAMES[name], hovertemplate=hover, **strong, row=1, col=1
        )
    thin = {"color": INK, "width": 1}
    figure.add_scatter(x=[None], y=[None], mode="lines", line=thin, opacity=0.5, name="thin: each step", row=1, col=1)
    sources = _sources(curve)
    for place, source in enumerate(sources):
        dash = DASHES[place % len(DASHES)]
        for metric, color in METRICS.items():
            points = [(one.step, one.scores.get(source, {}).get(metric)) for one in curve.validations]
            figure.add_scatter(
                x=[step for step, _ in points],
                y=[value for _, value in points],
                name=metric,
                legend="legend2",
                showlegend=place == 0,
                mode="lines+markers",
                line={"color": color, "width": 2, "dash": dash},
                marker={"color": color, "size": 6},
                hovertemplate=f"step %{{x}}<br>{metric} {text(source)} %{{y:.3f}}<extra></extra>",
                row=2,
                col=1,
            )
        if len(sources) > 1:
            key = {"mode": "lines", "line": {"color": INK, "dash": dash}, "name": text(source), "legend": "legend2"}
            figure.add_scatter(x=[None], y=[None], **key, row=2, col=1)
    _dress(figure, rows)
    return figure


def running_mean(values: list[float], span: int = SMOOTHING_STEPS) -> list[float]:
    """The mean of each value and of those before it, at most `span` of them."""
    return [sum(part) / len(part) for part in (values[max(0, end - span) : end] for end in range(1, len(values) + 1))]


def validation_table(curve: Curve) -> str:
    """The validations as an HTML table, newest first, the best marked; "" without any."""
    if not curve.validations:
        return ""
    sources, best = _sources(curve), curve.best
    above = "".join(f'<th colspan="{len(METRICS)}" scope="colgroup">{text(source)}</th>' for source in sources)
    heads = "".join(f'<th scope="col">{metric}</th>' for _ in sources for metric in METRICS)
    body = []
    for one in reversed(curve.validations):
        values = [one.scores.get(source, {}).get(metric) for source in sources for metric in METRICS]
        cells = "".join(f"<td>{figure(value)}</td>" for value in values)
        mark = ' <span class="tag">best</span>' if one is best else ""
        body.append(f'<tr{" class=best" if one is best else ""}><th scope="row">{one.step}{mark}</th>{cells}</tr>')
    return (
        '<div class="wide"><table class="figures"><caption>Validation: exact ES and GS, LS by agreement</caption>'
        f'<thead><tr><th rowspan="2" scope="col">Step</th>{above}</tr><tr>{heads}</tr></thead>'
        f"<tbody>{''.join(body)}</tbody></table></div>"
    )


def _scores(record: Mapping[str, Any]) -> dict[str, dict[str, float | None]]:
    scores: dict[str, dict[str, float | None]] = {}
    for key, value in record.items():
        source, _, metric = key.rpartition(" ")
        if source and metric in METRICS:
            scores.setdefault(source, {})[metric] = value
    return scores


def _sources(curve: Curve) -> list[str]:
    return list(dict.fromkeys(source for one in curve.validations for source in one.scores))


def _dress(figure: go.Figure, rows: int) -> None:
    legend = {"orientation": "h", "x": 0, "xanchor": "left", "bgcolor": "rgba(0,0,0,0)"}
    figure.update_layout(
        height=FIGURE_HEIGHT if rows == 2 else FIGURE_HEIGHT * 5 // 8,
        margin={"l": 56, "r": 12, "t": 34, "b": 44},
        paper_bgcolor="rgba(0,0,0,0)",
        plot_bgcolor="rgba(0,0,0,0)",
        font={"color": INK, "size": 12},
        hovermode="closest",
        modebar={"bgcolor": "rgba(0,0,0,0)", "color": INK, "remove": UNUSED_TOOLS},
        legend=legend | {"y": 1.01, "yanchor": "bottom"},
        legend2=legend | {"y": -0.16, "yanchor": "top"},
    )
    figure.update_xaxes(gridcolor=GRID, zeroline=False, linecolor=GRID)
    figure.update_yaxes(gridcolor=GRID, zeroline=False, linecolor=GRID)
    figure.update_xaxes(title_text="step", row=rows, col=1)
    figure.update_yaxes(title_text="loss (nats per prompt)", rangemode="tozero", row=1, col=1)
    if rows == 2:
        figure.update_yaxes(title_text="validation", range=[-0.03, 1.03], row=2, col=1)
