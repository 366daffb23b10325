"""What an edit is about to do, told before it: what it edits and runs, what it makes first, what it had to guess."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from engine.editing import make_editor
from engine.facts import Fact
from engine.model import EditableModel, EditModule
from engine.work import Work


@dataclass(frozen=True)
class Forecast:
    """modules: what is edited; work: of the edit; preparation: of what it makes first and then keeps; notes: of it."""

    modules: list[EditModule]
    work: Work
    preparation: Work
    notes: list[str]


def forecast(
    model: EditableModel,
    facts: Sequence[Fact],
    method: str,
    settings: Mapping[str, Any] | None = None,
    hypernet: Path | None = None,
    folders: tuple[Path, ...] = (),
) -> Forecast:
    """The forecast of `engine.editing.run_edit` with these arguments. The model does not run, no network is loaded.

    Raises what would keep the edit from beginning: EditingError for the method or a setting, CheckpointError when
    no hypernetwork fits, FactError for facts that cannot be edited, or whose subjects are unclear.
    """
    editor, _ = make_editor(model, method, settings, hypernet, folders, weights=False)
    modules = editor.modules(model)
    notes = editor.notes(facts)
    return Forecast(modules, editor.work(model, facts), editor.preparation(model), notes)
