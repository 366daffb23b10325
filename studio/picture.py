"""A picture of what runs computed: which matrices are drawn how, and the points that come of it. It draws nothing.

    choice = Choice(family="features", modules=(5,), kinds=("M", "HtG", "shift"))
    sources = [open_source(store, 12)]
    picture = first_picture(sources, choice)              # PCA, at once
    picture = finished_picture(picture, progress)         # by the method chosen
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from engine.cloud import Cloud, gather, why_no_before
from engine.edit_record import BEFORE, KINDS, EditRecord, Family
from engine.embedding import TITLES, clamped
from engine.errors import EditingError
from engine.model import EMBEDDED
from engine.progress import Progress, silent
from engine.projection import Basis, Projection, ProjectionSettings, fit_basis, linear_projection, project
from studio.records import method_title, open_record
from studio.run_reader import StoredRun
from studio.store import Store

# What stands beside: another module, method or run, by "module:3", "method:umap", "run:12"; "" for nothing.
MODULE, METHOD, RUN = "module", "method", "run"
FEATURES = ("M", "HtG_before", "HtG", "shift_before", "shift")
TOKENS = ("grad", "G_before", "G", "P")


@dataclass(frozen=True)
class Source:
    """A run that is drawn, and its record."""

    run: StoredRun
    record: EditRecord

    @property
    def number(self) -> int:
        return self.run.row["id"]


@dataclass(frozen=True)
class Choice:
    """What is drawn. modules: places in the first run's record. kinds: of `edit_record.KINDS`. beside: see above."""

    family: Family = "features"
    modules: tuple[int, ...] = ()
    kinds: tuple[str, ...] = ()
    beside: str = ""
    settings: ProjectionSettings = field(default_factory=ProjectionSettings)


@dataclass(frozen=True)
class Panel:
    """One of the plots: its title, its clouds by their place in the picture, and the points of each."""

    title: str
    clouds: tuple[int, ...]
    projection: Projection


@dataclass(frozen=True)
class Picture:
    """Clouds in one basis, drawn in one panel or two. final: by the method chosen, not the PCA that is there first."""

    sources: tuple[Source, ...]
    choice: Choice
    clouds: tuple[Cloud, ...]
    basis: Basis
    panels: tuple[Panel, ...]
    final: bool

    @property
    def count(self) -> int:
        """How many points there are, those of both panels."""
        return sum(len(self.clouds[at].rows) for panel in self.panels for at in panel.clouds)

    @property
    def notes(self) -> tuple[str, ...]:
        """What a reader should know, each once."""
        found = [note for source in self.sources for note in source.record.card.notes]
        for source in self.sources:
            if why := why_no_before(source.record, self.choice.family):
                found.append(f"Run {source.number} has no matrices before Eq. 4: {why}")
        if self.choice.beside.startswith(MODULE) and self.choice.family == "features":
            found.append(
                "Modules have no hidden units in common: what is chosen in one goes with the units of the other that "
                "are most active at the same tokens."
            )
        return tuple(dict.fromkeys([*found, *(note for panel in self.panels for note in panel.projection.notes)]))


def open_source(store: Store, run: int) -> Source:
    """A run with its record. Raises StoreError for no such run, EditingError with why it cannot be drawn."""
    stored = store.run(run)
    return Source(stored, open_record(stored))


def default_choice(record: EditRecord, family: Family, settings: ProjectionSettings | None = None) -> Choice:
    """The paper's Figure 3: (a) M, HᵀG and Δθ of the last module, (b) the gradients, each before and after Eq. 4."""
    wanted = FEATURES if family == "features" else TOKENS
    kinds = tuple(kind for kind in wanted if kind in record.kinds(family))
    return Choice(family, (len(record.card.modules) - 1,), kinds, "", settings or ProjectionSettings())


def beside_run(choice: Choice) -> int | None:
    """The number of the run that stands beside, if one does."""
    what, _, value = choice.beside.partition(":")
    return int(value) if what == RUN else None


def first_picture(sources: Sequence[Source], choice: Choice) -> Picture:
    """The picture by PCA. `sources`: the run, and the one beside it if the choice names one.

    Raises EditingError, in a sentence, for what cannot be drawn.
    """
    settings = choice.settings.check()
    what, _, value = choice.beside.partition(":")
    modules = list(choice.modules)
    if what == MODULE:
        other = int(value)
        if modules == [other]:
            raise EditingError("The module beside is the one already drawn: choose another one.")
        modules = [*(one for one in modules if one != other), other]
    clouds: list[Cloud] = []
    for at, source in enumerate(sources):
        own = modules if at == 0 else _same_layers(sources[0], source, modules)
        clouds += gather(source.record, choice.family, own, choice.kinds, settings.sample, settings.seed, at)
    # Runs of different models have nothing in common but their place in the picture.
    quantities = [f"{cloud.quantity} {cloud.rows.shape[1]}" for cloud in clouds]
    basis = fit_basis([cloud.rows for cloud in clouds], quantities, settings)
    linear = linear_projection(basis)
    panels = [
        Panel(title, members, replace(linear, points=[linear.points[at] for at in members]))
        for title, members in _members(sources, choice, clouds)
    ]
    return Picture(tuple(sources), choice, tuple(clouds), basis, tuple(panels), final=_is_linear(choice))


def finished_picture(picture: Picture, progress: Progress = silent) -> Picture:
    """The same points by the methods chosen. Raises Cancelled when `progress` does, EditingError if one fails."""
    choice = picture.choice
    what, _, value = choice.beside.partition(":")
    methods = [choice.settings.method] * len(picture.panels)
    if what == METHOD:
        methods[1] = value
    found = {
        method: project(picture.basis, replace(choice.settings, method=method), progress)
        for method in dict.fromkeys(methods)
    }
    panels = tuple(
        replace(panel, projection=replace(whole, points=[whole.points[at] for at in panel.clouds]))
        for panel, whole in zip(picture.panels, (found[method] for method in methods))
    )
    return replace(picture, panels=panels, final=True)


def pairs(picture: Picture, panel: Panel) -> list[tuple[int, int]]:
    """The places in `panel.clouds` of matrices before and after Eq. 4 whose rows belong together."""
    places = {}
    for at, index in enumerate(panel.clouds):
        cloud = picture.clouds[index]
        places[cloud.run, cloud.module, cloud.kind] = at
    return [
        (places[run, module, BEFORE[kind]], at)
        for (run, module, kind), at in places.items()
        if kind in BEFORE and (run, module, BEFORE[kind]) in places
    ]


def link_numbers(picture: Picture) -> list[np.ndarray]:
    """A number for each row of each cloud: rows of the same one are selected together in all panels.

    A unit goes with the same unit of its layer, a token with the same token of the same fact. Modules have no units in
    common: across them, units go together that are most active at the same token.
    """
    known: dict[tuple, int] = {}
    across = picture.choice.beside.startswith(MODULE)
    prompts = [{fact: words for fact, *words in source.record.card.prompts} for source in picture.sources]
    found = []
    for cloud in picture.clouds:
        own = (cloud.kind,) if across else (cloud.kind, cloud.layer)
        if cloud.units is None or across:
            facts = [tuple(prompts[cloud.run].get(fact, [fact])) for fact in cloud.facts.tolist()]
            keys = [(*own, *pair) for pair in zip(facts, cloud.positions.tolist())]
        else:
            keys = [(*own, unit) for unit in cloud.units.tolist()]
        found.append(np.array([known.setdefault(key, len(known)) for key in keys]))
    return found


def caption(picture: Picture) -> str:
    """The settings in words, for the figure and the file."""
    choice, settings, first = picture.choice, picture.choice.settings, picture.sources[0]
    card = first.record.card
    methods = [settings.method]
    if choice.beside.startswith(METHOD):
        methods.append(choice.beside.partition(":")[2])
    parts = [
        ", ".join(f"run {source.number} ({method_title(source.run.row['method'])})" for source in picture.sources),
        model_name(first.run.row["model"]),
        _layers({cloud.layer for cloud in picture.clouds}),
        _sampled(picture),
        {
            "none": "not scaled",
            "quantity": "each quantity scaled to unit root mean square",
            "columns": "each quantity scaled, columns standardised",
        }[settings.scaling],
        "; ".join(
            f"PCA of {width} columns to {picture.basis.scores[0].shape[1]} keeps {share:.1%} of the variance"
            for width, share in picture.basis.explained.items()
        ),
        " and ".join(_method_words(method, settings, sum(map(len, picture.basis.scores))) for method in methods),
        f"seed {settings.seed}",
        f"Eq. 4: {card.projection}",
    ]
    return "; ".join(part for part in parts if part) + "."


def model_name(model: str) -> str:
    """The model in words."""
    return "the embedded model" if model == EMBEDDED else model


def _method_words(method: str, settings: ProjectionSettings, points: int) -> str:
    """The method with the settings that so many points allow."""
    if method == "pca":
        return "PCA to two dimensions"
    used, _notes = clamped(method, points, {"perplexity": settings.perplexity, "neighbours": settings.neighbours})
    if method == "tsne":
        return f"t-SNE, perplexity {used['perplexity']:.3g}"
    return f"UMAP, n_neighbors {used['neighbours']}, min_dist {settings.min_dist:g}"


def _sampled(picture: Picture) -> str:
    largest = max(len(cloud.rows) for cloud in picture.clouds)
    card = picture.sources[0].record.card
    if picture.choice.family == "features":
        return f"{largest} of {card.modules[picture.clouds[0].module].d_h:,} hidden units a matrix"
    return f"{largest} of {card.rows:,} token rows a matrix"


def _is_linear(choice: Choice) -> bool:
    beside = choice.beside.partition(":")
    return choice.settings.method == "pca" and not (beside[0] == METHOD and beside[2] != "pca")


def _members(
    sources: Sequence[Source], choice: Choice, clouds: Sequence[Cloud]
) -> list[tuple[str, tuple[int, ...]]]:
    """Each panel's title and its clouds."""
    every = tuple(range(len(clouds)))
    what, _, value = choice.beside.partition(":")
    if what == METHOD:
        if value not in TITLES:
            raise EditingError(f"There is no method {value!r} to stand beside: choose {', '.join(TITLES)}.")
        return [(TITLES[choice.settings.method], every), (TITLES[value], every)]
    if what == MODULE:
        right = int(value)
        left = [at for at in every if clouds[at].module in choice.modules]
        layers = {module: sources[0].record.card.modules[module].layer for module in (*choice.modules, right)}
        return [
            (_layers(layers[module] for module in choice.modules), tuple(left)),
            (_layers([layers[right]]), tuple(at for at in every if clouds[at].module == right)),
        ]
    if what == RUN:
        return [
            (f"run {one.number}: {method_title(one.run.row['method'])}", tuple(i for i in every if clouds[i].run == at))
            for at, one in enumerate(sources)
        ]
    return [("", every)]


def _layers(layers: Iterable[int]) -> str:
    found = sorted(layers)
    return f"layer{'s' if len(found) > 1 else ''} {', '.join(map(str, found))}"


def _same_layers(first: Source, other: Source, modules: Sequence[int]) -> list[int]:
    """The places of the first run's modules in the other run's record, by their layers."""
    places = {module.layer: at for at, module in enumerate(other.record.card.modules)}
    layers = [first.record.card.modules[module].layer for module in modules]
    if missing := [layer for layer in layers if layer not in places]:
        raise EditingError(
            f"Run {other.number} did not edit layer {missing[0]}; it edited {', '.join(map(str, places))}. "
            "Choose a module that both runs edited."
        )
    return [places[layer] for layer in layers]


def titles(kinds: Sequence[str]) -> str:
    """The matrices' titles in a row."""
    return ", ".join(KINDS[kind].title for kind in kinds)
