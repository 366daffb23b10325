"""A form made from a settings dataclass: one control a field, its help text beside it.

A field's metadata says what a person needs: `help`, `choices` where only some values are possible, `bounds` of a
number, and `file` where the value is the path of a file on the studio's computer.
"""

import math
from collections.abc import Mapping
from dataclasses import Field, fields
from pathlib import Path
from typing import Any

import gradio as gr
from gradio.components import Component

from engine.errors import EditingError

SPELLED = {"gb": "GB", "kl": "KL", "lam": "lambda"}


class SettingsForm:
    """The controls of `cls`, in the order of its fields. Make it where the form shall stand on the page.

    `controls`: field → its component; `read` turns what they say into the fields' values.
    Every control's elem_id is `prefix`-field. Not `local`: whoever answers may sit elsewhere, and is not asked for
    files of this computer. `own`: field → what its control says at first, where that is not the field's default.
    """

    def __init__(self, cls: type, prefix: str, local: bool = True, own: Mapping[str, Any] | None = None) -> None:
        self.cls = cls
        with gr.Row(elem_classes="settings-grid"):
            self.controls: dict[str, Component] = {
                item.name: control(item, prefix, local, own) for item in fields(cls)
            }

    @property
    def components(self) -> list[Component]:
        return list(self.controls.values())

    @property
    def defaults(self) -> dict[str, Any]:
        """Field → what its control says before anybody touched it."""
        return {name: shown.value for name, shown in self.controls.items()}

    @property
    def changes(self) -> list[Any]:
        """The events after which a control says something else; what is being typed counts once it was left."""
        return [
            event
            for one in self.components
            for event in ((one.blur, one.submit) if isinstance(one, gr.Number | gr.Textbox) else (one.input,))
        ]

    def read(self, answers: Mapping[str, Any]) -> dict[str, Any]:
        """Field → value, of the field's own type. Raises EditingError naming the field that cannot be read."""
        return {item.name: value(item, answers.get(item.name)) for item in fields(self.cls)}

    def tell(self, own: Mapping[str, Any], answers: Mapping[str, Any] | None = None) -> dict[Component, Component]:
        """Updates: each field that may be left open says what it then is, `own[field]`, where that is known.

        `answers`: field → what its control shall say again.
        """
        updates = {}
        for item, shown in zip(fields(self.cls), self.components, strict=True):
            says = {} if answers is None else {"value": answers[item.name]}
            if not item.default and not isinstance(item.default, bool):
                says["info"] = _help(item, own.get(item.name))
            if says:
                updates[shown] = type(shown)(**says)
        return updates


def control(item: Field, prefix: str, local: bool = True, own: Mapping[str, Any] | None = None) -> Component:
    """The control that fits a field: a checkbox, a list to choose from, a number or a line of text."""
    common = {
        "value": (own or {}).get(item.name, item.default),
        "label": title(item.name),
        "info": _help(item),
        "visible": local or not item.metadata.get("file", False),
        "elem_id": f"{prefix}-{item.name}",
        "min_width": 200,
    }
    if isinstance(item.default, bool):
        return gr.Checkbox(**common)
    if "choices" in item.metadata:
        return gr.Dropdown(choices=list(item.metadata["choices"]), **common)
    low, high = item.metadata.get("bounds", (None, None))
    if isinstance(item.default, int):
        return gr.Number(minimum=low, maximum=high, **common)  # a precision would round what was typed unsaid
    if isinstance(item.default, float):
        # With a step of 1, as it is by itself, the browser calls every fraction invalid.
        return gr.Number(minimum=low, maximum=high, step="any", **common)
    return gr.Textbox(max_lines=1, **common)


def value(item: Field, answer: Any) -> Any:
    """What a control said, as the field's own type. Raises EditingError when it is not of that type."""
    kind, name = type(item.default), title(item.name)
    choices = item.metadata.get("choices")
    if choices and answer not in choices:
        raise EditingError(f"{name}: “{answer}” is none of {', '.join(map(str, choices))}. Choose one of them.")
    if item.metadata.get("file") and answer:
        return str(Path(answer).expanduser().absolute())  # a run is done again from any folder
    if kind not in (int, float):
        return kind(answer if answer is not None else "")
    if isinstance(answer, bool) or not isinstance(answer, int | float) or not math.isfinite(answer):
        raise EditingError(f"{name}: a number is needed. Type one; the default is {item.default:g}.")
    if kind is int and answer != int(answer):
        raise EditingError(f"{name}: a whole number is needed, not {answer:g}. The default is {item.default}.")
    return kind(answer)


def whole(label: str, answer: float | None) -> int:
    """What the number of that label says. Raises EditingError unless it is a whole one from 0 on."""
    if answer is None or answer < 0 or not float(answer).is_integer():
        typed = "" if answer is None else f", not {answer:g}"
        raise EditingError(f"{label}: a whole number from 0 on is needed{typed}.")
    return int(answer)


def _help(item: Field, own: Any = None) -> str:
    told = item.metadata.get("help", "")
    return f"{told} ({f'{own:g}' if isinstance(own, int | float) else own})" if own else told


def title(name: str) -> str:
    """A field's name as its label: "step_scale" is "Step scale", "cache_gb" is "Cache GB"."""
    words = " ".join(SPELLED.get(word, word) for word in name.split("_"))
    return words[:1].upper() + words[1:]
