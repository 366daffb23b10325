"""The editors: one file a method, registered by the one decorator below.

An editor turns facts into a `WeightDelta` and leaves the model as it found it. To add one, write a file in
this folder with a class that has `Settings`, `title`, `needs`, `modules`, `work` and `edit`, and put @register over it.
`engine.editors.ultraedit` is a short one to start from.
"""

import importlib
import pkgutil
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch

from engine.delta import WeightDelta
from engine.facts import Fact
from engine.model import EditableModel, EditModule
from engine.progress import Progress, silent
from engine.subjects import find_subjects
from engine.work import Work

EDITORS: dict[str, type["Editor"]] = {}


@dataclass(frozen=True)
class Edit:
    """What an editor returns.

    `seconds`: wall time of the edit, tokenisation included, without `prepare_seconds`: what was made on the way and
    is kept for later edits, a covariance. `tokens`: real tokens run through the model.
    `per_module`: for each edited module what `shift_figures` gives, and the method's own figures.
    `notes`: what a person should know (a projection that was skipped, say).
    """

    delta: WeightDelta
    seconds: float
    tokens: int
    notes: list[str] = field(default_factory=list)
    per_module: list[dict[str, Any]] = field(default_factory=list)
    prepare_seconds: float = 0.0


class Editor:
    """Base of every method. `needs` ⊂ {"hypernetwork", "covariance", "subject"}.

    Made for one edit, with an instance of its `Settings`; one that needs a hypernetwork takes its checkpoint, too.
    An editor that `records` takes a `Recorder` as its last argument and hands over what it computes.
    `grid`: setting → the values among which `app.py tune` looks for the best, the setting that matters most first.
    """

    name: ClassVar[str]
    title: ClassVar[str]
    needs: ClassVar[frozenset[str]] = frozenset()
    records: ClassVar[bool] = False
    Settings: ClassVar[type]
    grid: ClassVar[Mapping[str, Sequence[Any]]] = {}

    def __init__(self, settings: Any) -> None:
        self.settings = settings

    def modules(self, model: EditableModel) -> list[EditModule]:
        """What is edited, shallow to deep. Raises ModelError or FactError for layers that there are not."""
        raise NotImplementedError

    def preparation(self, model: EditableModel) -> Work:
        """What the next edit makes first and then keeps for every later one; nothing where that is there already."""
        return Work()

    def work(self, model: EditableModel, facts: Sequence[Fact]) -> Work:
        """What an edit of these facts runs, its preparation apart. Raises FactError as `edit` does."""
        raise NotImplementedError

    def notes(self, facts: Sequence[Fact]) -> list[str]:
        """What the edit will take for granted about these facts. Raises FactError where it cannot."""
        return find_subjects(facts)[1] if "subject" in self.needs else []

    def advice(self, unsaid: int, facts: int) -> list[str]:
        """What to try where so many of the facts are not said after the edit (exact ES)."""
        if 2 * unsaid <= facts:
            return []
        return [
            f"Not said after this edit: {unsaid:,} of {facts:,}. Other settings may suit this model and these facts better: "
            f"python app.py tune FILE --method {self.name}, with --model as it was given, looks for them."
        ]

    def keep(self, found: dict[Hashable, Any]) -> None:
        """Leave in `found` what an edit finds and another with other settings would only find again, and look there
        first. Most methods find nothing of that kind."""

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


def shift_figures(model: EditableModel, delta: WeightDelta) -> list[dict[str, Any]]:
    """Of each module of `delta`: its name, ‖Δθ‖ and ‖Δθ‖/‖W‖. The plain part of `Edit.per_module`."""
    norms = delta.norms
    weights = {
        module.name: float(torch.linalg.vector_norm(model.weight(module).float()))
        for module in model.edit_modules_named(delta.shifts)
    }
    return [
        {"module": name, "norm": norm, "relative_norm": norm / weights[name]} for name, norm in norms.items()
    ]


for _module in pkgutil.iter_modules(__path__):
    importlib.import_module(f"{__name__}.{_module.name}")
