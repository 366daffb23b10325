"""A comparison as files to take away: its summary, its table in three forms, its plots, the command that repeats it."""

import csv
import json
import re
from collections.abc import Callable, Sequence
from dataclasses import asdict
from html import escape
from pathlib import Path
from typing import Any

from studio.comparison_record import Line, StoredComparison
from studio.comparison_table import APPENDIX, READINGS, cells, columns, reason
from studio.comparisons import command_of
from studio.disk import disk_errors
from studio.drawing import draw_figures
from studio.exports import folder_of, write_facts
from studio.store import Store

WIDTH = 1100  # of a plot's PNG, in points
PLOTS = ("plots.html", "scores.png", "score-against-seconds.png", "memory.png", "sizes.png")
# Every file that an export may write.
EXPORTED = (
    "facts.csv", "facts.json", "summary.json", "comparison.md", "comparison.tex", "comparison.csv", "command.txt", *PLOTS,
)  # fmt: skip
LATEX = {
    "\\": r"\textbackslash{}", "&": r"\&", "%": r"\%", "$": r"\$", "#": r"\#", "_": r"\_", "{": r"\{", "}": r"\}",
    "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "‖Δθ‖/‖W‖": r"$\|\Delta\theta\|/\|W\|$", "–": "--", "’": "'",
}  # fmt: skip


def export_comparison(
    store: Store, comparison: StoredComparison, folder: Path | None = None
) -> tuple[list[Path], list[str]]:
    """Write all files into `folder`, or beside the database, as artifacts of the run; what should be known of them.

    Raises EditingError when the disk is full or the folder cannot be written.
    """
    folder = folder or folder_of(store, comparison.number)
    with disk_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
        paths = {"facts": write_facts(comparison.facts, folder / "facts")}
        command = command_of(comparison.plan, comparison.row["model"], str(paths["facts"].absolute()))
        texts = {
            "summary": ("summary.json", json.dumps(summary_list(comparison), indent=2, ensure_ascii=False) + "\n"),
            "table (Markdown)": ("comparison.md", markdown(comparison, command)),
            "table (LaTeX)": ("comparison.tex", latex(comparison)),
            "command": ("command.txt", command + "\n"),
        }
        for kind, (name, content) in texts.items():
            paths[kind] = folder / name
            paths[kind].write_text(content, encoding="utf-8")
        paths["table (CSV)"] = write_table(comparison, folder / "comparison.csv")
        plots, notes = _write_plots(comparison, folder)
    written = paths | plots
    _note_artifacts(store, comparison.number, written)
    return list(written.values()), notes


def _note_artifacts(store: Store, number: int, paths: dict[str, Path]) -> None:
    """The files become artifacts of the run; those written before in their places are no more."""
    with store.transaction() as db:
        for kind, path in paths.items():
            db.table("artifacts").delete_where("run = ? AND path = ?", [number, str(path.absolute())])
            store.add_artifact(number, kind, path)


def summary_list(comparison: StoredComparison) -> list[dict[str, Any]]:
    """One entry a method, in the form of an edit's summary.json; a failed one has its reason and no metrics."""
    return [_summary(comparison, line) for line in comparison.lines if line.key]


def _summary(comparison: StoredComparison, line: Line) -> dict[str, Any]:
    smaller = [one for one in comparison.sweep if one.key == line.key]
    return {
        "method": line.method,
        "model": comparison.row["model"],
        "n_facts": line.n_facts,
        "seconds": line.seconds,
        "peak_memory_bytes": line.peak_memory_bytes,
        "metrics": [asdict(metric) for metric in line.metrics],
        "settings": line.settings,
        "hypernet": line.hypernet,
        "score_seconds": line.score_seconds,
        "notes": line.notes,
        "modules": line.modules,
        "entry": line.key,
        "name": line.name,
        "status": line.status,
        "error": line.error,
        "prepare_seconds": line.prepare_seconds,
        "seconds_per_100_facts": line.seconds_per_100,
        "memory_above_model_bytes": line.memory_bytes,
        "relative_norm": line.relative_norm,
        "sizes": [
            {
                "n_facts": one.n_facts,
                "seconds": one.seconds,
                "memory_above_model_bytes": one.memory_bytes,
                "error": one.error,
                "metrics": [asdict(metric) for metric in one.metrics],
            }
            for one in smaller
        ],
    }


def write_table(comparison: StoredComparison, path: Path) -> Path:
    """Every method at every size, unrounded, each metric with its interval: a row each."""
    lines = [*comparison.lines, *comparison.sweep]
    keys = list(dict.fromkeys((metric.name, metric.protocol) for line in lines for metric in line.metrics))
    figures = ("seconds", "prepare_seconds", "seconds_per_100", "memory_bytes", "relative_norm")
    heads = ["entry", "name", "n_facts", "status", "error", *figures]
    heads += [f"{name} {protocol}{end}" for name, protocol in keys for end in ("", " low", " high")]
    with path.open("w", newline="", encoding="utf-8-sig") as file:  # the mark is for Excel
        writer = csv.writer(file)
        writer.writerow(heads)
        for line in lines:
            values: list[Any] = [line.key or "unedited", line.name, line.n_facts, line.status, line.error]
            values += [getattr(line, name) for name in figures]
            for key in keys:
                metric = line.metric(*key)
                values += [metric.value, metric.low, metric.high] if metric else [None, None, None]
            writer.writerow(values)
    return path


def markdown(comparison: StoredComparison, command: str) -> str:
    """A table for each reading, the best values bold, the reasons of the failed ones, and the command."""
    row = comparison.row
    parts = [f"# {_plain(row['title'])}", f"Model: {_plain(row['model'])}. {_plain(row['started'])}."]
    for reading, told in READINGS.items():
        parts.append(f"ES, GS and LS: {told}.\n\n{_markdown_table(comparison.lines, reading)}")
    for size in sorted({line.n_facts for line in comparison.sweep}):
        own = [line for line in comparison.sweep if line.n_facts == size]
        parts.append(f"## The first {size:,} fact{'s' * (size != 1)}\n\n{_markdown_table(own, APPENDIX)}")
    failed = [
        f"- {_plain(line.name)}, {line.n_facts:,} fact{'s' * (line.n_facts != 1)}: {_plain(reason(line))}"
        for line in (*comparison.lines, *comparison.sweep) if not line.done
    ]  # fmt: skip
    if failed:
        parts.append("Not in the tables:\n\n" + "\n".join(failed))
    parts.append(f"The same again:\n\n```sh\n{command}\n```")
    return "\n\n".join(parts) + "\n"


def _markdown_table(lines: Sequence[Line], reading: str) -> str:
    heads = ["Method", *(" ".join(filter(None, (one.title, one.unit))) for one in columns(reading))]
    body = [heads, ["---", *["---:"] * (len(heads) - 1)]]
    for line, own in zip(lines, cells(lines, reading)):
        body.append([_plain(line.name), *(f"**{cell.text}**" if cell.best else cell.text for cell in own)])
    return "\n".join(f"| {' | '.join(one)} |" for one in body)


def latex(comparison: StoredComparison) -> str:
    """The table of the appendix's indicators for a paper, with booktabs; the best values bold."""
    heads = columns(APPENDIX)
    rows = [
        " & ".join([_latex(line.name), *(rf"\textbf{{{_latex(c.text)}}}" if c.best else _latex(c.text) for c in own)])
        for line, own in zip(comparison.lines, cells(comparison.lines, APPENDIX))
    ]
    units = " & ".join(["", *(_latex(f"({one.unit})") if one.unit else "" for one in heads)])
    lines = [
        "% needs \\usepackage{booktabs}",
        r"\begin{table}",
        r"\centering",
        rf"\begin{{tabular}}{{l{'r' * len(heads)}}}",
        r"\toprule",
        " & ".join(["Method", *(_latex(one.title) for one in heads)]) + r" \\",
        units + r" \\",
        r"\midrule",
        *(row + r" \\" for row in rows),
        r"\bottomrule",
        r"\end{tabular}",
        rf"\caption{{{_latex(comparison.row['title'])}, on {_latex(comparison.row['model'])}.}}",
        r"\end{table}",
    ]
    return "\n".join(lines) + "\n"


def _write_plots(comparison: StoredComparison, folder: Path) -> tuple[dict[str, Path], list[str]]:
    """One HTML page with all plots, which needs no network, and where an image engine is there a PNG of each."""
    from studio.components.comparison_plot import figures_of  # plotly's half second is for those who export

    for name in PLOTS:  # an earlier comparison's, which this one may not have
        (folder / name).unlink(missing_ok=True)
    figures = figures_of(comparison)
    if not figures:
        return {}, ["There are no plots: no method has edited these facts."]
    for figure in figures.values():
        figure.update_layout(paper_bgcolor="white", plot_bgcolor="white")
    bodies = [
        figure.to_html(full_html=False, include_plotlyjs=not number, config={"displaylogo": False})
        for number, figure in enumerate(figures.values())
    ]
    title = escape(comparison.row["title"])
    page = (
        f'<!doctype html><html lang="en"><head><meta charset="utf-8"><title>{title}</title></head>'
        '<body style="font-family: sans-serif; max-width: 1100px; margin: 24px auto">'
        f"<h1>{title}</h1>{''.join(bodies)}</body></html>"
    )
    paths = {"plots (HTML)": folder / "plots.html"}
    paths["plots (HTML)"].write_text(page, encoding="utf-8")
    pictures = {f"plot {name} (PNG)": folder / f"{name}.png" for name in figures}
    try:
        draw_figures(dict(zip(pictures.values(), figures.values())), WIDTH)
    except Exception as error:  # the engine is another program, with many ways to be missing
        first = next(iter(str(error).strip().splitlines()), type(error).__name__)
        return paths, [
            f"PNG pictures were not written, for there is no working image engine ({first}). Install Chrome or "
            "Chromium and `pip install kaleido`; or open plots.html, where the camera over each plot saves one."
        ]
    return {**paths, **pictures}, []


def _escaped(table: dict[str, str]) -> Callable[[str], str]:
    pattern = re.compile("|".join(map(re.escape, sorted(table, key=len, reverse=True))))
    return lambda value: pattern.sub(lambda found: table[found[0]], value)


_latex = _escaped(LATEX)
_plain = _escaped({"|": r"\|", "\n": " ", "<": "&lt;", "*": r"\*", "_": r"\_", "`": r"\`"})
