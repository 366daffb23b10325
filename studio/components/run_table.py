"""The list of runs: a table whose rows open a run. Its `select` event carries the run's number as `value`."""

from collections.abc import Sequence
from typing import Any

import gradio as gr

from studio.components.clock import moment
from studio.components.markup import empty, figure, seconds, text
from studio.components.metric_cards import HEADLINE
from studio.components.panel import badge, panel
from studio.records import method_title

KINDS = {"edit": "Edit", "train": "Training", "compare": "Comparison", "tune": "Tuning"}
CSS = """
tbody tr { cursor: pointer; }
tbody tr:hover { background: var(--background-fill-secondary); }
td.what { min-width: 180px; }
td.what button { all: unset; cursor: pointer; font-weight: 500; overflow-wrap: anywhere; }
td.what button:focus-visible { outline: 2px solid var(--color-accent); outline-offset: 2px; border-radius: 2px; }
td.what div, td.what div * { color: var(--body-text-color-subdued); overflow-wrap: anywhere; }
td.started, td.number { white-space: nowrap; }
td.what .narrow { display: none; }
@container (max-width: 760px) { .spare { display: none; } td.what .narrow { display: inline; } }
"""
OPEN = """
element.addEventListener('click', (event) => {
  const row = event.target.closest('[data-run]');
  if (row) trigger('select', {index: 0, value: Number(row.dataset.run)});
});
"""


def run_table(*, elem_id: str) -> gr.HTML:
    """The component. Listen with `.select`."""
    return panel(elem_id=elem_id, css=CSS, js_on_load=OPEN)


def runs_html(rows: Sequence[dict[str, Any]], *, filtered: bool) -> str:
    """Rows of `Store.runs` as the table's value; a sentence when there are none."""
    if not rows:
        if filtered:
            return empty("No run fits.", "Try fewer words, or another kind or state.")
        kept = "Every edit, comparison and training is kept here, also one that failed or was stopped."
        return empty("No runs yet.", kept)
    heads = "".join(f'<th class="number spare" scope="col">{name}</th>' for name, _ in HEADLINE[:3])
    return (
        '<div class="wide"><table><thead><tr><th class="number" scope="col">Run</th><th scope="col">What</th>'
        f'<th class="spare" scope="col">Started</th>{heads}<th class="number" scope="col">Score</th>'
        '<th class="number spare" scope="col">Took</th><th scope="col">State</th></tr></thead>'
        f"<tbody>{''.join(map(_row, rows))}</tbody></table></div>"
    )


def headline(row: dict[str, Any]) -> list[float | None]:
    """ES, GS, LS and Score of an edit; of a training their means over its data sets."""
    found = {(one.name, one.protocol): one.value for one in row["metrics"]}
    if found:
        return [found.get(key) for key in HEADLINE]
    trained = row["result"].get("scores") or {}
    values = ([v for key, v in trained.items() if key.endswith(f" {name}") and v is not None] for name, _ in HEADLINE)
    return [sum(part) / len(part) if part else None for part in values]


def _row(row: dict[str, Any]) -> str:
    values = [figure(value) for value in headline(row)]
    method = f"{method_title(row['method'])} · " if row["method"] else ""
    under = f"{KINDS.get(row['kind'], row['kind'])} · {method}{row['model'] or 'no model'}"
    cells = "".join(f'<td class="number spare">{value}</td>' for value in values[:3])
    return (
        f'<tr data-run="{row["id"]}"><td class="number">{row["id"]}</td>'
        f'<td class="what"><button type="button">{text(row["title"] or "untitled")}</button>'
        f'<div>{text(under)}<span class="narrow"> · {moment(row["started"])}</span></div></td>'
        f'<td class="started spare">{moment(row["started"])}</td>{cells}<td class="number">{values[3]}</td>'
        f'<td class="number spare">{took(row)}</td><td>{badge(row["status"])}</td></tr>'
    )


def took(row: dict[str, Any]) -> str:
    """How long a run lasted; – for one that has no end."""
    return "–" if row["duration"] is None else seconds(row["duration"])
