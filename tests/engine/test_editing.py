"""One edit from facts to figures: the editor is found, the hypernetwork fits, the run tells everything."""

from pathlib import Path

import pytest

from engine import checkpoint as checkpoints
from engine.editing import make_editor, run_edit
from engine.errors import CheckpointError, EditingError, FactError
from engine.metrics import score
from tests.engine import tiny
from tests.engine.test_model import assert_untouched, weights


@pytest.fixture
def model(tiny_model):
    return tiny_model("llama")


@pytest.fixture
def folders(model, tmp_path, monkeypatch) -> tuple[Path]:
    """A folder of hypernetworks: two for AGRADE, one for MALMEN, and one for another model; none is shipped."""
    monkeypatch.setattr(checkpoints, "SHIPPED", tmp_path / "none")
    for name, method in (("a first", "agrade"), ("b second", "agrade"), ("c malmen", "malmen"), ("0 other", "agrade")):
        checkpoint = tiny.random_checkpoint(model, method)
        if name == "0 other":
            checkpoint.card |= {"model": "another", "model_sha256": "0" * 64}
        checkpoint.save(tmp_path / name)
    return (tmp_path,)


def test_run_is_the_edit_with_its_score(model, folders):
    before = weights(model)
    run = run_edit(model, tiny.FACTS, "agrade", {"projection": "per_token"}, folders=folders, generate=1)
    assert_untouched(model, before)
    editor, name = make_editor(model, "agrade", {"projection": "per_token"}, folders=folders)
    delta = editor.edit(model, tiny.FACTS).delta
    assert run.delta.norms == delta.norms
    assert run.outcome == score(model, tiny.FACTS, delta, 1)
    assert (run.method, run.model, run.hypernet, run.n_facts) == ("agrade", "tiny llama", name, len(tiny.FACTS))
    assert run.settings["projection"] == "per_token" and run.settings["scope"] == "trained"
    assert run.seconds > 0 and run.score_seconds > 0 and run.tokens > 0
    assert run.peak_memory_bytes >= run.base_memory_bytes > 0


def test_facts_that_are_not_said_are_counted_with_what_to_try(model, folders):
    tiny.random_checkpoint(model, "mend").save(folders[0] / "d mend")
    for method, tries in (("agrade", 1), ("malmen", 1), ("mend", 0)):
        run = run_edit(model, tiny.FACTS, method, {"step_scale": 1e-6, "rounds": 2}, folders=folders, generate=0)
        unsaid = round((1 - run.outcome.metric("ES", "exact").value) * len(tiny.FACTS))
        told = [note for note in run.notes if note.startswith("Not said")]
        assert unsaid > 1 and len(told) == tries
        assert all(f": {unsaid} of {len(tiny.FACTS)}." in note and "(rounds=3)" in note for note in told)
    (told,) = (one for one in run_edit(model, tiny.FACTS, "ultraedit", {"eta": 1e-9}).notes if one.startswith("Not said"))
    assert f": {len(tiny.FACTS)} of {len(tiny.FACTS)}." in told and "tune FILE --method ultraedit" in told
    editor, _ = make_editor(model, "ultraedit")
    assert editor.advice(5, 10) == [] and len(editor.advice(6, 10)) == 1
    editor, _ = make_editor(model, "agrade", folders=folders)
    assert editor.advice(50, 1000) == [] and len(editor.advice(51, 1000)) == 1


def test_freed_memory_goes_back_after_every_edit_also_a_failed_one(model, folders, monkeypatch):
    given_back = []
    monkeypatch.setattr("engine.editing.give_back", given_back.append)
    run_edit(model, tiny.FACTS, "agrade", folders=folders, generate=0)
    assert given_back == [model.device]
    with pytest.raises(EditingError):
        run_edit(model, tiny.FACTS, "agrade", {"no such": 1}, folders=folders)
    assert given_back == [model.device] * 2


def test_first_fitting_hypernetwork_is_taken_unless_one_is_named_or_marked(model, folders):
    assert make_editor(model, "agrade", folders=folders)[1] == "a first"
    assert make_editor(model, "malmen", folders=folders)[1] == "c malmen"
    assert make_editor(model, "agrade", hypernet=folders[0] / "b second", folders=folders)[1] == "b second"
    chosen = tiny.random_checkpoint(model)
    chosen.card["default"] = True
    chosen.save(folders[0] / "z chosen")
    assert make_editor(model, "agrade", folders=folders)[1] == "z chosen"


def test_hypernetwork_of_another_model_is_refused(model, folders):
    with pytest.raises(CheckpointError, match="0 other was trained for another, not for tiny llama"):
        make_editor(model, "agrade", hypernet=folders[0] / "0 other")


def test_hypernetwork_of_another_method_is_refused(model, folders):
    folder = folders[0] / "c malmen"
    with pytest.raises(CheckpointError, match="was trained for MALMEN, not for AGRADE.*or edit by MALMEN"):
        make_editor(model, "agrade", hypernet=folder, weights=False)


def test_no_hypernetwork_for_the_model_says_how_to_get_one(model, folders):
    with pytest.raises(CheckpointError, match="AGRADE needs a hypernetwork trained for tiny llama.*app.py train"):
        make_editor(model, "agrade", folders=(folders[0] / "a first",))


def test_unknown_method_and_setting_are_named(model, folders):
    with pytest.raises(EditingError, match="Unknown method 'magic': choose agrade, .*malmen"):
        make_editor(model, "magic", folders=folders)
    with pytest.raises(EditingError, match="MALMEN has no setting projection; it has .*step_scale"):
        make_editor(model, "malmen", {"projection": "off"}, folders=folders)


def test_failed_run_leaves_the_model_as_it_was(model, folders):
    before = weights(model)
    with pytest.raises(FactError, match="no fact to edit"):
        run_edit(model, [], "agrade", folders=folders)
    assert_untouched(model, before)
    assert model.lock.acquire(blocking=False)
    model.lock.release()
