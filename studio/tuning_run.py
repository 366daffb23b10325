"""A tuning as a run of the database: a grid search over a method's settings, kept as JSON after every trial."""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from engine.errors import EditingError, FactError
from engine.facts import Fact
from engine.grid_search import MEASURED, GridSearch, Trial
from engine.memory import PeakMemory
from engine.progress import Progress, silent
from studio.components.markup import count
from studio.disk import disk_errors
from studio.runs import logged, start_run
from studio.studio import Studio


@dataclass(frozen=True)
class TuneRequest:
    """What to tune a method on. `valid`: facts on which the best settings are scored again, having chosen nothing.

    grid: None for the method's own; settings: those that every trial has; seconds: the budget; out: where the trials
    go as JSON, and where those of an earlier search lie that is to go on; at_once: facts of one edit, None for all.
    """

    sets: Mapping[str, Sequence[Fact]]
    method: str
    valid: Mapping[str, Sequence[Fact]] = field(default_factory=dict)
    grid: Mapping[str, Sequence[Any]] | None = None
    settings: Mapping[str, Any] = field(default_factory=dict)
    hypernet: Path | None = None
    seconds: float = 1800.0
    out: Path | None = None
    at_once: int | None = None


@dataclass(frozen=True)
class Tuned:
    """A finished search. valid: the model's own settings, then the best, on the facts that chose nothing."""

    search: GridSearch
    valid: list[Trial]


def execute_tuning(
    studio: Studio,
    session: int,
    request: TuneRequest,
    progress: Progress = silent,
    on_trial: Callable[[Trial], None] = lambda trial: None,
) -> tuple[int, Tuned]:
    """Search, and keep every trial; returns the run's number in the database and what was found.

    Raises errors of engine.errors, and FactError when `out` holds something else than trials of this very search.
    """
    model = studio.require_model()
    run = start_run(
        studio.store,
        model,
        session,
        "tune",
        title=", ".join(f"{count(len(facts), 'fact')} of {name}" for name, facts in request.sets.items()),
        method=request.method,
        hparams=dict(request.settings)
        | {"grid": request.grid or "its own", "seconds": request.seconds, "at_once": request.at_once or "all"},
    )
    with logged(studio, run):
        folders = studio.hypernet_folders
        search = GridSearch(
            model, request.sets, request.method, request.grid, request.settings, request.hypernet, folders, request.at_once
        )
        if request.out is not None and request.out.exists():
            _take_up(search, request.out)
        elif request.out is not None:  # a folder that cannot be made is told before the first trial, not after it
            with disk_errors(request.out.parent):
                request.out.parent.mkdir(parents=True, exist_ok=True)
        with PeakMemory(model.device) as memory:
            for trial in search.run(request.seconds, progress):
                _keep(request.out, search.report())
                on_trial(trial)
            chosen = [{}, search.best.settings] if search.best.settings else [{}]
            valid = [search.attempt(settings, request.valid, progress) for settings in chosen] if request.valid else []
        found = search.report() | {"valid": [asdict(trial) for trial in valid]}
        _keep(request.out, found)
        if request.out is not None:
            studio.store.add_artifact(run, "tuning", request.out)
        scores = {
            f"{name} {figure}": value
            for name, figures in search.best.figures.items()
            for figure, value in figures.items()
            if figure in (*MEASURED, "Score")
        }
        result = {"scores": scores, "best": search.best.settings, "trials": len(search.trials), "valid": found["valid"]}
        studio.store.finish_run(run, peak_memory_bytes=memory.peak_bytes, result=result)
    return run, Tuned(search, valid)


def _take_up(search: GridSearch, path: Path) -> None:
    try:
        search.resume(json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        why = str(error) if isinstance(error, EditingError) else "It holds no trials."
        raise FactError(f"{path} cannot be gone on with. {why} Name another file with --out.") from error


def _keep(path: Path | None, report: Mapping[str, Any]) -> None:
    """Write it whole or not at all."""
    if path is None:
        return
    part = path.with_name(path.name + ".part")
    with disk_errors(path.parent):
        part.write_text(json.dumps(report, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
        part.replace(path)
