"""What lies under a lasso: the facts and tokens of the chosen points, as a table to sort and a CSV; and neighbours."""

import csv
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from engine.cloud import Cloud, neighbours
from studio.components.markup import count, text, token_text
from studio.components.point_labels import FAILED, SUCCEEDED, PointLabels, number, relation
from studio.picture import Picture

# unit: of features only. position, token, predicted: of a unit, where it is most active. norm: of the row, as computed.
COLUMNS = (
    "matrix", "layer", "unit", "fact", "token", "predicted", "outcome", "norm", "prompt", "target", "position",
)  # fmt: skip
NEIGHBOUR_COLUMNS = ("distance", "cosine", *COLUMNS)
# More rows than this are in the CSV only: nobody reads them on a page.
MOST_SHOWN = 500
NEIGHBOURS = 12

Selection = Sequence[tuple[int, Sequence[int]]]


def read_selection(picture: Picture, value: Any) -> list[tuple[int, list[int]]]:
    """What the linked plot sent, as (cloud, rows); what does not fit the picture, an older one's, is left out."""
    found = []
    for one in value if isinstance(value, list) else ():
        cloud, rows = one.get("cloud"), one.get("rows")
        if isinstance(cloud, int) and 0 <= cloud < len(picture.clouds) and isinstance(rows, list):
            size = len(picture.clouds[cloud].rows)
            found.append((cloud, [row for row in rows if isinstance(row, int) and 0 <= row < size]))
    return [(cloud, rows) for cloud, rows in found if rows]


def selected_rows(picture: Picture, selection: Selection, most: int | None = None) -> list[list[Any]]:
    """A row for each chosen point, by COLUMNS, at most `most`."""
    labels = PointLabels(picture)
    rows: list[list[Any]] = []
    for index, chosen in selection:
        cloud = picture.clouds[index]
        for row in chosen:
            if most is not None and len(rows) >= most:
                return rows
            rows.append(point_row(labels, cloud, row))
    return rows


def as_table(picture: Picture, columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> dict[str, Any]:
    """Rows as a gr.Dataframe takes them; tokens have no unit."""
    kept = [at for at, name in enumerate(columns) if name != "unit" or picture.choice.family == "features"]
    return {"headers": [columns[at] for at in kept], "data": [[row[at] for at in kept] for row in rows]}


def point_row(labels: PointLabels, cloud: Cloud, row: int) -> list[Any]:
    """One point by COLUMNS."""
    fact = labels.fact(cloud, row)
    return [
        cloud.title,
        cloud.layer,
        int(cloud.units[row]) if cloud.units is not None else None,
        number(fact, int(cloud.facts[row])) if fact else int(cloud.facts[row]) + 1,
        token_text(cloud.tokens[row]),
        token_text(cloud.predicted[row]),
        labels.outcome(cloud, row),
        float(f"{np.linalg.norm(cloud.rows[row]):.6g}"),
        fact.prompt if fact else "",
        fact.target if fact else "",
        int(cloud.positions[row]),
    ]


def summary_html(picture: Picture, selection: Selection) -> str:
    """How many points and facts are chosen, and how their edits went; what to do when there are none."""
    total = sum(len(rows) for _, rows in selection)
    if not total:
        return (
            '<span class="quiet">Draw a lasso or a box around points for their facts and tokens; click one for its '
            "nearest neighbours. A double click lets go.</span>"
        )
    labels = PointLabels(picture)
    facts: dict[tuple[int, int], str] = {}
    for index, rows in selection:
        cloud = picture.clouds[index]
        for row in rows:
            key = (cloud.run, int(cloud.facts[row]))
            if key not in facts:
                facts[key] = labels.outcome(cloud, row)
    outcomes = [f"{sum(one == name for one in facts.values()):,} {name}" for name in (SUCCEEDED, FAILED)]
    more = f" · the first {MOST_SHOWN:,} are shown, the CSV has them all" if total > MOST_SHOWN else ""
    where = "most active at " if picture.choice.family == "features" else "of "
    told = f"{count(total, 'point')}, {where}{count(len(facts), 'fact')}: {', '.join(outcomes)}{more}"
    return f"<span>{text(told)}</span>"


def write_selection(picture: Picture, selection: Selection, path: Path) -> Path:
    """All chosen points as CSV, by COLUMNS."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(COLUMNS)
        writer.writerows(selected_rows(picture, selection))
    return path


def neighbour_rows(picture: Picture, cloud: int, row: int) -> list[list[Any]]:
    """The nearest rows in the original space, by NEIGHBOUR_COLUMNS."""
    labels = PointLabels(picture)
    return [
        [float(f"{distance:.6g}"), round(cosine, 4), *point_row(labels, picture.clouds[at], index)]
        for at, index, distance, cosine in neighbours(picture.clouds, cloud, row, NEIGHBOURS)
    ]


def neighbours_title(picture: Picture, cloud: int, row: int) -> str:
    """Which point was clicked, and what its distances are."""
    own = PointLabels(picture).hover(picture.clouds[cloud], row).replace("<br>", " · ")
    width = picture.clouds[cloud].rows.shape[1]
    return f'<span>{own} <span class="quiet">– distances in its {width:,} columns, as computed</span></span>'


def point_records(picture: Picture) -> Iterator[Mapping[str, Any]]:
    """Every point of the picture with its coordinates: what the CSV of a picture holds."""
    labels = PointLabels(picture)
    for panel in picture.panels:
        for index, points in zip(panel.clouds, panel.projection.points):
            cloud = picture.clouds[index]
            for row, (x, y) in enumerate(points.tolist()):
                known = dict(zip(COLUMNS, point_row(labels, cloud, row)))
                fact = labels.fact(cloud, row)
                yield {
                    "panel": panel.title,
                    "run": picture.sources[cloud.run].number,
                    "x": f"{x:.7g}",
                    "y": f"{y:.7g}",
                    **known,
                    "relation": relation(fact) if fact else "",
                }
