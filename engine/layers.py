"""Layer numbers as people write them: "12-17" or "12,15,18", counted from 0."""

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
