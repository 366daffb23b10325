"""A run drawn without a page: what `python app.py project` asks for, from words to files."""

from dataclasses import dataclass
from pathlib import Path

from engine.edit_record import EditRecord, RecordCard
from engine.errors import EditingError
from engine.progress import Progress, silent
from engine.projection import ProjectionSettings
from studio.components.point_labels import COLOURS
from studio.components.projection_figure import Look
from studio.figure3 import make_figure3, save_figure3
from studio.picture import MODULE, Choice, beside_run, default_choice, finished_picture, first_picture, open_source
from studio.picture_files import Saved, save_picture, stem_of
from studio.store import Store

FIGURE3 = "figure3"
DRAWN = (FIGURE3, "features", "tokens")


@dataclass(frozen=True)
class DrawRequest:
    """What to draw, in a person's words. modules: layers, "18,20"; matrices: names, "M,HtG"; beside: "layer:18", …"""

    run: int
    family: str = FIGURE3
    modules: str | None = None
    matrices: str | None = None
    beside: str = ""
    colour: str = "matrix"
    settings: ProjectionSettings = ProjectionSettings()


def draw_files(
    store: Store, request: DrawRequest, folder: Path, progress: Progress = silent
) -> tuple[Saved, RecordCard]:
    """Draw a run and write the files; they become artifacts of the run. Raises EditingError and StoreError."""
    if request.family not in DRAWN:
        raise EditingError(f"There is nothing called {request.family!r} to draw: choose {', '.join(DRAWN)}.")
    if request.colour not in COLOURS:
        raise EditingError(f"There is no colour by {request.colour!r}: choose {', '.join(COLOURS)}.")
    source = open_source(store, request.run)
    record, settings = source.record, request.settings.check()
    places = _places(record, request.modules)
    if request.family == FIGURE3:
        if request.beside or request.matrices or request.colour != "matrix":
            raise EditingError("Figure 3 has its own matrices and colours: choose --family features or tokens.")
        figure = make_figure3(source, settings, places[-1] if places else None, progress)
        return save_figure3(store, figure, folder, progress), record.card
    choice = default_choice(record, request.family, settings)
    choice = Choice(
        choice.family,
        tuple(places) or choice.modules,
        tuple(name.strip() for name in request.matrices.split(",")) if request.matrices else choice.kinds,
        _beside(record, request.beside),
        settings,
    )
    other = beside_run(choice)
    sources = [source, *([open_source(store, other)] if other is not None else [])]
    picture = finished_picture(first_picture(sources, choice), progress)
    return save_picture(store, picture, Look(request.colour), folder, stem_of(picture), progress), record.card


def _places(record: EditRecord, layers: str | None) -> list[int]:
    """"18,20" → the places of these layers' modules in the record."""
    places = {module.layer: at for at, module in enumerate(record.card.modules)}
    found = []
    for word in (layers or "").replace(" ", "").split(","):
        if not word:
            continue
        if not word.isdecimal() or int(word) not in places:
            raise EditingError(f"Layer {word!r} was not edited by this run; it edited {', '.join(map(str, places))}.")
        found.append(places[int(word)])
    return sorted(set(found))


def _beside(record: EditRecord, words: str) -> str:
    """"layer:18" → "module:0"; a method or a run as it is."""
    what, colon, value = words.partition(":")
    if not words:
        return ""
    if not colon or what not in ("layer", "method", "run") or (what != "method" and not value.isdecimal()):
        raise EditingError(f"--beside {words}: write layer:18, method:umap or run:12.")
    return f"{MODULE}:{_places(record, value)[0]}" if what == "layer" else words
