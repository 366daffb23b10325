"""A person's own edits: a line of weight deltas with a place in it. The shared model is never changed."""

import logging
import shutil
import tempfile
import threading
import weakref
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from engine.delta import WeightDelta
from engine.errors import CheckpointError
from engine.facts import FactBatch

STEM = "delta"
KEPT = 10  # edits that can be gone back to: each is a file of a delta's size, a gigabyte of a large model

log = logging.getLogger(__name__)


class AppliedEdit:
    """One applied edit: its run in the store, its delta, and what the badge says of it.

    Once it is put away its delta lies in a file, for that of a large model is a gigabyte; the file goes with the edit.
    """

    def __init__(self, run_id: int, delta: WeightDelta, label: str) -> None:
        self.run_id, self.label = run_id, label
        self._delta: WeightDelta | None = delta
        self._folder: Path | None = None

    @property
    def delta(self) -> WeightDelta:
        """Raises CheckpointError when its file has gone."""
        return self.bring_back()

    def bring_back(self) -> WeightDelta:
        """Have the delta in memory. Raises CheckpointError when its file has gone."""
        delta = self._delta  # once: another thread may put it away
        if delta is None:
            try:
                delta = self._delta = WeightDelta.load(self._folder / STEM)
            except CheckpointError as error:
                raise CheckpointError(
                    f"The weight shift of run {self.run_id} is no longer in {self._folder}: the temporary files were "
                    "cleared. The History tab has the run's facts: apply them again."
                ) from error
        return delta

    def put_away(self) -> None:
        """Let the memory go. Where the disk has no room the delta stays in it."""
        if self._delta is None:
            return
        if self._folder is None:
            try:
                self._folder = _written(self._delta)
            except (OSError, SafetensorError) as error:
                log.warning("The weight shift of run %s stays in memory: %s", self.run_id, error)
                return
            weakref.finalize(self, shutil.rmtree, self._folder, ignore_errors=True)
        self._delta = None


def _written(delta: WeightDelta) -> Path:
    """A new folder with the delta in it; none is left where there was no room."""
    folder = Path(tempfile.mkdtemp(prefix="agrade-delta-"))
    try:
        delta.save(folder / STEM)
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise
    return folder


@dataclass
class Workspace:
    """The last edits of one browser session. Each was computed from the original weights and replaces the one before.

    `batch`: the facts last read; `rows`: the sheet, where it says more than they or was typed in since. `previews`: the
    sources of the batches too large for a sheet, by what it showed of them. `removed`: the two before Clear or Remove.
    `asked`: what the form said of the edit last applied, its method first; `compared`: of the comparison last begun.
    `shown`: the result last shown; `comparison`: the run of the last one. `session`: its row in the store.
    """

    id: str
    session: int
    batch: FactBatch | None = None
    rows: list[list[str]] | None = None
    previews: dict[tuple, str] = field(default_factory=dict)
    removed: tuple[FactBatch | None, list[list[str]] | None] | None = None
    asked: tuple[Any, ...] = ()
    compared: tuple[Any, ...] = ()
    shown: Any = None
    comparison: int | None = None
    edits: list[AppliedEdit] = field(default_factory=list)
    position: int = 0
    reset_from: int = 0  # the place that `reset` left, until the next move; 0: none
    _lock: Any = field(default_factory=threading.RLock, repr=False, compare=False)  # pages, jobs and deletions meet here

    def hold(self, batch: FactBatch | None, rows: list[list[str]] | None = None) -> None:
        """Have these facts in place of those before."""
        self.batch, self.rows = batch, rows

    def apply(self, edit: AppliedEdit) -> None:
        """Put an edit on; what was undone before is forgotten, and of what was done all but the last edits."""
        with self._lock:
            self.edits = [*self.edits[: self.position], edit][-KEPT:]
            self._move(len(self.edits))

    @property
    def current(self) -> AppliedEdit | None:
        with self._lock:
            return self.edits[self.position - 1] if self.position else None

    @property
    def run_id(self) -> int | None:
        current = self.current  # once: another thread may clear it
        return current.run_id if current else None

    @property
    def can_undo(self) -> bool:
        return self.position > 0

    @property
    def can_redo(self) -> bool:
        return self.position < len(self.edits)

    def undo(self) -> None:
        """The edit before this one, or the original weights. Raises CheckpointError when its file has gone."""
        with self._lock:
            self._move(max(0, self.position - 1))

    def redo(self) -> None:
        """The edit that was taken off, after `reset` too. Raises CheckpointError when its file has gone."""
        with self._lock:
            self._move(self.reset_from or min(len(self.edits), self.position + 1))

    def reset(self) -> None:
        """Back to the original weights; redo returns to the edit that was on."""
        with self._lock:
            self.reset_from = self.position or self.reset_from
            self._move(0)

    def rest(self) -> None:
        """Let the memory of an idle workspace go: edits come back when asked for, the result from the database."""
        with self._lock:
            for edit in self.edits:
                edit.put_away()
            self.shown = None

    def clear(self) -> None:
        """Forget every edit, as when another model was loaded."""
        with self._lock:
            self.edits = []
            self.position = self.reset_from = 0

    def forget(self, run: int) -> None:
        """Have nothing of a run that was deleted: where its edit was on, the original weights are."""
        with self._lock:
            on = self.current
            self.edits = [edit for edit in self.edits if edit.run_id != run]
            self.position = self.edits.index(on) + 1 if on in self.edits else 0
            self.reset_from = 0
            if self.shown is not None and self.shown.run_id == run:
                self.shown = None
            if self.comparison == run:
                self.comparison = None

    def stamp(self) -> tuple:
        """What a page shows of it: another stamp means that the page is behind."""
        with self._lock:
            return [one.run_id for one in self.edits], self.position, self.shown.run_id if self.shown else None

    def _move(self, position: int) -> None:
        """Go to a place. Only the edit that is on stays in memory; with the original weights, the one that was."""
        if position:
            current = self.edits[position - 1]
            current.bring_back()  # first of all: nothing moves when its file has gone
            for other in self.edits:
                if other is not current:
                    other.put_away()
            self.reset_from = 0
        self.position = position

    def badge(self) -> str:
        current = self.current
        return current.label if current else "original weights"
