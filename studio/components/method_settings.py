"""The settings of several methods: a form for each, one shown at a time, and what they say in one component.

Gradio's page looks up, at every message of any event, each component that ever went into one, through the whole tree.
A hundred controls as inputs cost it a second a message; so the page itself gathers them.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from typing import Any

import gradio as gr

from engine.editors import EDITORS
from engine.errors import EditingError
from engine.layers import layer_ranges
from engine.method_settings import resolved
from engine.model import EditableModel
from studio.components.settings_form import SettingsForm

# `all` is what was gathered before: the answers of the other methods stay as they are.
GATHER = """
(all, ...answers) => ({...all, [%(method)s]: Object.fromEntries(%(fields)s.map((field, i) => [field, answers[i]]))})
"""
Answers = Mapping[str, Mapping[str, Any]]
Updates = dict[Any, Any]


class MethodSettings:
    """The components, made where the forms shall stand; the method `first` is shown.

    `answers` goes into an event's inputs, and changes when a setting was: method → field → what its control says.
    Every control's elem_id is `prefix` method-field. `above` makes what stands above a method's own form; `own`: of a
    method, field → what its control says at first, where that is not the field's default.
    """

    def __init__(
        self,
        methods: Sequence[str],
        first: str,
        prefix: str = "",
        local: bool = True,
        above: Callable[[str], None] = lambda method: None,
        own: Callable[[str], Mapping[str, Any]] = lambda method: {},
    ) -> None:
        self.groups: dict[str, gr.Column] = {}
        self.forms: dict[str, SettingsForm] = {}
        for method in methods:
            with gr.Column(visible=method == first) as self.groups[method]:
                above(method)
                self.forms[method] = SettingsForm(EDITORS[method].Settings, f"{prefix}{method}", local, own(method))
        self.defaults = {method: form.defaults for method, form in self.forms.items()}
        self.answers = gr.JSON(self.defaults, visible=False)
        for method, form in self.forms.items():
            gather = GATHER % {"method": json.dumps(method), "fields": json.dumps(list(form.controls))}
            gr.on(form.changes, None, [self.answers, *form.components], self.answers, js=gather)

    @property
    def touches(self) -> list[Any]:
        """The events of a person who answers."""
        return [event for form in self.forms.values() for event in form.changes]

    @property
    def outputs(self) -> list[Any]:
        """Every component that `show` may change."""
        return [*self.groups.values(), *(control for form in self.forms.values() for control in form.components)]

    def read(self, answers: Answers, method: str) -> dict[str, Any]:
        """The settings of one method. Raises EditingError naming the field that cannot be read."""
        return self.forms[method].read(answers[method])

    def show(self, method: str, model: EditableModel | None, answers: Answers | None = None) -> Updates:
        """The settings of one method, with what the model's own values are of those left open; with `answers`, as they
        were answered there."""
        shown: Updates = {group: gr.Column(visible=name == method) for name, group in self.groups.items()}
        if answers is None:
            return shown | self.forms[method].tell(own_values(model, method))
        shown[self.answers] = self.defaults | {method: answers[method]}
        return shown | self.forms[method].tell(own_values(model, method), answers[method])

    def again(self, model: EditableModel | None, answers: Answers) -> Updates:
        """Every method's settings as they were answered; the form that is shown stays."""
        updates: Updates = {self.answers: self.defaults | answers}
        for method, said in answers.items():
            if said != self.defaults[method]:
                updates |= self.forms[method].tell(own_values(model, method), said)
        return updates


def own_values(model: EditableModel | None, method: str) -> dict[str, Any]:
    """What a model's own value is of each setting of the method that may be left open."""
    cls = EDITORS[method]
    if model is None or "hypernetwork" in cls.needs:
        return {}
    settings = resolved(cls.Settings(), model, method)
    try:
        return asdict(settings) | {"layers": layer_ranges(one.layer for one in cls(settings).modules(model))}
    except EditingError:  # such as a family whose attention is not known: the edit will say so
        return asdict(settings)
