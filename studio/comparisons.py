"""A comparison as a run: a part for each method and size, written as it ends, so that nothing finished is ever lost.

Both the Compare tab and app.py call `execute_comparison`; what it kept is read by `studio.comparison_record`.
"""

import shlex
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from engine.comparison import Comparison, Entry, Result, Step, check_plan
from engine.editors import EDITORS
from engine.errors import EditingError, FactError
from engine.facts import FactBatch
from engine.model import EMBEDDED, EditableModel
from engine.progress import Progress, silent
from studio.connection import StoreError
from studio.records import ASKED
from studio.runs import edit_result, end_unbegun, logged, start_run
from studio.store import Store
from studio.studio import Studio

NOTHING_EDITED = "No method could edit these facts. Each says why in its row."


@dataclass(frozen=True)
class CompareRequest:
    """What to edit and with what. `sizes`: of the sweep; `generate`: facts whose prompts are also generated."""

    facts: FactBatch
    entries: tuple[Entry, ...]
    sizes: tuple[int, ...] = ()
    generate: int = 64

    @property
    def left_out(self) -> str:
        """A sentence on the sizes for which there are not enough facts; "" when there are."""
        facts = len(self.facts)
        above = ", ".join(f"{size:,}" for size in sorted(set(self.sizes)) if size > facts)
        there = "is 1 fact" if facts == 1 else f"are {facts:,} facts"
        return f"No sweep at {above}: there {there}." if above else ""


def entries_of(
    keys: Sequence[str], settings: Mapping[str, Mapping[str, Any]], hypernets: Mapping[str, Path]
) -> tuple[Entry, ...]:
    """The entries of these keys, such as memit and agrade:no-c; settings and hypernetworks by method.

    An ablation stands below its method, where that is compared too.
    Raises EditingError for what cannot be compared.
    """
    entries = []
    place = {key: number for number, key in enumerate(keys)}
    for key in sorted(keys, key=lambda key: place.get(key.partition(":")[0], place[key])):
        method, _, ablation = key.partition(":")
        entries.append(Entry(method, ablation, dict(settings.get(method, {})), hypernets.get(method)))
    check_plan(entries)
    return tuple(entries)


def read_sizes(text: str) -> tuple[int, ...]:
    """ "1, 8, 64" as numbers of facts; "" for no sweep. Raises FactError for anything else."""
    try:
        sizes = tuple(int(part) for part in text.replace(",", " ").split())
    except ValueError as error:
        raise FactError(f"The sizes “{text}” are no numbers of facts: write such as 1, 8, 64.") from error
    if any(size < 1 for size in sizes):
        raise FactError(f"The sizes “{text}” go below one fact: write such as 1, 8, 64.")
    return sizes


def plan_of(request: CompareRequest) -> dict[str, Any]:
    """The request as its run keeps it: enough to do it again with the run's facts."""
    return {
        "entries": [
            {"key": one.key, "name": one.name, "settings": dict(one.settings), "hypernet": str(one.hypernet or "")}
            for one in request.entries
        ],
        "sizes": list(request.sizes),
        "generate": request.generate,
    }


def command_of(plan: Mapping[str, Any], model: str, facts_file: str) -> str:
    """The command line that does the comparison again, with its facts in `facts_file`."""
    entries = plan.get("entries", [])
    words = ["compare", facts_file, "--methods", ",".join(entry["key"] for entry in entries)]
    if plan.get("sizes"):
        words += ["--sizes", ",".join(map(str, plan["sizes"]))]
    if plan.get("generate", 64) != 64:
        words += ["--generate", str(plan["generate"])]
    for folder in dict.fromkeys(entry["hypernet"] for entry in entries if entry["hypernet"]):
        words += ["--hypernet", folder]
    pairs: dict[str, None] = {}  # an ablation has its method's settings
    for entry in entries:
        method = entry["key"].partition(":")[0]
        defaults = {item.name: item.default for item in fields(EDITORS[method].Settings)} if method in EDITORS else {}
        for name, value in entry["settings"].items():
            if name not in defaults or defaults[name] != value:
                pairs[f"{method}.{name}={str(value).lower() if isinstance(value, bool) else value}"] = None
    for pair in pairs:
        words += ["--set", pair]
    words += model_words(model, plan)
    return f"python app.py {shlex.join(words)}"


def model_words(model: str, hparams: Mapping[str, Any]) -> list[str]:
    """The options that load a run's model as it was loaded then."""
    words = [] if model in ("", EMBEDDED) else ["--model", model]
    for name in ASKED:
        if name in hparams:
            words += [f"--{name.replace('_', '-')}", hparams[name]]
    return words


def execute_comparison(
    studio: Studio,
    session: int,
    request: CompareRequest,
    progress: Progress = silent,
    on_part: Callable[[int, Step, Result | None], None] = lambda run, step, result: None,
    on_start: Callable[[int], None] = lambda run: None,
) -> int:
    """Compare, and keep every part as it ends; returns the comparison's run.

    `on_start` gets the run once it is logged; `on_part` a part's run and step when it begins, with its result when it
    has ended. Raises Cancelled, and errors of engine.errors when not one method could edit; whatever had ended is kept.
    A method whose result cannot be kept is a failed part that says why, and the next one has its turn.
    """
    store, model, count = studio.store, studio.model, len(request.facts)
    number = _start(store, model, session, request)
    with logged(studio, number):
        facts = request.facts.require().facts
        store.record_facts(number, facts)
        on_start(number)
        comparison = Comparison(
            model, facts, request.entries, request.sizes, request.generate, studio.hypernet_folders
        )
        parts, unedited, edited = _Parts(store, session, number, model, request.generate), None, 0

        def work(step: Step, run: int) -> bool:
            """Whether it edited. Its result, a weight shift of every module, is gone before the next step begins."""
            on_part(run, step, None)
            try:
                with logged(studio, run):
                    result = comparison.run(step, progress)
                    parts.finish(run, result, whole=step.n_facts == count)
            except StoreError:
                if step.entry is None:  # the others' outputs are shown beside the unedited model's
                    raise
            on_part(run, step, result)
            return result.run is not None

        for step in comparison.steps:
            run = parts.start(step, unedited)
            edited += work(step, run)
            if unedited is None:
                unedited = run
        if not edited:
            raise EditingError(NOTHING_EDITED)
        store.finish_run(number)
    return number


def _start(store: Store, model: EditableModel | None, session: int, request: CompareRequest) -> int:
    count, methods = len(request.facts), len(request.entries)
    return start_run(
        store,
        model,
        session,
        "compare",
        title=f"{request.facts.source}: {count} fact{'s' * (count != 1)} by {methods} method{'s' * (methods != 1)}",
        hparams=plan_of(request),
    )


def log_unbegun(store: Store, model: EditableModel, session: int, request: CompareRequest, error: str = "") -> None:
    """The row of a comparison that was cancelled while it waited, or could not begin: its facts are found again."""
    with store.transaction():
        number = _start(store, model, session, request)
        store.record_facts(number, request.facts.facts)
        end_unbegun(store, number, error)


class _Parts:
    """The rows of a comparison's parts."""

    def __init__(self, store: Store, session: int, comparison: int, model, generate: int) -> None:
        self.store, self.session, self.comparison = store, session, comparison
        self.model, self.generate = model, generate

    def start(self, step: Step, unedited: int | None) -> int:
        """Log a part before its work begins; its run."""
        entry = step.entry
        hparams = {} if entry is None else dict(entry.settings) | {"hypernet": str(entry.hypernet or "")}
        with self.store.transaction() as db:
            run = self.store.start_run(
                self.session,
                "edit" if entry else "unedited",
                title=step.name,
                method=entry.method if entry else "",
                hparams=hparams | {"generate": self.generate},
                model=self.model.name,
                model_sha=self.model.sha256,
                parent=self.comparison,
            )
            row = {"run": run, "key": entry.key if entry else "", "name": step.name, "n_facts": step.n_facts}
            db.table("entries").insert(row | {"unedited": unedited if entry else None})
        return run

    def finish(self, run: int, result: Result, whole: bool) -> None:
        """Keep a part's result, all of it or none; outputs only of the whole batch, of smaller sizes their scores."""
        with self.store.transaction():
            if result.outcome is None:
                self.store.fail_run(run, result.error)
                return
            if whole:
                phases = ("after",) if result.run else ("before",)
                self.store.record_outputs(run, result.outcome.instances, phases)
            self.store.record_metrics(run, result.outcome.metrics)
            done = result.run
            self.store.finish_run(
                run,
                peak_memory_bytes=done.peak_memory_bytes if done else None,
                result=edit_result(done) | {"relative_norm": result.relative_norm} if done else {},
            )
