"""A person's own edits: a line of weight deltas with a place in it. The shared model is never changed."""

from dataclasses import dataclass, field
from typing import Any

from engine.delta import WeightDelta
from engine.facts import FactBatch


@dataclass(frozen=True)
class AppliedEdit:
    """One applied edit: its run in the store, its delta, and what the badge says of it."""

    run_id: int
    delta: WeightDelta
    label: str


@dataclass
class Workspace:
    """The edits of one browser session. Each was computed from the original weights and replaces the one before.

    `batch`: the facts last read; `shown`: the result last shown; `comparison`: the run of the last one. `session`: its
    row in the store.
    """

    id: str
    session: int
    batch: FactBatch | None = None
    shown: Any = None
    comparison: int | None = None
    edits: list[AppliedEdit] = field(default_factory=list)
    position: int = 0

    def apply(self, edit: AppliedEdit) -> None:
        """Put an edit on; what was undone before is forgotten."""
        del self.edits[self.position :]
        self.edits.append(edit)
        self.position = len(self.edits)

    @property
    def current(self) -> AppliedEdit | None:
        return self.edits[self.position - 1] if self.position else None

    @property
    def delta(self) -> WeightDelta | None:
        """What this workspace's model is shifted by; None for the original weights."""
        return self.current.delta if self.current else None

    @property
    def run_id(self) -> int | None:
        return self.current.run_id if self.current else None

    @property
    def can_undo(self) -> bool:
        return self.position > 0

    @property
    def can_redo(self) -> bool:
        return self.position < len(self.edits)

    def undo(self) -> None:
        self.position = max(0, self.position - 1)

    def redo(self) -> None:
        self.position = min(len(self.edits), self.position + 1)

    def reset(self) -> None:
        """Back to the original weights; the edits can be had again by redo."""
        self.position = 0

    def clear(self) -> None:
        """Forget every edit, as when another model was loaded."""
        self.edits.clear()
        self.position = 0

    def stamp(self) -> tuple:
        """What a page shows of it: another stamp means that the page is behind."""
        return [one.run_id for one in self.edits], self.position, self.shown.run_id if self.shown else None

    def badge(self) -> str:
        return self.current.label if self.current else "original weights"
