"""A method's settings tried out on facts, within a budget of time: what `engine.method_settings` holds is found so.

The model's own settings come first. Then one setting after the other takes each value of its grid, the others at the
best so far, until a whole round betters nothing; what is left of the time goes to the rest of the grid at random.
"""

import itertools
import json
import logging
import time
from collections.abc import Hashable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from random import Random
from typing import Any

from engine.editing import make_editor
from engine.errors import Cancelled, EditingError
from engine.facts import Fact, facts_sha256
from engine.intervals import harmonic_mean
from engine.memory import memory_limit
from engine.method_settings import resolved
from engine.metrics import Outcome, score, summarise
from engine.model import EditableModel
from engine.progress import Progress, silent
from engine.setting_bounds import check_settings

MEASURED = {"ES": "exact", "GS": "exact", "LS": "agreement"}
STAGE = "Trials"

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Trial:
    """One point of the grid: the settings that are not the model's own, and what they gave.

    figures: for each set of facts ES, GS (exact), LS (agreement), their Score, and the seconds of the edit; a figure
    is missing where the facts have no such prompts. error: why there are none.
    """

    settings: dict[str, Any]
    figures: dict[str, dict[str, float]]
    error: str = ""

    def mean(self, name: str) -> float | None:
        """Of a figure over the sets that have it."""
        values = [one[name] for one in self.figures.values() if name in one]
        return sum(values) / len(values) if values else None

    @property
    def rank(self) -> tuple[float, float]:
        """What is to be as high as possible: the mean over the sets of the harmonic mean of what each has of ES, GS and
        LS, which is the Score where it has all; then, for that may be 0, the plain mean. A failed trial is below all.
        """
        sets = [[one[name] for name in MEASURED if name in one] for one in self.figures.values()]
        if not sets:
            return -1.0, -1.0
        return sum(map(harmonic_mean, sets)) / len(sets), sum(sum(one) / len(one) for one in sets) / len(sets)


class GridSearch:
    """`method` on each of `sets`, name → facts edited as one batch, scored on their own prompts; nothing is generated.

    grid: setting → values, the editor's own where it is None; fixed: settings that every trial has; at_once: instead
    of one batch, so many facts after another, each time from the original weights. Raises EditingError for a setting
    that the method has not or a value it cannot take, or without anything to vary.
    """

    def __init__(
        self,
        model: EditableModel,
        sets: Mapping[str, Sequence[Fact]],
        method: str,
        grid: Mapping[str, Sequence[Any]] | None = None,
        fixed: Mapping[str, Any] | None = None,
        hypernet: Path | None = None,
        folders: tuple[Path, ...] = (),
        at_once: int | None = None,
    ):
        self.at_once = at_once
        self.model, self.sets, self.method, self.fixed = model, sets, method, dict(fixed or {})
        self.hypernet, self.folders = hypernet, folders
        editor, self.hypernet_name = make_editor(model, method, self.fixed, hypernet, folders, weights=False)
        known = {item.name for item in fields(editor.Settings)}
        wanted = dict(editor.grid if grid is None else grid)
        self.grid = {name: tuple(values) for name, values in wanted.items() if name not in self.fixed}
        if unknown := set(self.grid) - known:
            named = ", ".join(sorted(unknown))
            raise EditingError(f"{editor.title} has no setting {named} to vary; it has {', '.join(sorted(known))}.")
        for name, values in self.grid.items():
            for value in values:
                check_settings(editor.title, editor.Settings, {name: value})
        if not any(self.grid.values()):
            raise EditingError(f"There is nothing to vary: give {editor.title} a setting with several values.")
        self.own = asdict(resolved(editor.settings, model, method))
        self.trials: list[Trial] = []
        self._found: dict[Hashable, Any] = {}  # what trials share
        self.seconds = 0.0

    @property
    def identity(self) -> dict[str, Any]:
        """What trials must have in common to be compared."""
        return {
            "method": self.method,
            "model": self.model.name,
            "model_sha256": self.model.sha256,
            "hypernet": self.hypernet_name,
            "own_settings": self.own,
            "at_once": self.at_once,
            "facts": {name: {"count": len(facts), "sha256": facts_sha256(facts)} for name, facts in self.sets.items()},
        }

    @property
    def best(self) -> Trial:
        return max(self.trials, key=lambda trial: trial.rank)

    def run(self, seconds: float, progress: Progress = silent, seed: int = 0) -> Iterator[Trial]:
        """Trials, each added to `trials` before it is yielded, until `seconds` have been spent, all sessions together.

        The first trial is not counted: it may have to measure a covariance. A trial that fails is one, too.
        `progress` may raise Cancelled; the trials so far are kept.
        """
        total = 1
        for values in self.grid.values():
            total *= len(values)
        for settings in self._points(Random(seed)):
            if self.trials and self.seconds >= seconds:
                return
            progress(STAGE, len(self.trials), max(total, len(self.trials) + 1))
            started = time.perf_counter()
            trial = self.attempt(settings, self.sets, progress)
            if self.trials:
                self.seconds += time.perf_counter() - started
            self.trials.append(trial)
            yield trial

    def attempt(self, settings: Mapping[str, Any], sets: Mapping[str, Sequence[Fact]], progress: Progress) -> Trial:
        """These settings on these facts."""
        figures: dict[str, dict[str, float]] = {}
        try:
            for name, facts in sets.items():
                figures[name] = self._figures(settings, facts, progress)
        except Cancelled:
            raise
        except EditingError as error:
            return Trial(dict(settings), {}, str(error))
        except Exception as error:  # one trial's fault shall not cost the others' figures
            log.exception("The trial with %s failed.", settings)
            return Trial(dict(settings), {}, f"Unexpected error: {type(error).__name__}: {error}")
        return Trial(dict(settings), figures)

    def _figures(self, settings: Mapping[str, Any], facts: Sequence[Fact], progress: Progress) -> dict[str, float]:
        model = self.model
        with model.lock, memory_limit("The trial"):
            editor, _ = make_editor(model, self.method, {**self.fixed, **settings}, self.hypernet, self.folders)
            editor.keep(self._found)
            seconds, instances = 0.0, []
            size = self.at_once or len(facts)
            for part in (facts[first : first + size] for first in range(0, len(facts), size)):
                edit = editor.edit(model, part, progress)
                seconds += edit.seconds
                instances += score(model, part, edit.delta, 0, progress).instances
        outcome = Outcome(instances, summarise(instances))
        metrics = {name: outcome.metric(name, protocol) for name, protocol in MEASURED.items()}
        found = {name: metric.value for name, metric in metrics.items() if metric is not None}
        if len(found) == len(MEASURED):
            found["Score"] = harmonic_mean(list(found.values()))
        return found | {"seconds": seconds}

    def _points(self, random: Random) -> Iterator[dict[str, Any]]:
        """Settings not tried yet, in the order of the module's first comment."""
        tried = {_key(trial.settings) for trial in self.trials}

        def new(settings: dict[str, Any]) -> Iterator[dict[str, Any]]:
            settings = {name: value for name, value in settings.items() if value != self.own[name]}
            if _key(settings) not in tried:
                tried.add(_key(settings))
                yield settings

        yield from new({})
        rank = None
        while rank is None or self.best.rank > rank:
            rank = self.best.rank
            for name, values in self.grid.items():
                others = {key: value for key, value in self.best.settings.items() if key != name}
                for value in values:
                    yield from new(others | {name: value})
        rest = [dict(zip(self.grid, values)) for values in itertools.product(*self.grid.values())]
        random.shuffle(rest)
        for settings in rest:
            yield from new(settings)

    def resume(self, kept: Mapping[str, Any]) -> None:
        """Take in the trials of an earlier search, as `report` gave them. Raises EditingError for another search's."""
        for name, value in self.identity.items():
            if kept.get(name) != json.loads(json.dumps(value)):
                raise EditingError(f"These are the trials of a search that differs in its {name}.")
        self.trials = [Trial(one["settings"], one["figures"], one["error"]) for one in kept["trials"]]
        self.seconds = float(kept["seconds"])

    def report(self) -> dict[str, Any]:
        """Everything worth keeping, as JSON holds it; the trials in the order they were made."""
        return self.identity | {
            "protocols": MEASURED,
            "seconds": round(self.seconds, 1),
            "best": self.best.settings,
            "trials": [asdict(trial) for trial in self.trials],
        }


def _key(settings: Mapping[str, Any]) -> str:
    return json.dumps(settings, sort_keys=True)
