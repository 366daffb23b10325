"""The lines around a result: what was done, how long it took, what should be known of it, module by module."""

import math

from engine.editors import EDITORS
from studio.components.markup import count, empty, gigabytes, note, seconds, setting, text
from studio.edit_job import FinishedEdit
from studio.workspace import Workspace

CSS = """
.headline { margin-bottom: 2px; color: var(--body-text-color-subdued); font-variant-numeric: tabular-nums; }
.headline strong { color: var(--body-text-color); font-size: var(--text-lg); }
"""
TOO_LONG = 1e5  # to be written without a power of ten
HEADS = {
    "norm": "‖Δθ‖",
    "relative_norm": "‖Δθ‖ / ‖W‖",
    "cosine_to_previous": "cos(G, G previous)",
    "kept_by_eq4": "‖G‖ kept by Eq. 4",
}
NOTHING = empty(
    "No edit yet.",
    "Type facts above, load a sample or upload a file, then press Apply. Scores and the case study appear here.",
)


def standing(workspace: Workspace) -> str:
    """A hint when the edit whose result is shown is not on; "" when it is."""
    if workspace.current and workspace.shown and workspace.current.run_id == workspace.shown.run_id:
        return ""
    if workspace.can_redo:
        return "This edit is not on: the model answers with its original weights. Redo puts it on again."
    return "This edit is not on any more. The History tab keeps its run."


def headline_html(edit: FinishedEdit, hint: str = "") -> str:
    """One line on the run, `hint` while its edit is not on, and the method's notes."""
    run = edit.run
    hypernet = f" with hypernetwork {text(run.hypernet)}" if run.hypernet else ""
    parts = [
        f"<strong>{count(run.n_facts, 'fact')} by {text(EDITORS[run.method].title)}</strong>{hypernet}",
        f"edited in {seconds(run.seconds)}, scored in {seconds(run.score_seconds)}",
        f"peak memory {gigabytes(run.peak_memory_bytes)}",
        f"weight shift ‖Δθ‖ {run.delta.norm:.3g}",
        f"run {edit.run_id}",
    ]
    hinted = note("info", hint) if hint else ""
    notes = note("warning", "Notes of the method", run.notes) if run.notes else ""
    return f'<div class="headline">{" · ".join(parts)}</div>{hinted}{notes}'


def modules_html(edit: FinishedEdit) -> str:
    """‖Δθ‖ of every edited module, relative to its weight, with the method's own figures; then the settings in force."""
    rows = edit.run.per_module
    names = list(dict.fromkeys(name for row in rows for name in row if name != "module"))
    heads = "".join(f'<th scope="col">{text(HEADS.get(name, name.replace("_", " ")))}</th>' for name in names)
    cells = [_figures([row.get(name) for row in rows]) for name in names]
    body = "".join(
        f'<tr><th scope="row"><code>{text(row["module"])}</code></th>{"".join(f"<td>{cell}</td>" for cell in own)}</tr>'
        for row, own in zip(rows, zip(*cells, strict=True))
    )
    used = edit.run.delta.info  # what was left open is there as it was then
    told = ((name.replace("_", " "), setting(used.get(name, value))) for name, value in edit.run.settings.items())
    settings = " · ".join(f"{text(name)} {text(value)}" for name, value in told)
    return (
        f'<div class="wide"><table class="figures"><thead><tr><th scope="col">Module</th>{heads}</tr></thead>'
        f'<tbody>{body}</tbody></table></div><p class="quiet settings">Settings: {settings}</p>'
    )


def _figures(column: list[object]) -> list[str]:
    """A column's cells, its numbers with as many places as the largest one wants, where all of them are seen so."""
    sizes = [abs(value) for value in column if isinstance(value, float) and math.isfinite(value) and value]
    places = 2 if max(sizes, default=0) >= 10 else 4
    plain = all(10**-places <= size < TOO_LONG for size in sizes)
    spec = f".{places}f" if plain else ".3g"
    return ["–" if value is None else f"{value:{spec}}" if isinstance(value, float) else text(value) for value in column]
