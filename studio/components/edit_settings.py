"""How to edit: the method, what it needs, its settings, and what the edit will cost."""

from pathlib import Path
from typing import Any

import gradio as gr

from engine.editors import EDITORS
from engine.errors import EditingError
from engine.facts import FactBatch
from engine.forecast import forecast
from engine.recorder import ROWS
from studio.components.changing_dropdown import ChangingDropdown
from studio.components.markup import gigabytes, seconds
from studio.components.method_needs import needs_html, no_hypernet_html
from studio.components.method_settings import Answers, MethodSettings
from studio.components.panel import panel, said
from studio.components.settings_form import whole
from studio.edit_job import refuse_server_files
from studio.estimate import Estimate
from studio.runs import EditRequest, own_defaults
from studio.studio import Studio

FIRST = "agrade"
TO_TRAINING = "() => document.getElementById('tab-train-button').click()"
GENERATE = 64
GENERATED, KEPT = "Facts to generate for", "Rows kept for projections"
Updates = dict[Any, Any]


class EditSettings:
    """The components, made where they shall stand. `inputs` go to an event, whose handler hands them to `request`."""

    def __init__(self, studio: Studio) -> None:
        self.studio = studio
        names = sorted(EDITORS, key=lambda name: (name != FIRST, EDITORS[name].title))
        with gr.Row(equal_height=True):
            self.method = gr.Radio(
                [(EDITORS[name].title, name) for name in names], value=FIRST, label="Method", show_label=False, scale=2,
                min_width=220, elem_id="method",
            )  # fmt: skip
            self.hypernet = ChangingDropdown([], label="Hypernetwork", scale=3, min_width=220, elem_id="hypernet")
        self.missing = panel(elem_id="hypernet-missing")
        with gr.Row(elem_classes="toolbar", visible=False) as self.train:
            train = gr.Button("Open the Train tab", size="sm", elem_id="to-training")
        train.click(None, None, None, js=TO_TRAINING)
        self.needs = panel(elem_id="method-needs")
        with gr.Accordion("Settings", open=False, elem_id="settings"):
            self.generate = gr.Number(
                GENERATE, label=GENERATED, elem_id="generate",
                info="the model’s own continuation is shown for the prompts of so many facts, the first ones; "
                "the metrics that need none cover all facts",
            )  # fmt: skip
            self.keep = gr.Number(
                ROWS, label=KEPT, elem_id="keep",
                info="of each matrix that AGRADE, MALMEN or UltraEdit computes, for the Projections tab, once the result "
                "is there; 0: none, and the tab can trace the run again",
            )  # fmt: skip
            self.method_settings = MethodSettings(names, FIRST, local=studio.local, own=own_defaults)
        self.estimate = panel(elem_id="estimate")

    @property
    def inputs(self) -> list[Any]:
        return [self.method, self.hypernet, self.generate, self.keep, self.method_settings.answers]

    @property
    def changes(self) -> list[Any]:
        """The events after which an edit would cost something else, or can be read again."""
        return [one.change for one in self.inputs]

    @property
    def touches(self) -> list[Any]:
        """The events of a person who answers, not those of what `show` offers."""
        return [*(one.input for one in self.inputs[:-1]), *self.method_settings.touches]

    @property
    def outputs(self) -> list[Any]:
        """Every component that `show` may change."""
        return [self.hypernet, self.missing, self.train, *self.method_settings.outputs]

    @property
    def kept(self) -> list[Any]:
        """Every component that `again` may change."""
        return [*self.outputs, self.generate, self.keep, self.method_settings.answers]

    def request(
        self,
        batch: FactBatch,
        method: str,
        hypernet: str | None,
        generate: float | None,
        keep: float | None,
        answers: Answers,
    ) -> EditRequest:
        """What the form says, as a request. Raises EditingError naming the setting that cannot be read."""
        settings = self.method_settings.read(answers, method)
        generated, kept = whole(GENERATED, generate), whole(KEPT, keep)
        if kept == 1:
            raise EditingError(f"{KEPT}: 0 for none, or a number from 2 on.")
        folder = Path(hypernet) if hypernet else None
        return EditRequest(batch, method, settings, folder, generated, keep=kept)

    def again(
        self, method: str, hypernet: str | None, generate: float | None, keep: float | None, answers: Answers
    ) -> Updates:
        """The form as it once was, but for a hypernetwork that is no longer there."""
        shown = self.show(method, hypernet, answers)
        return shown | {self.generate: gr.Number(generate), self.keep: gr.Number(keep)}

    def show(self, method: str, chosen: str | None = None, answers: Answers | None = None) -> Updates:
        """The hypernetworks that fit the method and the model, `chosen` or the first, and the method's own settings,
        with `answers` as they were answered."""
        learned = "hypernetwork" in EDITORS[method].needs
        found = [(label, str(folder)) for label, folder in self.studio.hypernets(method)] if learned else []
        fitting = [folder for _label, folder in found]
        value = chosen if chosen in fitting else next(iter(fitting), None)
        missing = learned and not found and self.studio.model is not None
        return self.method_settings.show(method, self.studio.model, answers) | {
            self.hypernet: gr.Dropdown(found, value=value, visible=bool(found)),
            self.missing: no_hypernet_html(self.studio.model, method) if missing else "",
            self.train: gr.Row(visible=missing),
        }

    def forecast(self, batch: FactBatch, *answers: Any) -> tuple[str, str]:
        """(what the edit needs or makes first, what it will cost in a line), "" for nothing to say.

        Nothing is said without facts, model or hypernetwork; the cost is not known while the model is at work.
        """
        model = self.studio.model
        if model is None or not batch.facts:
            return "", ""
        try:
            asked = self.request(batch, *answers)
            if asked.hypernet is None and "hypernetwork" in EDITORS[asked.method].needs:
                return "", ""
            refuse_server_files(self.studio, asked)
            folders = self.studio.hypernet_folders
            found = forecast(model, batch.facts, asked.method, asked.settings, asked.hypernet, folders)
        except EditingError as error:
            return said("warning", str(error)), ""
        estimate = self.studio.pace.estimate(model, found, batch.facts, asked.generate)
        return needs_html(found, asked.settings, estimate), estimate_html(estimate) if estimate else ""


def estimate_html(found: Estimate) -> str:
    """Time and memory, rounded as roughly as they are known."""
    at_most = "at most " if found.at_most else ""
    return (
        f'<span class="quiet">Estimate: {at_most}about {_rough(found.edit_seconds)} to edit and '
        f"{_rough(found.score_seconds)} to score and generate; about {gigabytes(found.extra_bytes)} more memory, "
        f"{gigabytes(found.peak_bytes)} in all.</span>"
    )


def _rough(length: float) -> str:
    """Never nothing at all."""
    return seconds(max(0.1, length))
