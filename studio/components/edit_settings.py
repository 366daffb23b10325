"""How to edit: the method, its hypernetwork, its settings, and what the edit will cost."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import gradio as gr

from engine.checkpoint import read_card
from engine.editors import EDITORS
from engine.errors import EditingError
from engine.facts import FactBatch
from engine.model import EditModule
from engine.recorder import ROWS
from studio.components.markup import gigabytes, note, seconds
from studio.components.panel import panel
from studio.components.settings_form import SettingsForm
from studio.estimate import Estimate, Pace
from studio.runs import EditRequest
from studio.studio import Studio

FIRST = "agrade"
GENERATE = 64
Updates = dict[Any, Any]


class EditSettings:
    """The components, made where they shall stand. `inputs` go to an event, whose handler hands them to `request`."""

    def __init__(self, studio: Studio) -> None:
        self.studio = studio
        self._pace = Pace()
        names = sorted(EDITORS, key=lambda name: (name != FIRST, EDITORS[name].title))
        with gr.Row(equal_height=True):
            self.method = gr.Radio(
                [(EDITORS[name].title, name) for name in names], value=FIRST, label="Method", scale=2, min_width=220,
                elem_id="method",
            )  # fmt: skip
            self.hypernet = gr.Dropdown([], label="Hypernetwork", scale=3, min_width=220, elem_id="hypernet")
        self.missing = panel(elem_id="hypernet-missing")
        with gr.Accordion("Settings", open=False, elem_id="settings"):
            self.generate = gr.Number(
                GENERATE, label="Facts to generate for", precision=0, minimum=0, elem_id="generate",
                info="the model’s own continuation is shown for the prompts of so many facts, the first ones; "
                "the metrics that need none cover all facts",
            )  # fmt: skip
            self.keep = gr.Number(
                ROWS, label="Rows kept for projections", precision=0, minimum=0, elem_id="keep",
                info="of each matrix that the run computes, for the Projections tab; 0: nothing is kept",
            )  # fmt: skip
            self.groups, self.forms = {}, {}
            for name in names:
                with gr.Column(visible=name == FIRST) as self.groups[name]:
                    self.forms[name] = SettingsForm(EDITORS[name].Settings, name)
        self.estimate = panel(elem_id="estimate")

    @property
    def inputs(self) -> list[Any]:
        controls = [control for form in self.forms.values() for control in form.components]
        return [self.method, self.hypernet, self.generate, self.keep, *controls]

    @property
    def outputs(self) -> list[Any]:
        """Every component that `show` may change."""
        return [self.hypernet, self.missing, *self.groups.values()]

    def request(
        self,
        batch: FactBatch,
        method: str,
        hypernet: str | None,
        generate: float | None,
        keep: float | None,
        *answers: Any,
    ) -> EditRequest:
        """What the form says, as a request. Raises EditingError naming the setting that cannot be read."""
        settings, rest = {}, list(answers)
        for name, form in self.forms.items():
            own, rest = rest[: len(form.components)], rest[len(form.components) :]
            if name == method:
                settings = form.read(own)
        if generate is None or generate < 0:
            raise EditingError("Facts to generate for: a number from 0 on is needed.")
        if keep is None or keep < 0 or keep == 1:
            raise EditingError("Rows kept for projections: 0 for none, or a number from 2 on.")
        folder = Path(hypernet) if hypernet else None
        return EditRequest(batch, method, settings, folder, int(generate), keep=int(keep))

    def show(self, method: str, chosen: str | None = None) -> Updates:
        """The hypernetworks that fit the method and the model, `chosen` or the first, and the method's own settings."""
        groups = {group: gr.Column(visible=name == method) for name, group in self.groups.items()}
        if "hypernetwork" not in EDITORS[method].needs:
            return {self.hypernet: gr.Dropdown([], value=None, visible=False), self.missing: "", **groups}
        found = [(label, str(folder)) for label, folder in self.studio.hypernets(method)]
        fitting = [folder for _label, folder in found]
        value = chosen if chosen in fitting else next(iter(fitting), None)
        return {
            self.hypernet: gr.Dropdown(found, value=value, visible=True),
            self.missing: "" if found or self.studio.model is None else self._none(method),
            **groups,
        }

    def forecast(self, batch: FactBatch, hypernet: str | None, generate: float | None) -> str:
        """What the edit will cost, in a line; "" without facts or model, or while the model is at work."""
        model = self.studio.model
        if model is None or not batch.facts:
            return ""
        modules = self._modules(hypernet)
        found = self._pace.estimate(model, modules, batch.facts, int(generate or 0))
        return estimate_html(found) if found else ""

    def _modules(self, hypernet: str | None) -> Sequence[EditModule]:
        try:
            return [EditModule(**one) for one in read_card(Path(hypernet))["modules"]] if hypernet else []
        except EditingError:
            return []

    def _none(self, method: str) -> str:
        title = f"{EDITORS[method].title} needs a hypernetwork trained for {self.studio.model.name}; there is none yet."
        return note("warning", title, ["Train one in the Train tab, or load the embedded model, which comes with one."])


def estimate_html(found: Estimate) -> str:
    """Time and memory, rounded as roughly as they are known."""
    return (
        f'<span class="quiet">Estimate: about {_rough(found.edit_seconds)} to edit and '
        f"{_rough(found.score_seconds)} to score and generate; about {gigabytes(found.extra_bytes)} more memory, "
        f"{gigabytes(found.peak_bytes)} in all.</span>"
    )


def _rough(length: float) -> str:
    """Never nothing at all."""
    return seconds(max(0.1, length))
