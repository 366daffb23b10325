"""FT: fine-tuning of one layer's second feed-forward matrix on the answers.

On the embedded model it forgets as it learns, at every rate that was tried: with 20 zsRE `valid` facts ES/LS are .00/.35
at 2e-4, .05/.10 at 5e-4, .80/.00 at 2e-3 (assets/tuning/ft.json).
"""

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field

import torch
from torch import Tensor

from engine.delta import WeightDelta
from engine.editors import Edit, Editor, register, shift_figures
from engine.facts import Fact
from engine.layers import layers_at_depth
from engine.method_settings import resolved
from engine.model import EditableModel, EditModule
from engine.progress import Progress, silent
from engine.prompts import encode_facts
from engine.setting_bounds import BATCHES, LOSSES, RATES, STEPS
from engine.tuning import Schedule, tune
from engine.work import Work, tokens_of, tuning


@dataclass(frozen=True)
class FtSettings:
    """Adam on the answer cross-entropy. A value of 0, or none, is this model's own."""

    layers: str = field(default="", metadata={"help": "tuned layers, such as 20 or 18-20; empty: this model's own"})
    learning_rate: float = field(default=0.0, metadata={"help": "of Adam; 0: this model's own", "bounds": RATES})
    steps: int = field(
        default=0, metadata={"help": "passes over the facts, at most; 0: this model's own", "bounds": STEPS}
    )
    batch_size: int = field(
        default=0, metadata={"help": "facts for each step of Adam; 0: this model's own", "bounds": BATCHES}
    )
    stop_below: float = field(default=1e-2, metadata={"help": "loss, in nats, at which tuning stops", "bounds": LOSSES})


@register("ft")
class Ft(Editor):
    """Δθ is learned itself: its product with the keys is added to the module's output, the weight stays as it is."""

    title = "FT"
    Settings = FtSettings
    grid = {
        "learning_rate": (2e-4, 5e-4, 1e-3, 2e-3, 5e-3),
        "layers": ("6 of 32", "12 of 32", "17 of 32", "21 of 32", "25 of 32", "29 of 32"),
        "batch_size": (8, 32, 64),
        "steps": (10, 25, 50),
    }

    def schedule(self, settings: FtSettings) -> Schedule:
        """The passes; facts keep their order."""
        return Schedule(settings.learning_rate, settings.steps, settings.batch_size, settings.stop_below)

    def modules(self, model: EditableModel) -> list[EditModule]:
        settings = resolved(self.settings, model, self.name)
        return model.edit_modules(layers_at_depth(settings.layers, model.layer_count))

    def work(self, model: EditableModel, facts: Sequence[Fact]) -> Work:
        modules, steps = self.modules(model), resolved(self.settings, model, self.name).steps
        parameters = sum(module.d_h * module.d_g for module in modules)
        return tuning(model, modules, tokens_of(encode_facts(model, facts)), steps, parameters)

    def edit(self, model: EditableModel, facts: Sequence[Fact], progress: Progress = silent) -> Edit:
        started = time.perf_counter()
        settings = resolved(self.settings, model, self.name)
        schedule = self.schedule(settings)
        encoded = encode_facts(model, facts)
        modules = self.modules(model)
        shifts = [
            torch.zeros(module.d_h, module.d_g, device=model.weight(module).device, requires_grad=True)
            for module in modules
        ]
        with _added(model, modules, shifts):
            tuned = tune(model, shifts, encoded, modules[0].layer, schedule, progress)
        delta = WeightDelta(
            {module.name: shift.detach() for module, shift in zip(modules, shifts)},
            model.sha256,
            self.name,
            {"facts": len(facts), **asdict(settings), "passes": tuned.passes, "loss": tuned.loss},
        )
        seconds = time.perf_counter() - started
        return Edit(delta, seconds, tuned.tokens, tuned.notes(schedule), shift_figures(model, delta))


@contextmanager
def _added(model: EditableModel, modules: Sequence[EditModule], shifts: Sequence[Tensor]) -> Iterator[None]:
    """Add H Δθ to the output of each module; Δθ (D_h, D_g) float32 gets the gradient."""

    def adds(shift: Tensor):
        return lambda _module, args, output: output + (args[0].float() @ shift).to(output)

    hooks = [
        model.lm.get_submodule(module.name).register_forward_hook(adds(shift))
        for module, shift in zip(modules, shifts)
    ]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()
