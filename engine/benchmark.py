"""How fast editing and training run on this machine, and how near to its matrix-multiply rate.

Ratios within one run are what to compare: absolute seconds depend on what else the machine does.
"""

import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from engine.checkpoint import Checkpoint
from engine.editing import make_editor
from engine.editors import EDITORS, Editor
from engine.errors import CheckpointError
from engine.facts import Fact
from engine.hypernet import HyperNet
from engine.memory import PeakMemory
from engine.model import EditableModel
from engine.progress import Progress, silent
from engine.train_settings import TrainSettings
from engine.trainer import Trainer

RATE_SECONDS = 1.0


def matmul_rate(device: torch.device, dtype: torch.dtype, rows: int = 2048, inner: int = 576, columns: int = 1536) -> float:
    """Measured multiply-add rate of (rows, inner) @ (inner, columns), in operations (2 a multiply-add) a second."""
    left = torch.randn(rows, inner, device=device, dtype=dtype)
    right = torch.randn(inner, columns, device=device, dtype=dtype)
    synchronise = torch.cuda.synchronize if device.type == "cuda" else (lambda: None)
    for _ in range(3):
        left @ right
    synchronise()
    started, count = time.perf_counter(), 0
    while time.perf_counter() - started < RATE_SECONDS:
        for _ in range(10):
            left @ right
        synchronise()
        count += 10
    return 2 * rows * inner * columns * count / (time.perf_counter() - started)


def measure(
    model: EditableModel, facts: Sequence[Fact], hypernet: Path | None, repeat: int, progress: Progress = silent
) -> list[tuple[str, str]]:
    """Rows (what, figure with its unit) for an AGRADE edit of `facts` at once and for one training step on them."""
    editor = _editor(model, hypernet)
    modules = editor.checkpoint.hypernet.modules_edited
    weight = model.weight(modules[0])
    d_g, d_h = modules[0].d_g, modules[0].d_h
    rate = statistics.median(matmul_rate(model.device, model.dtype, 2048, d_g, d_h) for _ in range(3))
    editor.edit(model, facts[:8])
    taken = []
    with PeakMemory(model.device) as memory:
        for index in range(repeat):
            progress("Timing edits", index, repeat)
            edit = editor.edit(model, facts)
            taken.append((edit.seconds, edit.tokens))
            del edit  # its weight shift is no part of the next one's memory
    seconds, tokens = statistics.median(one for one, _ in taken), taken[0][1]
    operations = _operations(lambda: editor.edit(model, facts))
    step_seconds, step_operations, step_facts, step_memory = _training_step(model, facts, editor, progress)
    shape = f"(2048, {d_g}) @ ({d_g}, {d_h})"
    return [
        ("facts edited at once", f"{len(facts)}"),
        ("edited modules", f"{len(modules)}, {modules[0].name} … {modules[-1].name}"),
        (f"matrix-multiply rate, {shape}, {str(model.dtype).removeprefix('torch.')}", f"{rate / 1e9:.0f} GFLOP/s"),
        ("edit: seconds, tokenisation included", f"{seconds:.2f} s"),
        ("edit: seconds per 100 facts", f"{100 * seconds / len(facts):.3f} s"),
        ("edit: tokens per second", f"{tokens / seconds:.0f}"),
        ("edit: operations", f"{operations / 1e12:.2f} TFLOP"),
        ("edit: share of the matrix-multiply rate", f"{operations / seconds / rate:.0%}"),
        ("edit: time over the matrix-multiply limit", f"{seconds * rate / operations:.2f}×"),
        ("edit: peak memory, model included", f"{memory.peak_bytes / 1e9:.2f} GB"),
        ("edit: peak memory above the start", f"{(memory.peak_bytes - memory.start_bytes) / 1e9:.2f} GB"),
        ("model weights", f"{sum(p.numel() * p.element_size() for p in model.lm.parameters()) / 1e9:.2f} GB, {weight.dtype}"),
        ("training step: facts", f"{step_facts}"),
        ("training step: seconds per 100 facts", f"{100 * step_seconds / step_facts:.3f} s"),
        ("training step: share of the matrix-multiply rate", f"{step_operations / step_seconds / rate:.0%}"),
        ("training step: peak memory, model included", f"{step_memory / 1e9:.2f} GB"),
    ]


def _editor(model: EditableModel, hypernet: Path | None) -> Editor:
    """AGRADE with the checkpoint for this model, or with an untrained hypernetwork: timing does not care."""
    try:
        return make_editor(model, "agrade", hypernet=hypernet)[0]
    except CheckpointError:
        if hypernet is not None:
            raise
    card = {"model": model.name, "model_sha256": model.sha256, "settings": {"projection": "scaled", "scope": "answer"}}
    network = HyperNet(model.edit_modules()).to(model.device).requires_grad_(False)
    cls = EDITORS["agrade"]
    return cls(cls.Settings(), Checkpoint("untrained", network, card))


class _OperationCounter(TorchDispatchMode):
    """Counts the operations of matrix products, forward and backward, by torch's own formulas.

    FlopCounterMode itself cannot follow torch.autograd.grad from a hooked module's output.
    """

    def __init__(self):
        super().__init__()
        self.total = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        out = function(*args, **(kwargs or {}))
        formula = flop_registry.get(function._overloadpacket)
        if formula is not None:
            self.total += formula(*args, **(kwargs or {}), out_val=out)
        return out


def _operations(work: Callable[[], object]) -> int:
    with _OperationCounter() as counter:
        work()
    return counter.total


def _training_step(
    model: EditableModel, facts: Sequence[Fact], editor: Editor, progress: Progress
) -> tuple[float, int, int, int]:
    """(seconds, operations, facts, peak bytes) of one step; the trunk's outputs are kept from a step before."""
    facts = list(facts)[:256]
    layers = ",".join(str(module.layer) for module in editor.checkpoint.hypernet.modules_edited)
    scope, size = editor.checkpoint.card["settings"]["scope"], len(facts)
    settings = TrainSettings(layers=layers, scope=scope, smallest_batch=size, largest_batch=size, steps=3)
    with tempfile.TemporaryDirectory() as folder, PeakMemory(model.device) as memory:
        trainer = Trainer(model, {"facts": facts}, {}, settings, Path(folder))
        progress("Timing a training step", 0, 2)
        trainer.train_step()
        progress("Timing a training step", 1, 2)
        record = trainer.train_step()
        operations = _operations(trainer.train_step)
    return record["seconds"], operations, size, memory.peak_bytes
