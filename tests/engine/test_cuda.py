"""On a CUDA device everything is what it is on the CPU. Collected only where there is one (tests/engine/conftest.py)."""

import copy
from dataclasses import replace

import pytest
import torch

from engine.checkpoint import Checkpoint
from engine.editing import run_edit
from engine.editors import EDITORS
from engine.errors import MemoryLimitError
from engine.generation import probe
from engine.loading import load_model
from engine.memory import PeakMemory, memory_limit
from engine.metrics import score
from engine.model import EditableModel
from engine.recorder import Recorder
from engine.train_settings import METHODS
from tests.engine import tiny
from tests.engine.test_editors import FACTS, FAMILIES, LEARNED, cache, make  # noqa: F401
from tests.engine.test_model import assert_untouched, weights
from tests.engine.test_trainer import trainer

CUDA = torch.device("cuda")


def on_cuda(model: EditableModel) -> EditableModel:
    """A copy of a tiny model there, in float32."""
    placement = replace(model.placement, device=CUDA)
    return EditableModel(copy.deepcopy(model.lm).to(CUDA), model.tokenizer, model.name, placement)


@pytest.fixture(params=FAMILIES)
def pair(request, tiny_model) -> tuple[EditableModel, EditableModel]:
    model = tiny_model(request.param)
    return model, on_cuda(model)


def edits(name: str, pair: tuple[EditableModel, EditableModel], **settings):
    """The same editor's edit of the same facts on either device."""
    here, there = pair
    if "hypernetwork" not in EDITORS[name].needs:
        return [make(name, model, **settings).edit(model, FACTS) for model in pair]
    checkpoint = tiny.random_checkpoint(here, name)
    moved = Checkpoint(checkpoint.name, copy.deepcopy(checkpoint.hypernet).to(CUDA), checkpoint.card)
    return [
        make(name, here, checkpoint, **settings).edit(here, FACTS),
        make(name, there, moved, **settings).edit(there, FACTS),
    ]


def test_a_pass_keeps_a_part_of_what_is_free(pair):
    here, there = pair
    assert here.activation_room is None
    assert 0 < there.activation_room <= torch.cuda.get_device_properties(0).total_memory // 4
    assert 0 < there.chunk_tokens(0) <= there.placement.tokens_per_chunk


@pytest.mark.parametrize("name", EDITORS)
def test_edit_is_the_same(pair, name):
    before = weights(pair[1])
    settings = {"dropout": 0.0} if name == "lora" else {}
    settings |= {"keep_unrelated": True} if name in ("agrade", "malmen") else {}
    here, there = edits(name, pair, **settings)
    assert pair[0].sha256 == pair[1].sha256
    for module, shift in here.delta.shifts.items():
        other = there.delta.shifts[module]
        assert other.device.type == "cuda" and other.dtype is torch.float32
        error = torch.linalg.vector_norm(shift - other.cpu()) / torch.linalg.vector_norm(shift)
        assert error < 1e-2, f"{module}: {float(error):.1e}"
    assert_untouched(pair[1], before)


def test_scores_and_probe_are_the_same(pair):
    here, there = pair
    delta, moved = (edit.delta for edit in edits("agrade", pair))
    one, other = score(here, FACTS, delta), score(there, FACTS, moved)
    assert [(metric.name, metric.protocol, metric.value) for metric in one.metrics] == [
        (metric.name, metric.protocol, metric.value) for metric in other.metrics
    ]
    assert probe(here, FACTS[0].prompt, delta).after.text == probe(there, FACTS[0].prompt, moved).after.text


@pytest.mark.parametrize("method", METHODS)
def test_training_is_the_same(pair, tmp_path, method):
    changes = {"method": method, "steps": 3, "rounds": 2, "smallest_batch": 5, "cache_gb": 1.0}
    changes |= {} if method == "mend" else {"old_keys": 4.0}
    runs = [trainer(model, tmp_path / model.device.type, **changes) for model in pair]
    records = [[], []]
    for run, own in zip(runs, records):
        run.run(on_step=own.append)
    for one, other in zip(*records):
        for name in ("loss", "gradient_norm", "loss_unrelated"):
            assert other[name] == pytest.approx(one[name], rel=1e-2)


def test_model_is_loaded_in_bfloat16_and_edited_in_float32(tiny_model, tmp_path):
    here = tiny_model("llama")
    folder = tiny.save(here, tmp_path / "model")
    for device in ("auto", "cuda:0", "balanced"):
        model = load_model(str(folder), device)
        assert model.dtype is torch.bfloat16 and model.device.type == "cuda"
        for name in LEARNED:
            checkpoint = tiny.random_checkpoint(here, name)
            card = checkpoint.card | {"model_sha256": model.sha256}
            moved = Checkpoint(checkpoint.name, checkpoint.hypernet.to(CUDA), card)
            for shift in make(name, model, moved).edit(model, FACTS).delta.shifts.values():
                assert shift.dtype is torch.float32 and torch.isfinite(shift).all() and shift.norm() > 0


@pytest.mark.parametrize("name", [name for name, editor in EDITORS.items() if editor.records])
def test_record_and_peak_memory(pair, tmp_path, name):
    there = pair[1]
    folder = None
    if name in LEARNED:
        folder = tiny.random_checkpoint(pair[0], name).save(tmp_path / "checkpoint")
    recorder = Recorder(tmp_path / "record")
    run = run_edit(there, FACTS, name, hypernet=folder, recorder=recorder)
    assert not recorder.try_write(there) and (tmp_path / "record").exists()
    assert run.peak_memory_bytes > run.base_memory_bytes > 0


def test_peak_is_what_was_allocated():
    with PeakMemory(CUDA) as memory:
        held = torch.zeros(2**20, device=CUDA)
        del held
    assert 2**22 <= memory.peak_bytes - memory.start_bytes < 2**24


def test_running_out_of_memory_is_told():
    with pytest.raises(MemoryLimitError, match="ran out of memory; the weights are the original ones"):
        with memory_limit("The edit"):
            torch.empty(2**45, device=CUDA)
