"""Any prompt, asked before and after a person's edit, and kept with the run."""

from engine.errors import EditingError
from engine.generation import Probe, probe
from engine.memory import memory_limit
from studio.own_thread import in_own_thread
from studio.studio import Studio
from studio.workspace import Workspace

PATIENCE_SECONDS = 20.0


def ask(studio: Studio, workspace: Workspace, prompt: str) -> Probe:
    """The model's answers to `prompt`, with the original weights and with the workspace's edit.

    Raises EditingError without a model, for an unusable prompt, and when other work keeps the model for too long.
    """
    model, edit = studio.require_model(), workspace.current
    if not model.lock.acquire(timeout=PATIENCE_SECONDS):
        raise EditingError("The model is at work on something else. Ask again when that is done.")
    try:
        with memory_limit("The probe"):
            found = in_own_thread(probe, model, prompt, edit.delta if edit else None)
    finally:
        model.lock.release()
    if edit is not None:
        studio.store.record_probe(edit.run_id, prompt, found)
    return found
