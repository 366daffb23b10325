"""What a method's setting may be: its field's type, choices and bounds, checked before any work. It knows no editor.

A numeric field's metadata has `bounds`, its lowest and highest value. Where 0 stands for the model's own value
(`engine.method_settings`), 0 is within them.
"""

from collections.abc import Mapping
from dataclasses import Field, fields
from typing import Any

from engine.errors import EditingError

# Shared by several methods.
RATES = (0.0, 10.0)  # of Adam
STEPS = (0, 100_000)
BATCHES = (0, 1_000_000)
LOSSES = (0.0, 10.0)  # in nats
SEEDS = (0, 2**32 - 1)
ROUNDS = (0, 1000)
SCALES = (0.0, 1000.0)


def check_settings(title: str, cls: type, settings: Mapping[str, Any]) -> None:
    """Raises EditingError for a setting that `cls`, those of the method `title`, has not, or a value it cannot take."""
    known = {item.name: item for item in fields(cls)}
    if unknown := set(settings) - set(known):
        raise EditingError(f"{title} has no setting {', '.join(sorted(unknown))}; it has {', '.join(sorted(known))}.")
    for name, value in settings.items():
        allowed, fits = _allowed(known[name], value)
        if not fits:
            raise EditingError(f"{title} cannot take {name}={value!r}: give {allowed}.")


def _allowed(item: Field, value: Any) -> tuple[str, bool]:
    """What the field takes, in words, and whether that is so of the value."""
    kind = type(item.default)
    if kind is bool:
        return "true or false", isinstance(value, bool)
    if kind is str:
        choices = item.metadata.get("choices")
        if choices:
            return f"one of {', '.join(choices)}", value in choices
        return "a text", isinstance(value, str)
    low, high = item.metadata["bounds"]
    number = isinstance(value, int if kind is int else int | float) and not isinstance(value, bool)
    words = f"a whole number from {low:,} to {high:,}" if kind is int else f"a number from {low:g} to {high:g}"
    return words, number and low <= value <= high  # NaN is refused, too
