"""What is drawn and how, as a form: run, family, modules, matrices, method, what stands beside, colours, settings."""

import re
from dataclasses import fields
from typing import Any

import gradio as gr

from engine.edit_record import KINDS, EditRecord
from engine.embedding import METHODS, TITLES
from engine.errors import EditingError
from engine.projection import ProjectionSettings
from studio.components.point_labels import COLOURS
from studio.components.projection_figure import Look
from studio.components.settings_form import control, value
from studio.picture import METHOD, MODULE, RUN, Choice, default_choice
from studio.records import drawable, method_title
from studio.store import Store
from studio.studio import Studio
from studio.workspace import Workspace

NOTHING_BESIDE = "nothing"
FAMILIES = [("Features: M, HᵀG, Δθ", "features"), ("Tokens: H, ∇G, G", "tokens")]
BESIDE = re.compile(rf"({MODULE}|{RUN}):\d+|{METHOD}:({'|'.join(METHODS)})")
SHOWN_FIRST = ("method", "sample")
MOST_RUNS = 200
Updates = dict[Any, Any]


class ProjectionChoice:
    """The components. `inputs` go to an event, whose handler hands their answers to `read` or `look`."""

    def __init__(self, studio: Studio) -> None:
        self.studio = studio
        items = {item.name: item for item in fields(ProjectionSettings)}
        # Their choices change with the run, while answers to the old ones may still be on their way.
        changing = {"allow_custom_value": True}
        with gr.Row(elem_classes="toolbar filters"):
            self.run = gr.Dropdown([], label="Run", scale=1, min_width=220, elem_id="project-run")
            self.family = gr.Radio(
                FAMILIES, value="features", label="Points", scale=1, min_width=320, elem_id="project-family"
            )
            self.method = gr.Radio(
                [("PCA → " + TITLES[name] if name != "pca" else "PCA", name) for name in METHODS], value="tsne",
                label="Reduction", scale=1, min_width=350, elem_id="project-method",
            )  # fmt: skip
        with gr.Row(elem_classes="toolbar filters"):
            self.modules = gr.Dropdown(
                [], multiselect=True, label="Modules", min_width=200, scale=2, elem_id="project-modules", **changing
            )
            self.kinds = gr.Dropdown(
                [], multiselect=True, label="Matrices", min_width=300, scale=4, elem_id="project-kinds", **changing
            )
            self.beside = gr.Dropdown(
                [(NOTHING_BESIDE, "")], value="", label="Beside it", min_width=170, scale=2, elem_id="project-beside",
                **changing,
            )  # fmt: skip
        with gr.Row(elem_classes="toolbar filters"):
            self.colour = gr.Dropdown(
                [(title, name) for name, title in COLOURS.items()], value="matrix", label="Colours", min_width=200,
                elem_id="project-colour",
            )  # fmt: skip
            self.sample = gr.Number(
                items["sample"].default, label="Points a matrix", min_width=120, elem_id="project-sample"
            )
            self.arrows = gr.Checkbox(True, label="Arrows (Eq. 4)", min_width=150, elem_id="project-arrows")
        with gr.Accordion("Settings", open=False, elem_id="project-settings"):
            self._items = [item for name, item in items.items() if name not in SHOWN_FIRST]
            with gr.Row(elem_classes="settings-grid"):
                self._controls = [control(item, "project") for item in self._items]

    @property
    def inputs(self) -> list[Any]:
        """Everything that `read` needs."""
        first = [self.run, self.family, self.method, self.modules, self.kinds, self.beside, self.sample]
        return [*first, *self._controls]

    @property
    def outputs(self) -> list[Any]:
        """Every component that `show` may change."""
        return [self.run, self.modules, self.kinds, self.beside]

    def read(
        self,
        run: int | None,
        family: str,
        method: str,
        modules: list[int],
        kinds: list[str],
        beside: str,
        sample: float | None,
        *answers: Any,
    ) -> tuple[int, Choice]:
        """The run and the choice. Raises EditingError naming what cannot be read."""
        if run is None:
            raise EditingError("There is no run to draw yet: apply an edit first, or choose a run.")
        if beside and not BESIDE.fullmatch(beside):
            raise EditingError(f"Beside it: {beside!r} is not in the list. Choose one of its entries.")
        own = {item.name: value(item, answer) for item, answer in zip(self._items, answers, strict=True)}
        if not isinstance(sample, int | float) or sample != int(sample) or sample < 2:
            typed = f", not {sample:g}" if isinstance(sample, int | float) else ""
            raise EditingError(f"Points a matrix: a whole number from 2 on is needed{typed}.")
        settings = ProjectionSettings(method=method, sample=int(sample), **own).check()
        wanted = [kind for kind, known in KINDS.items() if kind in (kinds or ()) and known.family == family]
        places = sorted(module for module in modules or () if isinstance(module, int))
        return int(run), Choice(family, tuple(places), tuple(wanted), beside or "", settings)

    @staticmethod
    def overtaken(family: str, kinds: list[str]) -> bool:
        """Whether the matrices are those of the other family: what it offers is on its way."""
        known = [KINDS[kind].family for kind in kinds or () if kind in KINDS]
        return bool(known) and family not in known

    def runs(self, workspace: Workspace, chosen: int | None) -> tuple[list[tuple[str, int]], int | None]:
        """The runs that may be drawn, newest first, and the chosen one, else the edit that is on, else the newest."""
        rows = [row for row in self.studio.store.runs(status="done", limit=MOST_RUNS) if drawable(row)]
        listed = [(f"{row['id']}: {row['title']} · {method_title(row['method'])}", row["id"]) for row in rows]
        known = [number for _, number in listed]
        wanted = [number for number in (chosen, workspace.run_id) if number in known]
        return listed, (wanted or known or [None])[0]

    def show(self, record: EditRecord, run: int, family: str, store: Store) -> Updates:
        """The modules, matrices and neighbours that a run offers, the paper's chosen."""
        card, choice = record.card, default_choice(record, family)
        layers = [(f"layer {module.layer}", at) for at, module in enumerate(card.modules)]
        kinds = [(KINDS[kind].title, kind) for kind in record.kinds(family)]
        others = [
            row
            for row in store.runs(status="done", limit=MOST_RUNS)
            if drawable(row) and row["id"] != run and row["model_sha"] == card.model_sha256
        ]
        beside = [
            (NOTHING_BESIDE, ""),
            *((f"module: {title}", f"{MODULE}:{at}") for title, at in layers if len(layers) > 1),
            *((f"method: {TITLES[name]}", f"{METHOD}:{name}") for name in METHODS),
            *((f"run {row['id']}: {row['title']}", f"{RUN}:{row['id']}") for row in others),
        ]
        return {
            self.modules: gr.Dropdown(layers, value=list(choice.modules)),
            self.kinds: gr.Dropdown(kinds, value=list(choice.kinds)),
            self.beside: gr.Dropdown(beside, value=""),
        }

    @staticmethod
    def look(colour: str, arrows: bool) -> Look:
        return Look(colour if colour in COLOURS else "matrix", bool(arrows))
