"""Which layers to edit, as a person writes it: "12-17", "12,15,18", or "4-8 of 32" for the same relative depth."""

import re
from collections.abc import Iterable

from engine.errors import FactError

MOST_LAYERS = 1000


def parse_layers(text: str) -> list[int] | None:
    """"12-17" or "12,15,18" → layer numbers; "" → None. Raises FactError for anything else."""
    numbers: list[int] = []
    for part in text.replace(" ", "").split(",") if text.strip() else []:
        first, dash, last = part.partition("-")
        if not first.isdecimal() or (dash and not last.isdecimal()) or int(last or first) < int(first):
            raise FactError(f"Layers {text!r} were not understood: write numbers such as 12-17 or 12,15,18.")
        if int(last or first) >= MOST_LAYERS:
            raise FactError(f"Layers {text!r}: no model has {MOST_LAYERS} layers. Layers count from 0.")
        numbers += range(int(first), int(last or first) + 1)
    return numbers or None


def layers_at_depth(text: str, layer_count: int) -> list[int] | None:
    """As `parse_layers`; "4-8 of 32" are the layers at the same relative depth of a model of `layer_count` layers.

    l → round(l · layer_count / 32), so that 4-8 of 32 are 4-8 where there are 32, and 0-1 where there are 4.
    Raises FactError as it does, and for a layer beyond that depth.
    """
    of = re.fullmatch(r"(.*\d)\s*of\s*(\d+)\s*", text)
    if not of or not int(of[2]):
        return parse_layers(text)
    numbers, depth = parse_layers(of[1]), int(of[2])
    if max(numbers) >= depth:
        raise FactError(f"Layers {text!r} go beyond a depth of {depth}: write numbers from 0 to {depth - 1}.")
    return sorted({min(round(l * layer_count / depth), layer_count - 1) for l in numbers})


def layer_ranges(layers: Iterable[int]) -> str:
    """Layer numbers as a person writes them: 4, 5, 6, 9 → "4-6,9". `parse_layers` reads it back."""
    runs: list[list[int]] = []
    for layer in sorted(set(layers)):
        if runs and layer == runs[-1][-1] + 1:
            runs[-1].append(layer)
        else:
            runs.append([layer])
    return ",".join(f"{run[0]}-{run[-1]}" if len(run) > 1 else str(run[0]) for run in runs)
