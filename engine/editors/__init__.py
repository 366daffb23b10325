"""The editors: one file a method, registered by the one decorator below.

An editor turns facts into a `WeightDelta` and leaves the model as it found it. To add one, write a file in
this folder with a class that has `Settings`, `title`, `needs` and `edit`, and put @register over it.
"""

import importlib
import pkgutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

from engine.delta import WeightDelta
from engine.facts import Fact
from engine.model import EditableModel
from engine.progress import Progress, silent

EDITORS: dict[str, type["Editor"]] = {}


@dataclass(frozen=True)
class Edit:
    """What an editor returns.

    `seconds`: wall time of the edit, tokenisation included. `tokens`: real tokens run through the model.
    `per_module`: for each edited module its name, ‖Δθ‖, ‖Δθ‖/‖W‖ and the method's own figures.
    `notes`: what a person should know (a projection that was skipped, say).
    """

    delta: WeightDelta
    seconds: float
    tokens: int
    notes: list[str] = field(default_factory=list)
    per_module: list[dict[str, Any]] = field(default_factory=list)


class Editor:
    """Base of every method. `needs` ⊂ {"hypernetwork", "covariance", "subject", "training data"}.

    An editor that `records` takes a `Recorder` as its last argument and hands over what it computes.
    """

    name: ClassVar[str]
    title: ClassVar[str]
    needs: ClassVar[frozenset[str]] = frozenset()
    records: ClassVar[bool] = False
    Settings: ClassVar[type]

    def edit(self, model: EditableModel, facts: Sequence[Fact], progress: Progress = silent) -> Edit:
        """Δθ for these facts, all at once, from the original weights. Raises errors of engine.errors."""
        raise NotImplementedError


def register(name: str) -> Callable[[type[Editor]], type[Editor]]:
    """Make an editor known under `name`."""

    def decorate(cls: type[Editor]) -> type[Editor]:
        cls.name = name
        EDITORS[name] = cls
        return cls

    return decorate


for _module in pkgutil.iter_modules(__path__):
    importlib.import_module(f"{__name__}.{_module.name}")
