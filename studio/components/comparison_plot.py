"""A comparison as figures: scores with their intervals, score against seconds, memory, and the sweep over sizes.

Each is None where there is nothing to draw. It knows no job, no database and no page.
"""

import math
from collections.abc import Sequence

import plotly.graph_objects as go
from plotly.subplots import make_subplots

from engine.comparison import UNEDITED
from engine.metrics import SCORES
from studio.comparison_record import Line, StoredComparison
from studio.comparison_table import APPENDIX, fronts, worth
from studio.components.markup import text
from studio.components.training_plot import GRID, INK, METRICS, UNUSED_TOOLS

# Told apart on a light and on a dark page; an ablation has its method's colour in another shape.
COLORS = (
    "#1f8a70", "#2f81c7", "#d98a1f", "#b04a9c", "#7a6ff0", "#c8553d", "#6b8e23", "#3aa6b9", "#a0713a", "#d0629a",
    "#8a94a6",
)  # fmt: skip
SYMBOLS = ("circle", "diamond", "square", "triangle-up", "x")
DASHES = ("solid", "dash", "dot", "dashdot", "longdash")
HEIGHT = 360
MARGIN = 1.08  # by which a logarithmic axis goes beyond its last numbers


def figures_of(comparison: StoredComparison, reading: str = APPENDIX) -> dict[str, go.Figure]:
    """Every figure that can be drawn, by the name of its file."""
    found = {
        "scores": scores_figure(comparison, reading),
        "score-against-seconds": pareto_figure(comparison, reading),
        "memory": memory_figure(comparison),
        "sizes": sweep_figure(comparison, reading),
    }
    return {name: figure for name, figure in found.items() if figure is not None}


def scores_figure(comparison: StoredComparison, reading: str = APPENDIX) -> go.Figure | None:
    """ES, GS, LS and Score of each method as bars with 95 % intervals (Table 1)."""
    lines = [line for line in comparison.lines if line.done]
    if not lines:
        return None
    success, locality = SCORES[reading]
    figure = go.Figure()
    for name, protocol in (("ES", success), ("GS", success), ("LS", locality), ("Score", reading)):
        found = [line.metric(name, protocol) for line in lines]
        if not any(found):
            continue
        figure.add_bar(
            x=[text(line.name) for line in lines],
            y=[one.value if one else None for one in found],
            name=name,
            marker={"color": f"{METRICS[name]}80", "line": {"color": METRICS[name], "width": 1}},  # the whisker is seen
            error_y=_interval(found),
            customdata=[[protocol, one.n] if one else [protocol, 0] for one in found],
            hovertemplate="%{x}<br>" + name + " %{customdata[0]} %{y:.3f}, n %{customdata[1]:,}<extra></extra>",
        )
    _dress(figure, HEIGHT + 60)
    figure.update_layout(barmode="group", bargap=0.25, bargroupgap=0.05)
    figure.update_xaxes(automargin=True)
    figure.update_yaxes(range=[0, 1.03])
    return figure


def pareto_figure(comparison: StoredComparison, reading: str = APPENDIX) -> go.Figure | None:
    """Score against the seconds of editing 100 facts, with the line of those methods that nothing beats in both."""
    metric = worth(comparison, reading)
    lines = [line for line in comparison.edited if line.value(*metric) is not None and line.seconds_per_100]
    if not lines:
        return None
    figure = go.Figure()
    front = fronts(lines, metric)
    figure.add_scatter(
        x=[line.seconds_per_100 for line in front],
        y=[line.value(*metric) for line in front],
        mode="lines",
        line={"color": INK, "width": 1.5, "dash": "dot", "shape": "hv"},
        name="Pareto front",
        hoverinfo="skip",
    )
    best = {line.key for line in front}
    for line in lines:
        color, symbol, _ = _style(comparison, line.key)
        figure.add_scatter(
            x=[line.seconds_per_100],
            y=[line.value(*metric)],
            mode="markers",
            marker={"color": color, "size": 13 if line.key in best else 9, "symbol": symbol, "line": {"width": 0}},
            error_y=_interval([line.metric(*metric)]) | {"color": color, "thickness": 1},
            name=text(line.name),
            hovertemplate=f"{text(line.name)}<br>%{{x:.3g}} s per 100 facts<br>{metric[0]} %{{y:.3f}}<extra></extra>",
        )
    _unedited_line(figure, comparison.lines, metric)
    _dress(figure, HEIGHT + 70)
    figure.update_xaxes(title_text="seconds of editing for 100 facts", **_log([line.seconds_per_100 for line in lines]))
    figure.update_yaxes(title_text=" ".join(metric), range=[-0.03, 1.03])
    return figure


def memory_figure(comparison: StoredComparison) -> go.Figure | None:
    """The most memory each method held above the loaded model, hypernetworks included (Figure 2)."""
    lines = [line for line in comparison.edited if line.memory_bytes is not None]
    if not lines:
        return None
    figure = go.Figure()
    figure.add_bar(
        y=[text(line.name) for line in lines],
        x=[line.memory_bytes / 1e6 for line in lines],
        orientation="h",
        marker={"color": [_style(comparison, line.key)[0] for line in lines]},
        text=[f"{line.memory_bytes / 1e6:,.0f}" for line in lines],
        textposition="outside",
        cliponaxis=False,
        hovertemplate="%{y}<br>%{x:,.0f} MB above the loaded model<extra></extra>",
        showlegend=False,
    )
    _dress(figure, 110 + 26 * len(lines))
    figure.update_layout(margin={"l": 12, "r": 60, "t": 16, "b": 44})
    figure.update_yaxes(autorange="reversed", showgrid=False, automargin=True)
    figure.update_xaxes(title_text="MB above the loaded model", rangemode="tozero")
    return figure


def sweep_figure(comparison: StoredComparison, reading: str = APPENDIX) -> go.Figure | None:
    """Score and seconds of editing against the number of facts edited at once; None without a sweep."""
    if not comparison.sweep:
        return None
    metric = worth(comparison, reading)
    lines = [line for line in (*comparison.sweep, *comparison.lines) if line.done]
    figure = make_subplots(2, 1, shared_xaxes=True, vertical_spacing=0.06)
    for key in dict.fromkeys(line.key for line in comparison.lines):
        own = sorted((line for line in lines if line.key == key), key=lambda line: line.n_facts)
        if not own:
            continue
        color, symbol, dash = _style(comparison, key)
        name = text(own[0].name)
        common = {
            "mode": "lines+markers",
            "line": {"color": color, "dash": dash, "width": 2},
            "marker": {"color": color, "symbol": symbol, "size": 7},
            "name": name,
            "legendgroup": key or UNEDITED,
        }
        sizes = [line.n_facts for line in own]
        found = [line.metric(*metric) for line in own]
        known = [one if one and one.low is not None else None for one in found]
        intervals = [f"<br>95 % {one.low:.3f} – {one.high:.3f}" if one else "" for one in known]
        hover = f"{name}<br>%{{x:,}} facts<br>{metric[0]} %{{y:.3f}}%{{customdata}}<extra></extra>"
        values = [one.value if one else None for one in found]
        figure.add_scatter(x=sizes, y=values, customdata=intervals, hovertemplate=hover, **common, row=1, col=1)
        if key:
            hover = f"{name}<br>%{{x:,}} facts<br>%{{y:.3g}} s<extra></extra>"
            seconds = [line.seconds for line in own]
            figure.add_scatter(x=sizes, y=seconds, hovertemplate=hover, showlegend=False, **common, row=2, col=1)
    _dress(figure, 2 * HEIGHT - 60)
    sizes = sorted({line.n_facts for line in lines})
    figure.update_xaxes(type="log", tickvals=sizes, ticktext=[f"{size:,}" for size in sizes])
    figure.update_xaxes(title_text="facts edited at once", row=2, col=1)
    figure.update_yaxes(title_text=" ".join(metric), range=[-0.03, 1.03], row=1, col=1)
    took = [line.seconds for line in lines if line.seconds]
    figure.update_yaxes(title_text="seconds of editing", **_log(took), row=2, col=1)
    return figure


def _style(comparison: StoredComparison, key: str) -> tuple[str, str, str]:
    """Colour, symbol and dash of an entry, the same in every figure."""
    if not key:
        return INK, "line-ew", "dot"
    method = key.partition(":")[0]
    methods = list(dict.fromkeys(line.key.partition(":")[0] for line in comparison.lines if line.key))
    own = [line.key for line in comparison.lines if line.key.partition(":")[0] == method]
    variant = own.index(key) % len(SYMBOLS)
    return COLORS[methods.index(method) % len(COLORS)], SYMBOLS[variant], DASHES[variant]


def _interval(metrics: Sequence) -> dict:
    """Error bars from each metric's value to the ends of its interval."""
    known = [one if one and one.value is not None and one.low is not None else None for one in metrics]
    return {
        "type": "data",
        "symmetric": False,
        "array": [max(0.0, one.high - one.value) if one else None for one in known],
        "arrayminus": [max(0.0, one.value - one.low) if one else None for one in known],
        "thickness": 1.5,
        "width": 3,
        "color": INK,
    }


def _log(values: Sequence[float]) -> dict:
    """A logarithmic axis over these seconds, with plain numbers at 1, 2 and 5, over many decades at 1 alone.

    It reaches to the number below the least and to the one above the most, so that there are two to read by.
    """
    if not values:
        return {"type": "log"}
    least, most = min(values), max(values)
    low, high = math.floor(math.log10(least)), math.ceil(math.log10(most))
    steps = (1, 2, 5) if high - low <= 3 else (1,)
    ticks = [step * 10.0**power for power in range(low, high + 1) for step in steps]
    ends = max(tick for tick in ticks if tick <= least), min(tick for tick in ticks if tick >= most)
    return {
        "type": "log",
        "range": [math.log10(ends[0] / MARGIN), math.log10(ends[1] * MARGIN)],
        "tickvals": ticks,
        "ticktext": [f"{tick:,.10g}" for tick in ticks],
    }


def _unedited_line(figure: go.Figure, lines: Sequence[Line], metric: tuple[str, str]) -> None:
    value = next((line.value(*metric) for line in lines if not line.key), None)
    if value is not None:
        figure.add_hline(
            y=value,
            line={"color": INK, "width": 1, "dash": "dash"},
            annotation={"text": UNEDITED, "font": {"color": INK}},
        )


def _dress(figure: go.Figure, height: int) -> None:
    figure.update_layout(
        height=height,
        margin={"l": 56, "r": 12, "t": 30, "b": 44},
        paper_bgcolor="rgba(0,0,0,0)",
        plot_bgcolor="rgba(0,0,0,0)",
        font={"color": INK, "size": 12},
        hovermode="closest",
        modebar={"bgcolor": "rgba(0,0,0,0)", "color": INK, "remove": UNUSED_TOOLS},
        legend={"orientation": "h", "x": 0, "y": 1.02, "yanchor": "bottom", "bgcolor": "rgba(0,0,0,0)"},
    )
    figure.update_xaxes(gridcolor=GRID, zeroline=False, linecolor=GRID)
    figure.update_yaxes(gridcolor=GRID, zeroline=False, linecolor=GRID)
