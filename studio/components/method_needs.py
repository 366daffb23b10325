"""What a method still needs before it can run, and what it will make or guess by itself: told before the run."""

from collections.abc import Mapping
from typing import Any

from engine.checkpoint import find_checkpoints
from engine.editors import EDITORS
from engine.embedded import EMBEDDED_WEIGHTS_SHA256
from engine.forecast import Forecast
from engine.layers import layer_ranges
from engine.model import EMBEDDED, EditableModel
from studio.components.markup import note, seconds
from studio.estimate import Estimate


def no_hypernet_html(model: EditableModel, method: str) -> str:
    """That there is no hypernetwork of the method for the model, and what to do."""
    title = EDITORS[method].title
    name = "the embedded model" if model.name == EMBEDDED else model.name
    without = [cls.title for cls in EDITORS.values() if not cls.needs]
    shipped = any(card["settings"]["method"] == method for _, card in find_checkpoints(EMBEDDED_WEIGHTS_SHA256))
    ways = [f"Train one in the Train tab: choose {title} there."]
    if shipped and model.sha256 != EMBEDDED_WEIGHTS_SHA256:
        ways.append("Or load the embedded model, which comes with one.")
    ways.append(f"Or choose a method that needs nothing: {'; '.join(without)}.")
    return note("warning", f"{title} needs a hypernetwork trained for {name}; there is none yet.", ways)


def needs_html(found: Forecast, settings: Mapping[str, Any], estimate: Estimate | None) -> str:
    """The covariance that is still to be measured, with its time where that is known; subjects that were found, or are
    unclear where the edit can do without."""
    told = ""
    if found.preparation.forward:
        layers = layer_ranges(module.layer for module in found.modules)
        name = f"layer {layers}" if layers.isdecimal() else f"layers {layers}"
        text = f"of {settings['covariance_text']}" if settings["covariance_text"] else "that the model writes itself"
        length = f", about {seconds(max(estimate.prepare_seconds, 0.1))}" if estimate else ""
        told += note(
            "info",
            f"The covariance of the old keys at {name} is not there yet: Apply measures it first{length}.",
            [
                f"It is measured on {settings['covariance_tokens']:,} tokens {text}, and kept for later edits.",
                "Cancelled, it goes on next time where it stopped.",
            ],
        )
    return told + "".join(note("info", one) for one in found.notes)
