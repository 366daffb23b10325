"""One run of the database for people, as HTML, and the command line that repeats it. It knows no query."""

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

from engine.checkpoint import read_card
from engine.editors import EDITORS
from engine.errors import CheckpointError
from engine.recorder import ROWS
from engine.train_settings import TrainSettings
from studio.comparisons import command_of, model_words
from studio.components.clock import moment
from studio.components.markup import gigabytes, note, seconds, setting, text
from studio.components.panel import badge, name_values, said
from studio.components.run_table import KINDS, took
from studio.records import BESIDE, method_title
from studio.run_reader import StoredRun
from studio.runs import own_defaults
from studio.trainings import LOG

Row = dict[str, Any]
FILES_CSS = """
h4:first-child { margin-top: 8px; }
.short, td.number { white-space: nowrap; } td.path { min-width: 220px; }
"""


def head_html(run: StoredRun) -> str:
    """Title, state, error, and what can be said in a line each."""
    row, result = run.row, run.row["result"]
    pairs = [
        ("Kind", text(KINDS.get(row["kind"], row["kind"]))),
        ("Method", text(method_title(row["method"]) or "–")),
        ("Model", f'{text(row["model"] or "–")} <span class="quiet">{text(row["model_sha"][:12])}</span>'),
        ("Started", moment(row["started"])),
        ("Took", took(row)),
        ("Peak memory", "–" if row["peak_memory_bytes"] is None else gigabytes(row["peak_memory_bytes"])),
    ]
    if "score_seconds" in result:
        parts = f"{seconds(result['seconds'])} editing, {seconds(result['score_seconds'])} scoring"
        pairs.insert(5, ("Of this", parts))
    if result.get("hypernet"):
        pairs.append(("Hypernetwork", text(result["hypernet"])))
    if run.facts:
        pairs.append(("Facts", f"{len(run.facts):,}"))
    notes = "".join(note("warning", one) for one in result.get("notes", ()))
    return (
        f"<h3>Run {row['id']}: {text(row['title'] or 'untitled')} {badge(row['status'])}</h3>"
        f"{said('error', row['error'])}{notes}{name_values(pairs)}"
    )


def settings_html(row: Row) -> str:
    """The settings that were changed, then all of them."""
    changed = changed_settings(row["kind"], row["method"], row["hparams"])
    first = name_values(_texts(changed)) if changed else '<p class="quiet">All at their defaults.</p>'
    rest = {name: value for name, value in row["hparams"].items() if name not in changed}
    more = f"<details><summary>The others</summary>{name_values(_texts(rest))}</details>" if rest else ""
    return f"<h4>Settings</h4>{first}{more}"


def changed_settings(kind: str, method: str, hparams: Mapping[str, Any]) -> dict[str, Any]:
    """The settings that differ from the command's defaults, and those that are no longer known."""
    cls = TrainSettings if kind == "train" else EDITORS[method].Settings if method in EDITORS else None
    defaults = {item.name: item.default for item in fields(cls)} if cls else {}
    own = own_defaults(method) if kind == "edit" else {}
    had = {name: defaults[name] for name in own} | dict(hparams)  # what the row does not keep was the engine's default
    defaults |= own
    kept = {name: value for name, value in had.items() if name not in defaults or defaults[name] != value}
    return {name: value for name, value in kept.items() if name not in BESIDE}


def artifacts_html(artifacts: Sequence[Row]) -> str:
    """The files the run wrote, with their sums, and whether they are still as they were."""
    if not artifacts:
        return ""
    body = "".join(
        f'<tr><td class="short">{text(one["kind"])}</td><td class="path"><code>{text(one["path"])}</code></td>'
        f'<td class="number">{_size(one["bytes"])}</td>'
        f'<td class="short"><code title="{one["sha256"]}">{one["sha256"][:12]}…</code></td>'
        f'<td class="short">{_state(one)}</td></tr>'
        for one in artifacts
    )
    return (
        '<h4>Files</h4><div class="wide"><table><thead><tr><th>Kind</th><th>Path</th><th class="number">Size</th>'
        f"<th>sha256</th><th>Now</th></tr></thead><tbody>{body}</tbody></table></div>"
    )


def versions_html(versions: Mapping[str, str]) -> str:
    """Python's and the libraries' versions at the time."""
    listed = " · ".join(f"{text(name)} {text(str(version))}" for name, version in versions.items())
    return f'<p class="quiet">{listed}</p>'


def log_of(artifacts: Sequence[Row]) -> Row | None:
    """The training's log among the run's files; it lies in the training's folder."""
    return next((one for one in artifacts if Path(one["path"]).name == LOG), None)


def changed_since(artifact: Row) -> bool:
    """Whether a file is there and another one than the run wrote, by its size."""
    path = Path(artifact["path"])
    return path.is_file() and path.stat().st_size != artifact["bytes"]


def command_line(run: StoredRun, facts_file: str) -> str:
    """The command that does the run again; "" for a kind that has none. facts_file: the name of its facts' file."""
    row, hparams = run.row, run.row["hparams"]
    if row["kind"] == "edit":
        words = ["edit", facts_file, "--method", row["method"]]
        if hparams.get("hypernet"):
            words += ["--hypernet", hparams["hypernet"]]
        if hparams.get("generate", 64) != 64:
            words += ["--generate", str(hparams["generate"])]
        if hparams.get("keep", ROWS) != ROWS:
            words += ["--keep", str(hparams["keep"])]
    elif row["kind"] == "train":
        log = log_of(run.artifacts)
        folder = Path(log["path"]).parent if log else Path(row["title"].partition(":")[0])
        words = ["train", *(_data_files(run, folder, "train") or ["FACTS"])]
        for path in _data_files(run, folder, "valid"):
            words += ["--valid", path]
        if start := hparams["start"] if "start" in hparams else _unknown_start(folder):
            words += ["--start", start]
        words += ["--out", f"{folder.name}-again"]
    elif row["kind"] == "compare":
        return command_of(hparams, row["model"], facts_file)
    else:
        return ""
    for name, value in changed_settings(row["kind"], row["method"], hparams).items():
        words += ["--set", f"{name}={str(value).lower() if isinstance(value, bool) else value}"]
    words += model_words(row["model"], hparams)
    return f"python app.py {shlex.join(words)}"


def _data_files(run: StoredRun, folder: Path, kind: str) -> list[str]:
    """The files that the run names, or those that the studio put into the training's folder."""
    kept = run.row["hparams"].get(f"{kind}_files")
    return kept or sorted(str(path) for path in (folder / "data" / kind).glob("*.json"))


def _unknown_start(folder: Path) -> str:
    """What stands for the checkpoint that a training began with, where its run does not name it; "" for none."""
    try:
        return "CHECKPOINT" if "start" in read_card(folder / "latest") else ""
    except CheckpointError:
        return ""


def _texts(values: Mapping[str, Any]) -> list[tuple[str, str]]:
    told = {name: ", ".join(value) if isinstance(value, list) else value for name, value in values.items()}
    return [(name, text(setting(value))) for name, value in told.items()]


def _state(artifact: Row) -> str:
    if not Path(artifact["path"]).is_file():
        return "no longer there"
    return "changed since" if changed_since(artifact) else "as it was"


def _size(number: int) -> str:
    if number >= 1e8:
        return gigabytes(number)
    return f"{number / 1e6:.1f} MB" if number >= 1e6 else f"{number / 1e3:.1f} kB"
