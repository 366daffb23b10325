"""A person's own edits: the way through them, and where their weight shifts lie meanwhile."""

import errno
import gc
import tempfile
import threading
import weakref

import pytest
import torch

from engine.delta import WeightDelta
from engine.errors import CheckpointError
from studio.components.result_summary import standing
from studio.workspace import KEPT, AppliedEdit, Workspace


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    """Where what is put away lies."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    return tmp_path


def test_what_is_on_is_looked_up_once_for_another_thread_may_take_it_off(monkeypatch):
    for read, found in ((Workspace.badge, "3"), (lambda own: own.run_id, 3)):
        workspace = edited(3)
        seen = [workspace.current, None]
        with monkeypatch.context() as patch:
            patch.setattr(Workspace, "current", property(lambda _: seen.pop(0)))
            assert read(workspace) == found


def shift(run: int) -> torch.Tensor:
    return torch.randn(5, 3, generator=torch.Generator().manual_seed(run))


def edited(*runs: int) -> Workspace:
    workspace = Workspace("w", 1)
    for run in runs:
        workspace.apply(AppliedEdit(run, WeightDelta({"layer": shift(run)}, "model", "agrade", {"run": run}), f"{run}"))
    return workspace


def now(workspace: Workspace) -> int | None:
    """The run that is on, its weight shift as it was computed."""
    if workspace.current is None:
        return None
    delta = workspace.current.delta
    assert torch.equal(delta.shifts["layer"], shift(workspace.run_id)) and delta.info == {"run": workspace.run_id}
    return workspace.run_id


def test_edits_are_taken_off_and_put_on_again_as_they_were_computed():
    workspace = edited(1, 2, 3)
    assert now(workspace) == 3
    assert [(workspace.undo(), now(workspace))[1] for _ in range(4)] == [2, 1, None, None]
    assert [(workspace.redo(), now(workspace))[1] for _ in range(4)] == [1, 2, 3, 3]
    workspace.reset()
    assert now(workspace) is None and workspace.badge() == "original weights"
    workspace.redo()
    assert now(workspace) == 3 and workspace.badge() == "3"


def test_redo_after_reset_returns_to_the_edit_that_was_on_and_goes_on_from_there():
    workspace = edited(1, 2, 3)
    workspace.undo()
    workspace.shown = workspace.current
    workspace.reset()
    assert "Redo puts it on again" in standing(workspace)
    workspace.undo()  # there is nothing before the original weights
    workspace.reset()
    assert [(workspace.redo(), now(workspace))[1] for _ in range(2)] == [2, 3]
    workspace.reset()
    workspace.redo()
    assert [(workspace.undo(), now(workspace))[1] for _ in range(3)] == [2, 1, None]
    workspace.redo()
    assert now(workspace) == 1, "redo goes step by step where undo led"


def test_an_edit_applied_after_reset_stands_alone():
    workspace = edited(1, 2)
    workspace.reset()
    workspace.apply(AppliedEdit(3, WeightDelta({"layer": shift(3)}, "model", "agrade", {"run": 3}), "3"))
    workspace.undo()
    assert now(workspace) is None
    workspace.redo()
    assert now(workspace) == 3 and not workspace.can_redo
    workspace.reset()
    workspace.clear()
    workspace.redo()
    assert now(workspace) is None


def test_only_the_delta_of_the_edit_that_is_on_is_in_memory():
    workspace = Workspace("w", 1)
    deltas = [WeightDelta({"layer": shift(run)}, "model", "agrade") for run in range(4)]
    kept = [weakref.ref(one) for one in deltas]
    while deltas:
        workspace.apply(AppliedEdit(4 - len(deltas), deltas.pop(0), ""))
    gc.collect()
    assert [one() is not None for one in kept] == [False, False, False, True]
    workspace.undo()
    gc.collect()
    assert [one() is not None for one in kept] == [False] * 4, "what was undone is in its file too"


def test_only_the_last_edits_are_kept_and_the_files_of_the_others_go(folder):
    """A program that goes on applying would fill the disk: a large model's delta is a gigabyte."""
    workspace = edited(*range(1, 16))
    assert now(workspace) == 15 and len(list(folder.iterdir())) == KEPT - 1
    assert [(workspace.undo(), now(workspace))[1] for _ in range(KEPT + 1)] == [*range(14, 15 - KEPT, -1), None, None]


def test_a_run_deleted_while_an_edit_is_put_on_leaves_the_workspace_whole(monkeypatch):
    workspace, begun, go_on = edited(1, 2), threading.Event(), threading.Event()
    put_away = AppliedEdit.put_away

    def slowly(edit):
        begun.set()
        go_on.wait(60)
        put_away(edit)

    monkeypatch.setattr(AppliedEdit, "put_away", slowly)
    third = AppliedEdit(3, WeightDelta({"layer": shift(3)}, "model", "agrade", {"run": 3}), "3")
    threads = [threading.Thread(target=workspace.apply, args=[third])]
    threads[0].start()
    assert begun.wait(60)
    threads.append(threading.Thread(target=workspace.forget, args=[1]))
    threads[1].start()
    go_on.set()
    for thread in threads:
        thread.join(60)
    assert now(workspace) == 3 and [one.run_id for one in workspace.edits] == [2, 3] and workspace.badge() == "3"


def test_a_workspace_at_rest_holds_nothing_in_memory_and_goes_on_where_it_was():
    workspace = Workspace("w", 1)
    delta = WeightDelta({"layer": shift(1)}, "model", "agrade", {"run": 1})
    kept = weakref.ref(delta)
    workspace.apply(AppliedEdit(1, delta, "1"))
    workspace.shown = delta
    del delta
    workspace.rest()
    gc.collect()
    assert kept() is None and workspace.shown is None
    assert now(workspace) == 1 and workspace.badge() == "1"


def test_what_is_forgotten_leaves_no_file(folder):
    workspace = edited(1, 2, 3)
    assert len(list(folder.iterdir())) == 2
    workspace.undo()
    workspace.undo()
    workspace.apply(AppliedEdit(4, WeightDelta({"layer": shift(4)}, "model", "agrade", {"run": 4}), "4"))
    gc.collect()
    assert [one.run_id for one in workspace.edits] == [1, 4] and len(list(folder.iterdir())) == 1
    workspace.clear()
    gc.collect()
    assert not list(folder.iterdir())


def test_without_its_file_an_edit_cannot_be_put_on_and_the_present_one_stays(folder):
    workspace = edited(1, 2)
    for path in folder.rglob("*.safetensors"):
        path.unlink()
    with pytest.raises(CheckpointError, match="run 1 is no longer in"):
        workspace.undo()
    assert now(workspace) == 2
    workspace.reset()
    assert now(workspace) is None


def test_on_a_full_disk_the_deltas_stay_in_memory(folder, monkeypatch):
    def full(self, stem):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(WeightDelta, "save", full)
    workspace = edited(1, 2)
    workspace.undo()
    assert now(workspace) == 1
    workspace.redo()
    assert now(workspace) == 2
    assert not list(folder.iterdir())
