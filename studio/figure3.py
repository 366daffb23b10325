"""Figure 3 of the paper for a run: (a) M, HᵀG and Δθ, (b) the gradients of the tokens, before and after Eq. 4."""

from dataclasses import dataclass, replace
from pathlib import Path

from engine.errors import Cancelled, EditingError
from engine.progress import Progress, silent
from engine.projection import ProjectionSettings
from studio.components.markup import count
from studio.components.projection_figure import Look, figure_three
from studio.components.selection import point_records
from studio.picture import (
    Picture,
    Source,
    caption,
    default_choice,
    finished_picture,
    first_picture,
    model_name,
    titles,
)
from studio.picture_files import Saved, described, keep, write_files
from studio.records import method_title
from studio.store import Store

SIZE = (1700, 900)
STEM = "figure-3"


@dataclass(frozen=True)
class Figure3:
    """Both panels of one module."""

    features: Picture
    tokens: Picture

    @property
    def caption(self) -> str:
        """What is drawn, from what, by which settings."""
        source = self.features.sources[0]
        row, layer = source.run.row, self.features.clouds[0].layer
        return (
            f"Run {row['id']}: {count(source.record.card.fact_count, 'fact')} edited into {model_name(row['model'])} "
            f"by {method_title(row['method'])}, layer {layer}. (a) {titles(self.features.choice.kinds)}: "
            f"{caption(self.features)} (b) {titles(self.tokens.choice.kinds)}: {caption(self.tokens)} "
            "Margins: Gaussian kernel densities. Arrows: from before Eq. 4 to after."
        )


def make_figure3(
    source: Source, settings: ProjectionSettings, module: int | None = None, progress: Progress = silent
) -> Figure3:
    """Both panels for one module of the run, the last one by default. Raises EditingError when one cannot be drawn."""
    found = []
    for family in ("features", "tokens"):
        choice = default_choice(source.record, family, settings)
        if module is not None:
            choice = replace(choice, modules=(module,))
        try:
            found.append(finished_picture(first_picture([source], choice), progress))
        except Cancelled:
            raise
        except EditingError as error:
            raise EditingError(f"Figure 3 ({'a' if family == 'features' else 'b'}): {error}") from error
    return Figure3(*found)


def save_figure3(store: Store, figure: Figure3, folder: Path, progress: Progress = silent) -> Saved:
    """run-12-figure-3.png, .svg, .html and .csv, kept as artifacts of the run with the settings in the caption."""
    points = [
        {"figure": letter, **one}
        for letter, picture in (("a", figure.features), ("b", figure.tokens))
        for one in point_records(picture)
    ]
    drawn = [
        figure_three(figure.features, figure.tokens, Look(webgl=webgl, caption=figure.caption))
        for webgl in (False, True)
    ]
    number = figure.features.sources[0].number
    saved = write_files(*drawn, points, folder, f"run-{number}-{STEM}", SIZE, progress)
    settings = {
        "a": described(figure.features.choice, Look()),
        "b": described(figure.tokens.choice, Look()),
        "caption": figure.caption,
    }
    keep(store, number, saved, settings)
    return saved
