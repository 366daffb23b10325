"""The same facts through several methods, each from the original weights: what the paper's Tables 1–3 are made of.

    comparison = Comparison(model, facts, [Entry("agrade"), Entry("agrade", "no-c"), Entry("memit")], sizes=[1, 8])
    for result in comparison.results(): …       # the unedited model first, then each method, then each size

A method that fails is a result too, with its reason. It knows no database and no plot, and holds on to no result.
"""

import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import torch

from engine.checkpoint import find_checkpoints
from engine.delta import WeightDelta
from engine.editing import EditRun, make_editor, run_edit
from engine.editors import EDITORS
from engine.errors import Cancelled, CheckpointError, EditingError, FactError, MemoryLimitError
from engine.facts import Fact
from engine.memory import memory_limit, settle
from engine.metrics import Outcome, Unedited, ask
from engine.model import EditableModel
from engine.progress import Progress, silent
from engine.setting_bounds import check_settings

UNEDITED = "Unedited model"

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Ablation:
    """One row of Table 2: AGRADE with `setting`, of the edit and of the training, at `off`."""

    title: str
    setting: str
    off: Any

    @property
    def at_the_edit(self) -> bool:
        """Whether an edit can do without it, or only a training."""
        return self.setting in {item.name for item in fields(EDITORS["agrade"].Settings)}


ABLATIONS = {
    "no-c": Ablation("w/o adjustment c", "coefficient", False),
    "no-regularization": Ablation("w/o regularization", "regularisation", False),
    "no-weights-projection": Ablation("w/o weights projection", "projection", "off"),
    "no-gradient-projection": Ablation("w/o gradient projection", "gradient_projection", False),
}


@dataclass(frozen=True)
class Entry:
    """A method with its settings; those left out are at their defaults. `ablation`: a key of ABLATIONS, or "".

    Without `hypernet`, the first checkpoint of the method for the model is taken.
    """

    method: str
    ablation: str = ""
    settings: Mapping[str, Any] = field(default_factory=dict)
    hypernet: Path | None = None

    @property
    def key(self) -> str:
        """ "memit", or "agrade:no-c": unique in a comparison."""
        return f"{self.method}:{self.ablation}" if self.ablation else self.method

    @property
    def name(self) -> str:
        """ "MEMIT", or "AGRADE w/o adjustment c"."""
        title = EDITORS[self.method].title
        return f"{title} {ABLATIONS[self.ablation].title}" if self.ablation else title

    def check(self) -> None:
        """Raises EditingError for a method, ablation or setting that there is not, and a value that it cannot take."""
        if self.method not in EDITORS:
            raise EditingError(f"Unknown method {self.method!r}: choose {', '.join(EDITORS)}.")
        if self.ablation and (self.method != "agrade" or self.ablation not in ABLATIONS):
            known = ", ".join(f"agrade:{one}" for one in ABLATIONS)
            raise EditingError(f"There is no ablation {self.key!r}: choose {known}.")
        check_settings(EDITORS[self.method].title, EDITORS[self.method].Settings, self.settings)

    def resolved(self, model: EditableModel, folders: tuple[Path, ...]) -> "tuple[Entry, list[str]]":
        """What to run for an ablation, and how it was come by; any other entry as it is.

        A hypernetwork that was trained without the ablated part comes first; else the part is left out of the edit.
        Raises CheckpointError when the part belongs to the training alone and no such hypernetwork is there.
        """
        if not self.ablation:
            return self, []
        part = ABLATIONS[self.ablation]
        settings = {**self.settings, part.setting: part.off} if part.at_the_edit else self.settings
        for folder, card in find_checkpoints(model.sha256, folders):
            trained = card["settings"]
            if trained["method"] == "agrade" and [
                one for one in ABLATIONS.values() if trained.get(one.setting, not one.off) == one.off
            ] == [part]:
                return Entry("agrade", "", settings, folder), [f"The hypernetwork {folder.name} was trained so."]
        if not part.at_the_edit:
            raise CheckpointError(
                f"{self.name} needs a hypernetwork trained so, for it leaves out a part of the training (Eq. 6), and "
                f"there is none for {model.name}. Train one in the Train tab, or with `python app.py train`, with "
                f"{part.setting} off."
            )
        note = "Left out of the edit only: the hypernetwork was trained with it."
        return Entry("agrade", "", settings, self.hypernet), [note]


@dataclass(frozen=True)
class Step:
    """One entry at one size: the first `n_facts` of the batch. entry None: the unedited model."""

    entry: Entry | None
    n_facts: int

    @property
    def name(self) -> str:
        return self.entry.name if self.entry else UNEDITED


@dataclass(frozen=True)
class Result:
    """What became of a step. `run` is an edit's; `error`: the reason why there is no outcome.

    relative_norm: ‖Δθ‖/‖W‖ over all edited modules together. fits: after running out of memory, how many of the
    facts could be edited at once, 0 for not even one; None also where that could not be found out.
    """

    step: Step
    outcome: Outcome | None = None
    run: EditRun | None = None
    relative_norm: float | None = None
    error: str = ""
    fits: int | None = None


class Comparison:
    """`facts` through `entries`; then, for each of `sizes`, so many first ones of them.

    `generate`: how many facts' prompts are also generated; `folders`: where further checkpoints lie.
    Raises EditingError for an entry that cannot be meant, or meant twice, and for a size below one fact.
    """

    def __init__(
        self,
        model: EditableModel,
        facts: Sequence[Fact],
        entries: Sequence[Entry],
        sizes: Sequence[int] = (),
        generate: int = 64,
        folders: tuple[Path, ...] = (),
    ):
        if not facts:
            raise FactError("There is no fact to edit: type one, or upload a file.")
        check_plan(entries, sizes)
        self.model, self.facts, self.generate, self.folders = model, facts, generate, folders
        smaller = sorted({size for size in sizes if size < len(facts)})
        self.steps = [Step(entry, size) for size in (len(facts), *smaller) for entry in (None, *entries)]
        self._unedited: Unedited | None = None

    def results(self, progress: Progress = silent) -> Iterator[Result]:
        """Every step's result, in order, each when it is there. Cancelled passes through; what came before counts."""
        for step in self.steps:
            yield self.run(step, progress)

    def run(self, step: Step, progress: Progress = silent) -> Result:
        """One step under the model's lock. Only Cancelled, and what the unedited model raises, is raised."""
        settle(self.model.device)

        def report(stage: str, done: int, total: int) -> None:
            size = "" if step.n_facts == len(self.facts) else f", {step.n_facts:,} fact{'s' * (step.n_facts != 1)}"
            progress(f"{step.name}{size} · {stage}", done, total)

        unedited = self._asked(report).first(step.n_facts)
        if step.entry is None:
            return Result(step, unedited.outcome(self.model))
        try:
            return self._edited(step, unedited, report)
        except Cancelled:
            raise
        except MemoryLimitError as error:
            told = str(error)
        except EditingError as error:
            return Result(step, error=str(error))
        except Exception as error:  # one method's fault shall not cost the others' results
            log.exception("%s failed.", step.name)
            return Result(step, error=f"Unexpected error: {type(error).__name__}: {error}")
        # Outside of the handler: the failed edit's tensors are gone now.
        try:
            fits = self._what_fits(step, report)
        except Cancelled:
            raise
        except Exception:  # what fewer facts are refused for is not why these failed
            log.exception("%s failed with fewer facts.", step.name)
            return Result(step, error=told)
        could = f"{fits:,} of the {step.n_facts:,} facts did fit" if fits else "not even one of the facts fits"
        return Result(step, error=f"{told} When tried with fewer, {could}.", fits=fits)

    def _asked(self, progress: Progress) -> Unedited:
        if self._unedited is None:
            with self.model.lock, memory_limit("Asking the unedited model"):
                self._unedited = ask(self.model, self.facts, self.generate, progress)
        return self._unedited

    def _edited(self, step: Step, unedited: Unedited, progress: Progress) -> Result:
        with self.model.lock:
            entry, notes = step.entry.resolved(self.model, self.folders)
            facts, chosen = self.facts[: step.n_facts], (entry.method, entry.settings, entry.hypernet, self.folders)
            run = run_edit(self.model, facts, *chosen, self.generate, progress, unedited)
            run.notes[:0] = notes
            return Result(step, run.outcome, run, relative_norm(self.model, run.delta))

    def _what_fits(self, step: Step, progress: Progress) -> int:
        """The facts are halved until they can be edited."""
        count = step.n_facts // 2
        while count:
            settle(self.model.device)
            try:
                with self.model.lock, memory_limit("The edit"):
                    entry, _ = step.entry.resolved(self.model, self.folders)
                    editor, _ = make_editor(self.model, entry.method, entry.settings, entry.hypernet, self.folders)
                    editor.edit(self.model, self.facts[:count], progress)
                return count
            except MemoryLimitError:
                count //= 2
        return 0


def check_plan(entries: Sequence[Entry], sizes: Sequence[int] = ()) -> None:
    """Raises EditingError for entries and sizes that cannot be compared."""
    if not entries:
        raise EditingError("No method was chosen to compare: name at least one.")
    for entry in entries:
        entry.check()
    keys = [entry.key for entry in entries]
    if twice := sorted({key for key in keys if keys.count(key) > 1}):
        raise EditingError(f"{', '.join(twice)} was chosen twice: name each method once.")
    if any(size < 1 for size in sizes):
        raise EditingError("A size of the sweep is below one fact: write sizes such as 1, 8, 64, 512.")


def relative_norm(model: EditableModel, delta: WeightDelta) -> float:
    """‖Δθ‖/‖W‖, Frobenius norms over all modules that `delta` shifts, together."""
    weights = [model.weight(module) for module in model.edit_modules_named(delta.shifts)]
    squares = [float(torch.linalg.vector_norm(weight.float())) ** 2 for weight in weights]
    return delta.norm / sum(squares) ** 0.5


def pareto_front(points: Sequence[tuple[float, float]]) -> list[int]:
    """The points (cost, worth) that no other one beats in both, by their numbers, the cheapest first."""
    front: list[int] = []
    for index in sorted(range(len(points)), key=lambda index: (points[index][0], -points[index][1])):
        if not front or points[index][1] > points[front[-1]][1]:
            front.append(index)
    return front
