"""What a person takes away of an edit: the edited model, in a folder and in a zip, its results and its facts."""

import errno
import hashlib
import zipfile
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import GenerationConfig

from engine.errors import EditingError
from engine.facts import FactBatch
from studio.edit_job import FinishedEdit
from studio.exports import export_model, export_results, folder_of, write_facts
from studio.runs import EditRequest, execute_edit, write_results
from tests.engine.test_model import assert_untouched, weights
from tests.engine.tiny import FACTS


def test_the_merged_model_has_the_edited_weights_and_the_loaded_one_its_own(drawn, hypernet_folder):
    model, session = drawn.model, drawn.store.start_session("test", "w3")
    batch = FactBatch(FACTS, "tiny.csv", "studio")
    number, run = execute_edit(drawn, session, EditRequest(batch, "agrade", {}, hypernet_folder, 0, keep=0))
    before = weights(model)
    folder, packed = export_model(drawn.store, FinishedEdit(number, run, FACTS), model)
    assert_untouched(model, before)
    assert len({path.stat().st_mode for path in folder.iterdir()}) == 1  # readable like any file of the person's
    merged, changed = load_file(folder / "model.safetensors"), {f"{name}.weight" for name in run.delta.shifts}
    with model.edited(run.delta):
        edited = {name: tensor.clone() for name, tensor in model.lm.state_dict().items()}
    assert changed <= merged.keys() <= edited.keys()
    for name, tensor in merged.items():
        assert torch.equal(tensor, edited[name]), name
        assert torch.equal(tensor, before[name]) == (name not in changed), name
    with zipfile.ZipFile(packed) as archive:
        assert set(archive.namelist()) == {path.name for path in folder.iterdir()}
        assert archive.read("model.safetensors") == (folder / "model.safetensors").read_bytes()


@pytest.mark.parametrize(
    ("settings", "kept"),
    [
        ({"temperature": 0.9, "top_p": 0.6}, {"temperature": 0.9, "top_p": 0.6, "do_sample": True}),  # as published
        ({"length_penalty": 2.0, "eos_token_id": 3}, {"eos_token_id": 3}),
        ({"pad_token_id": -1, "bos_token_id": 2}, {"bos_token_id": 2}),
    ],
)
def test_a_model_with_generation_settings_that_cannot_be_saved_is_exported(
    drawn, hypernet_folder, monkeypatch, settings, kept
):
    own = GenerationConfig(**settings)
    monkeypatch.setattr(drawn.model.lm, "generation_config", own)
    session = drawn.store.start_session("test", "w3")
    batch = FactBatch(FACTS, "tiny.csv", "studio")
    number, run = execute_edit(drawn, session, EditRequest(batch, "agrade", {}, hypernet_folder, 0, keep=0))
    folder, _ = export_model(drawn.store, FinishedEdit(number, run, FACTS), drawn.model)
    saved = GenerationConfig.from_pretrained(folder)
    assert {name: getattr(saved, name) for name in kept} == kept
    assert drawn.model.lm.generation_config is own and not own.do_sample


def test_results_are_noted_as_they_are_also_where_such_files_lay(drawn, hypernet_folder):
    session = drawn.store.start_session("test", "w3")
    batch = FactBatch(FACTS, "tiny.csv", "studio")
    number, run = execute_edit(drawn, session, EditRequest(batch, "agrade", {}, hypernet_folder, 0, keep=0))
    write_results(run, FACTS, folder_of(drawn.store, number))
    edit = FinishedEdit(number, run, FACTS)
    for _ in range(2):
        paths = export_results(drawn.store, edit)
        noted = {Path(one["path"]): one["sha256"] for one in drawn.store.run(number).artifacts}
        assert noted == {path: hashlib.sha256(path.read_bytes()).hexdigest() for path in paths}
        run.notes.append("Another note.")


def test_facts_are_written_whole_or_not_at_all(tmp_path, monkeypatch):
    path = write_facts(FACTS[:1], tmp_path / "facts")
    before = path.read_bytes()

    def full(_facts, path):
        path.write_bytes(before[:10])
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("studio.exports.write_csv", full)
    with pytest.raises(EditingError, match="No space left on device"):
        write_facts(FACTS, tmp_path / "facts")
    assert path.read_bytes() == before and list(tmp_path.iterdir()) == [path]
