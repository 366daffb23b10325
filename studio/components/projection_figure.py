"""A picture as a plotly figure: points, arrows from before Eq. 4 to after, density margins, a legend of the matrices.

The same figure is shown on the page, as WebGL, and saved to files, as vectors. `trace.meta` says what the page's linked
plot needs of a trace: {"cloud", "panel"} for points, whose customdata are the numbers that link rows across panels.
plotly.js looks traces up by ".cb" + uid, so that a uid is a word without spaces.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from textwrap import wrap
from typing import Any

import numpy as np
import plotly.graph_objects as go

from engine.density import margin
from engine.edit_record import BEFORE
from studio.components.markup import text
from studio.components.point_labels import COLOURS, FAILED, SUCCEEDED, UNKNOWN, Groups, PointLabels
from studio.picture import Panel, Picture, link_numbers, pairs

# One hue a quantity, light before Eq. 4 and strong after it; told apart with every common colour blindness.
MATRICES = {
    "M": "#7048a8",
    "HtG_before": "#f4a261",
    "HtG": "#d1495b",
    "shift_before": "#7cc4e8",
    "shift": "#1f6fb2",
    "H": "#7048a8",
    "H_tilde": "#b79be0",
    "grad": "#2a7f62",
    "grad_tilde": "#8fcfae",
    "G_before": "#f4a261",
    "G": "#d1495b",
    "P": "#1f6fb2",
}
SYMBOLS = ("circle", "diamond", "square", "cross", "triangle-up")
GROUPS = (
    "#1f6fb2", "#d1495b", "#2a7f62", "#f4a261", "#7048a8", "#7cc4e8",
    "#8a5a00", "#e377c2", "#5c7f1f", "#17becf", "#b79be0", "#808896",
)  # fmt: skip
OUTCOMES = {SUCCEEDED: "#2a7f62", FAILED: "#d1495b", UNKNOWN: "#808896"}
# Read well on a light and on a dark page.
INK, GRID, ACTIVE = "#808896", "rgba(128, 136, 150, 0.22)", "#14a394"
UNUSED_TOOLS = ["zoomin", "zoomout", "autoscale"]
MANY = 3000  # so many points are drawn smaller, and none as a ring: without a graphics card that takes twice as long
# Arrows of each matrix: more cannot be told apart, and without a graphics card each costs as much as many points.
MOST_ARROWS = 400
# The room of the margins, and between a plot and its margins, as shares of a panel.
MARGIN, GAP = 0.13, 0.015
# A barb's length, as a share of the points' extent.
BARB = 0.012
# What a legend of many colours may take of the plot's height on the page.
COLOURS_HEIGHT = 0.15
# The caption begins so many pixels under the plots, below both legends, in lines of so many letters.
CAPTION_TOP, CAPTION_LINE = 150, 15
CAPTION_LETTERS, WIDE_CAPTION_LETTERS = 150, 270


@dataclass(frozen=True)
class Look:
    """How a picture is shown. webgl: for the page; without it, vectors for a file. caption: under the plots."""

    colour: str = "matrix"
    arrows: bool = True
    webgl: bool = True
    caption: str = ""


def projection_figure(picture: Picture, look: Look = Look()) -> go.Figure:
    """The picture in one panel or two, each with its margins; one legend for both."""
    figure = go.Figure()
    labels = PointLabels(picture)
    groups = labels.groups(look.colour)
    links = link_numbers(picture)
    seen: set[str] = set()
    for at, panel in enumerate(picture.panels):
        axes = Axes(at, len(picture.panels))
        _add_arrows(figure, picture, panel, axes, look)
        for index, points in zip(panel.clouds, panel.projection.points):
            marker = _marker(picture, index, look, groups)
            hover = [labels.hover(picture.clouds[index], row) for row in range(len(points))] if look.webgl else None
            _add_points(figure, picture, index, points, axes, look, marker, hover, links[index], seen)
        _add_margins(figure, picture, panel, axes, look.colour)
        _dress_axes(figure, panel, axes, linked=at > 0 and not picture.choice.beside.startswith("method"))
    if look.colour != "matrix":
        _add_groups(figure, look, groups)
    _dress(figure, look, f"{picture.choice} {picture.final}", len(picture.panels))
    return figure


def figure_three(features: Picture, tokens: Picture, look: Look) -> go.Figure:
    """The paper's Figure 3 (a) and (b): both families beside each other, each in its own basis with its own legend."""
    figure = go.Figure()
    for at, picture in enumerate((features, tokens)):
        axes, panel, labels = Axes(at, 2), picture.panels[0], PointLabels(picture)
        own = go.Figure()
        _add_arrows(own, picture, panel, axes, look)
        for index, points in zip(panel.clouds, panel.projection.points):
            marker = _matrix_marker(picture, picture.clouds[index].kind)
            hover = [labels.hover(picture.clouds[index], row) for row in range(len(points))] if look.webgl else None
            _add_points(own, picture, index, points, axes, look, marker, hover, np.arange(len(points)), set())
        _add_margins(own, picture, panel, axes, "matrix")
        own.update_traces(legend=("legend", "legend3")[at])
        figure.add_traces(own.data)
        title = ("(a) features: one point a hidden unit", "(b) tokens: one point an answer position")[at]
        _dress_axes(figure, replace(panel, title=title), axes, linked=False)
    _dress(figure, look, "figure 3", 2)
    figure.update_layout(legend3=figure.layout.legend.to_plotly_json() | {"x": Axes(1, 2).domain[0]})
    return figure


@dataclass(frozen=True)
class Axes:
    """The names and domains of one panel's axes: x and y of the points, y of the top margin, x of the right one."""

    panel: int
    count: int

    def name(self, letter: str, margin: bool = False) -> str:
        number = 2 * self.panel + (2 if margin else 1)
        return letter if number == 1 else f"{letter}{number}"

    @property
    def domain(self) -> tuple[float, float]:
        """Left and right of the panel."""
        width = 1 / self.count
        return self.panel * width + (0.035 if self.panel else 0), (self.panel + 1) * width - (
            0.035 if self.panel + 1 < self.count else 0
        )

    def inner(self) -> tuple[list[float], list[float]]:
        """The x domains of the points and of the right margin."""
        left, right = self.domain
        width = right - left
        return [left, right - (MARGIN + GAP) * width], [right - MARGIN * width, right]


def _marker(picture: Picture, index: int, look: Look, groups: Groups) -> dict[str, Any]:
    """The colour of each matrix; or that of each row's group, with a sign for each matrix."""
    cloud = picture.clouds[index]
    if look.colour == "matrix":
        return _matrix_marker(picture, cloud.kind)
    kinds = list(dict.fromkeys(one.kind for one in picture.clouds))
    scale, last = _scale(look.colour, groups)
    symbol = SYMBOLS[kinds.index(cloud.kind) % len(SYMBOLS)]
    steps = {"colorscale": scale, "cmin": -0.5, "cmax": last + 0.5, "showscale": False}
    return {"color": groups.members[index].astype(np.uint8), "symbol": symbol} | steps


def _matrix_marker(picture: Picture, kind: str) -> dict[str, Any]:
    """A dot; before Eq. 4 a ring, which shows around the dot of a row that Eq. 4 hardly moved."""
    ring = kind in BEFORE.values() and picture.count < MANY
    return {"color": MATRICES[kind], "symbol": "circle-open" if ring else "circle"}


def _add_points(
    figure: go.Figure,
    picture: Picture,
    index: int,
    points: np.ndarray,
    axes: Axes,
    look: Look,
    marker: Mapping[str, Any],
    hover: list[str] | None,
    links: np.ndarray,
    seen: set[str],
) -> None:
    cloud = picture.clouds[index]
    told = {"text": hover, "hovertemplate": "%{text}<br>(%{x:.4g}, %{y:.4g})<extra></extra>", "customdata": links}
    draw = figure.add_scattergl if look.webgl else figure.add_scatter
    size = 7 if picture.count < MANY else 5
    draw(
        x=points[:, 0],
        y=points[:, 1],
        mode="markers",
        marker={**marker, "size": size + 2 if marker.get("symbol") == "circle-open" else size, "opacity": 0.75},
        selected={"marker": {"opacity": 0.95}},
        unselected={"marker": {"opacity": 0.08}},
        name=text(cloud.title),
        legendgroup=cloud.kind,
        showlegend=cloud.kind not in seen,
        meta={"cloud": index, "panel": axes.panel},
        uid=f"points-{axes.panel}-{index}",
        xaxis=axes.name("x"),
        yaxis=axes.name("y"),
        **(told if look.webgl else {"hoverinfo": "skip"}),
    )
    seen.add(cloud.kind)


def _scale(colour: str, groups: Groups) -> tuple[list[list], int]:
    """A colour scale in steps, one for each group, and the last group's number."""
    colours = [_group_colour(colour, name, at) for at, name in enumerate(groups.names)]
    steps = [[(at + end) / len(colours), own] for at, own in enumerate(colours) for end in (0, 1)]
    return steps, len(colours) - 1


def _group_colour(colour: str, name: str, at: int) -> str:
    return OUTCOMES[name] if colour == "outcome" else GROUPS[at % len(GROUPS)]


def _add_groups(figure: go.Figure, look: Look, groups: Groups) -> None:
    """A second legend that says what the colours mean."""
    for at, name in enumerate(groups.names):
        figure.add_scatter(
            x=[None], y=[None], mode="markers", name=text(name), legend="legend2", hoverinfo="skip",
            marker={"color": _group_colour(look.colour, name, at), "size": 9}, uid=f"group-{at}",
        )  # fmt: skip


def _add_arrows(figure: go.Figure, picture: Picture, panel: Panel, axes: Axes, look: Look) -> None:
    """Lines with barbs from each row before Eq. 4 to the same row after it; they go with their matrix's legend."""
    if not look.arrows:
        return
    every = np.concatenate(panel.projection.points)
    barb = BARB * float(np.ptp(every, axis=0).max())
    draw = figure.add_scattergl if look.webgl else figure.add_scatter
    for before, after in pairs(picture, panel):
        start, end = panel.projection.points[before], panel.projection.points[after]
        drawn = np.linspace(0, len(end) - 1, min(len(end), MOST_ARROWS)).astype(int)
        lines = arrow_lines(start[drawn], end[drawn], barb)
        kind = picture.clouds[panel.clouds[after]].kind
        draw(
            x=lines[:, 0], y=lines[:, 1], mode="lines", line={"color": INK, "width": 1}, opacity=0.45,
            hoverinfo="skip", showlegend=False, legendgroup=kind, connectgaps=False,
            uid=f"arrows-{axes.panel}-{panel.clouds[after]}", xaxis=axes.name("x"), yaxis=axes.name("y"),
        )  # fmt: skip


def arrow_lines(start: np.ndarray, end: np.ndarray, barb: float) -> np.ndarray:
    """(n, 2), (n, 2) → (6 n, 2): shaft and two barbs of each arrow as one broken line, NaN between arrows.

    An arrow too short for its barbs has shorter ones.
    """
    shaft = (end - start).astype(np.float64)
    length = np.linalg.norm(shaft, axis=1, keepdims=True)
    along = np.divide(shaft, length, out=np.zeros_like(shaft), where=length > 0)
    across = np.stack([-along[:, 1], along[:, 0]], axis=1)
    size = np.minimum(barb, 0.4 * length)
    back = end - size * along
    left, right = back + 0.5 * size * across, back - 0.5 * size * across
    gap = np.full_like(shaft, np.nan)
    return np.stack([start, end, left, end, right, gap], axis=1).reshape(-1, 2)


def _add_margins(figure: go.Figure, picture: Picture, panel: Panel, axes: Axes, colour: str) -> None:
    """One density curve a matrix along each axis; all modules of a matrix are one curve."""
    found: dict[str, list[np.ndarray]] = {}
    for index, points in zip(panel.clouds, panel.projection.points):
        found.setdefault(picture.clouds[index].kind, []).append(points)
    together = {kind: np.concatenate(points) for kind, points in found.items()}
    for direction in (0, 1):
        densities = margin([points[:, direction] for points in together.values()])
        for kind, curve in zip(together, densities.curves):
            if curve is None:
                continue
            line = {"color": MATRICES[kind] if colour == "matrix" else INK, "width": 1.5}
            across = {"x": densities.grid, "y": curve} if direction == 0 else {"x": curve, "y": densities.grid}
            figure.add_scatter(
                **across, mode="lines", line=line, fill="tozeroy" if direction == 0 else "tozerox",
                fillcolor=_faint(line["color"]), hoverinfo="skip", showlegend=False, legendgroup=kind,
                uid=f"margin-{axes.panel}-{direction}-{kind}",
                xaxis=axes.name("x", margin=direction == 1), yaxis=axes.name("y", margin=direction == 0),
            )  # fmt: skip


def _faint(colour: str) -> str:
    red, green, blue = (int(colour[at : at + 2], 16) for at in (1, 3, 5))
    return f"rgba({red}, {green}, {blue}, 0.12)"


def _dress_axes(figure: go.Figure, panel: Panel, axes: Axes, linked: bool) -> None:
    """`linked`: the panel is zoomed and moved with the first one."""
    points, side = axes.inner()
    common = {"gridcolor": GRID, "zeroline": False, "linecolor": GRID, "ticks": "", "showline": True, "mirror": True}
    bare = {"showgrid": False, "zeroline": False, "showticklabels": False, "fixedrange": True, "showline": False}
    x, y = axes.name("x"), axes.name("y")
    lower, upper = [0, 1 - MARGIN - GAP], [1 - MARGIN, 1]
    layout = {
        _axis(x): common | {"domain": points, "anchor": y, "title": {"text": panel.projection.axes[0]}},
        _axis(y): common
        | {"domain": lower, "anchor": x, "title": {"text": panel.projection.axes[1]}, "scaleanchor": x},
        _axis(axes.name("y", margin=True)): bare | {"domain": upper, "anchor": x, "rangemode": "tozero"},
        _axis(axes.name("x", margin=True)): bare | {"domain": side, "anchor": y, "rangemode": "tozero"},
    }
    if linked:
        layout[_axis(x)] |= {"matches": "x"}
        layout[_axis(y)] |= {"matches": "y", "scaleanchor": None}  # its scale is the first panel's already
    figure.update_layout(layout)
    if panel.title:
        figure.add_annotation(
            text=f"<b>{text(panel.title)}</b>", x=points[0], y=1.0, xref="paper", yref="paper", xanchor="left",
            yanchor="bottom", showarrow=False, font={"size": 13},
        )  # fmt: skip


def _axis(name: str) -> str:
    """x2 → xaxis2."""
    return f"{name[0]}axis{name[1:]}"


def _dress(figure: go.Figure, look: Look, revision: str, panels: int) -> None:
    legend = {"orientation": "h", "x": 0, "xanchor": "left", "bgcolor": "rgba(0,0,0,0)", "itemsizing": "constant"}
    clear = look.webgl  # on the page its colours show through; a file is white
    figure.update_layout(
        margin={"l": 60, "r": 14, "t": 30, "b": 60},
        paper_bgcolor="rgba(0,0,0,0)" if clear else "white",
        plot_bgcolor="rgba(0,0,0,0)" if clear else "white",
        font={"color": INK if clear else "#222", "size": 12},
        dragmode="lasso",
        hovermode="closest",
        hoverlabel={"align": "left"},
        modebar={"bgcolor": "rgba(0,0,0,0)", "color": INK, "activecolor": ACTIVE, "remove": UNUSED_TOOLS},
        legend=legend | {"y": -0.1, "yanchor": "top"},
        legend2=legend
        | {"y": -0.16, "yanchor": "top", "itemclick": False, "itemdoubleclick": False}
        # Of the plot's height; on the page the rest is scrolled to, a file has nothing to scroll with.
        | ({"maxheight": COLOURS_HEIGHT} if look.webgl else {})
        | {"title": {"text": f"{COLOURS[look.colour]}  ", "side": "left"}},
        # What a person zoomed to or hid stays as long as the points are the same ones.
        uirevision=revision,
    )
    if look.caption:
        # A page may be narrow, an image of two panels is wide.
        letters = CAPTION_LETTERS if look.webgl or panels == 1 else WIDE_CAPTION_LETTERS
        lines = wrap(look.caption, letters)
        figure.update_layout(margin={"b": CAPTION_TOP + (len(lines) + 1) * CAPTION_LINE})
        figure.add_annotation(
            text="<br>".join(map(text, lines)), x=0, y=0, yshift=-CAPTION_TOP, xref="paper", yref="paper",
            xanchor="left", yanchor="top", showarrow=False, align="left", font={"size": 11},
        )  # fmt: skip
