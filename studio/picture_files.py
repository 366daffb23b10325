"""A picture as files: PNG and SVG through the system's Chrome, HTML with plotly.js inside, its points as CSV.

What is written is kept as artifacts of the run that is drawn, with the settings. No request leaves the machine.
"""

import csv
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import plotly.graph_objects as go

from engine.progress import Progress, silent
from studio.components.linked_plot import AT_HOME
from studio.components.projection_figure import Look, projection_figure
from studio.components.selection import point_records
from studio.disk import disk_errors
from studio.drawing import draw_figures
from studio.picture import Choice, Picture, caption
from studio.store import Store

WIDTH, HEIGHT = 1100, 820
# For print: three pixels a point.
SCALE = 3


@dataclass(frozen=True)
class Saved:
    """The files of a picture by their kind, and why some of them could not be made."""

    paths: dict[str, Path]
    notes: tuple[str, ...] = ()


def save_picture(
    store: Store, picture: Picture, look: Look, folder: Path, stem: str, progress: Progress = silent
) -> Saved:
    """Write the picture as it is shown, its settings in the caption, and note the files with the first run."""
    figure = projection_figure(picture, Look(look.colour, look.arrows, webgl=False, caption=caption(picture)))
    interactive = projection_figure(picture, Look(look.colour, look.arrows, caption=caption(picture)))
    wide = WIDTH * (1.6 if len(picture.panels) > 1 else 1)
    saved = write_files(figure, interactive, point_records(picture), folder, stem, (int(wide), HEIGHT), progress)
    keep(store, picture.sources[0].number, saved, described(picture.choice, look))
    return saved


def write_files(
    figure: go.Figure,
    interactive: go.Figure,
    points: Iterable[Mapping[str, Any]],
    folder: Path,
    stem: str,
    size: tuple[int, int],
    progress: Progress = silent,
) -> Saved:
    """`stem`.png, .svg, .html and .csv in `folder`. Raises EditingError when the folder cannot be written."""
    paths = {kind: folder / f"{stem}.{kind}" for kind in ("csv", "html", "png", "svg")}
    progress("Writing the files", 0, 3)
    with disk_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
        _write_csv(points, paths["csv"])
        progress("Writing the files", 1, 3)
        page = go.Figure(interactive).update_layout(paper_bgcolor="white", plot_bgcolor="white", font_color="#222")
        tools = {"displaylogo": False, "scrollZoom": True} | AT_HOME
        page.write_html(paths["html"], include_plotlyjs=True, config=tools)
    progress("Writing the files", 2, 3)
    why = write_images(figure, [paths["png"], paths["svg"]], size)
    if why:
        del paths["png"], paths["svg"]
    progress("Writing the files", 3, 3)
    return Saved(paths, (why,) if why else ())


def write_images(figure: go.Figure, paths: Sequence[Path], size: tuple[int, int]) -> str:
    """The figure as images of so many points, by their suffixes; "" or, in a sentence, why there are none."""
    from choreographer.errors import BrowserFailedError, ChromeNotFoundError  # as slow to import as it is rare

    for path in paths:
        path.unlink(missing_ok=True)
    try:
        draw_figures(dict.fromkeys(paths, figure.to_dict()), *size, SCALE)
        said = "nothing"
    except ChromeNotFoundError:
        return "No PNG or SVG was written: they need Chrome or Chromium on this machine. The HTML and CSV are there."
    except (BrowserFailedError, TimeoutError, RuntimeError, ValueError, OSError) as error:
        said = next(iter(str(error).strip().splitlines()), type(error).__name__)
    if missing := [path.suffix[1:].upper() for path in paths if not path.is_file()]:
        return f"No {' or '.join(missing)} was written: Chrome said {said!r}. The HTML and CSV are there."
    return ""


def keep(store: Store, run: int, saved: Saved, settings: Mapping[str, Any]) -> None:
    """Note the files, with the settings they were made by, as artifacts of the run."""
    with store.transaction():
        for kind, path in saved.paths.items():
            store.add_artifact(run, f"projection {kind}", path, settings)


def described(choice: Choice, look: Look) -> dict[str, Any]:
    """The settings of a picture for the database."""
    return asdict(choice) | {"colour": look.colour, "arrows": look.arrows}


def stem_of(picture: Picture) -> str:
    """A file name that tells pictures apart, those of another run too."""
    choice = picture.choice
    layers = "-".join(str(layer) for layer in sorted({cloud.layer for cloud in picture.clouds}))
    words = [f"run-{picture.sources[0].number}", choice.family, f"layer-{layers}", choice.settings.method, choice.beside]
    return re.sub(r"[^a-z0-9]+", "-", " ".join(filter(None, words)).lower()).strip("-")


def _write_csv(points: Iterable[Mapping[str, Any]], path: Path) -> None:
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = None
        for one in points:
            if writer is None:
                writer = csv.DictWriter(file, list(one))
                writer.writeheader()
            writer.writerow(one)
