"""What the tabs and the command line share: the loaded model and its pace, the database, the jobs, workspaces.

It is made once in app.py and handed on; there is no other place that knows them all.
"""

import threading
import uuid
from pathlib import Path
from typing import Any

import torch

from engine import embedded
from engine.checkpoint import find_checkpoints, read_card
from engine.errors import Cancelled, ModelError
from engine.loading import load_model
from engine.memory import settle
from engine.model import EMBEDDED, EditableModel
from engine.progress import Progress, silent
from studio.estimate import Pace
from studio.jobs import Jobs, sentence
from studio.store import Store
from studio.workspace import Workspace

LOADING = "The model is not loaded yet. Wait until the sidebar names it, then try again."
# Workspaces that keep their edit and its result in memory; a program that calls has a new one each time.
AWAKE = 8
CALLER, CALLERS = "client-", 32  # such workspaces, of programs, are let go themselves but for the last used ones
CANCELLED = "There is no model: its loading was cancelled. Load one in the sidebar, then try again."


class Studio:
    """One running program. `model` is None until `load_model` has returned.

    `hypernet`: a checkpoint folder named on the command line, offered first. `origin`: who logs sessions.
    `local`: only this computer can reach the page.
    """

    def __init__(self, store: Store, hypernet: Path | None = None, origin: str = "studio"):
        self.store, self.hypernet, self.origin = store, hypernet, origin
        self.local = True
        self.jobs = Jobs()
        self.pace = Pace()
        self.model: EditableModel | None = None
        self._no_model = LOADING
        self.cache = embedded.cache_path()
        self._workspaces: dict[str, Workspace] = {}  # the one last used is the last
        self._lock = threading.Lock()

    @property
    def hypernet_folders(self) -> tuple[Path, ...]:
        """Where checkpoints trained on this machine lie."""
        return (self.cache / "hypernets",)

    def load_model(
        self,
        name: str = EMBEDDED,
        device: str = "auto",
        dtype: str = "auto",
        module_pattern: str | None = None,
        progress: Progress = silent,
    ) -> EditableModel:
        """Load a model in place of the present one. Workspaces lose their edits: those were of the other model.

        The present one stays until the new one is there, unless a graphics card has no room for both.
        """
        self._no_model = LOADING
        try:
            model = self._fitted(name, device, dtype, module_pattern, progress)
        except Exception as error:
            self._no_model = CANCELLED if isinstance(error, Cancelled) else sentence(error)
            raise
        with self._lock:
            same = self.model is not None and self.model.sha256 == model.sha256
            self.model = model
            if not same:
                self._clear()
        return model

    def _fitted(self, *wanted: Any) -> EditableModel:
        """The loaded model; where it has no room beside the present one, that one goes."""
        try:
            return load_model(*wanted)
        except torch.OutOfMemoryError:
            if self.model is None:
                raise
        self._let_go()  # only now: the error held the half-loaded one
        return load_model(*wanted)

    def _let_go(self) -> None:
        """Have no model. What still works with it keeps it until it ends."""
        with self._lock:
            device, self.model = self.model.device, None
            self._clear()
        settle(device)

    def _clear(self) -> None:
        for workspace in self._workspaces.values():
            workspace.clear()

    def require_model(self) -> EditableModel:
        """The loaded model. Raises ModelError without one: it is still being loaded, or why that did not succeed."""
        if self.model is None:
            raise ModelError(self._no_model)
        return self.model

    def hypernets(self, method: str = "") -> list[tuple[str, Path]]:
        """(label, folder) of the checkpoints of `method` (of every one: "") for the loaded model, the best one first."""
        if self.model is None:
            return []
        found = find_checkpoints(self.model.sha256, self.hypernet_folders)
        if self.hypernet is not None:
            found.insert(0, (self.hypernet, read_card(self.hypernet) | {"default": True}))
        fitting = [(folder, card) for folder, card in found if method in ("", card["settings"]["method"])]
        fitting.sort(key=lambda pair: not pair[1].get("default", False))
        return [(folder.name, folder) for folder, _card in fitting]

    def workspace(self, key: str | None = None) -> Workspace:
        """The workspace of that id, made when there is none yet."""
        with self._lock:
            key = key or uuid.uuid4().hex[:12]
            found = self._workspaces.pop(key, None) or Workspace(key, self.store.start_session(self.origin, key))
            self._workspaces[key] = found
            return found

    def caller(self, session_hash: str) -> Workspace:
        """The workspace of a program that calls."""
        found = self.workspace(f"{CALLER}{session_hash}")
        with self._lock:
            for key in [key for key in self._workspaces if key.startswith(CALLER)][:-CALLERS]:
                del self._workspaces[key]
        return found

    def rest_idle(self, but: Workspace) -> None:
        """Let the memory of all workspaces go but for the last used ones and the one that was just edited."""
        with self._lock:
            idle = list(self._workspaces.values())[:-AWAKE]
        for workspace in idle:
            if workspace is not but:
                workspace.rest()

    def forget(self, run: int) -> None:
        """Let no workspace keep an edit of a run that was deleted."""
        with self._lock:
            for workspace in self._workspaces.values():
                workspace.forget(run)

    def close(self) -> None:
        """Stop the jobs and close the database."""
        self.jobs.close()
        self.store.close()
