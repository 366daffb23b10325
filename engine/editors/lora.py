"""LoRA, through the peft library: adapters on attention projections, tuned on the answers and handed over as Δθ.

Its Score stays near zero on the embedded model: it changes the unrelated prompts as it learns the edits. With 20
CounterFact `valid` facts ES/LS are .05/.75 after 10 passes at 2e-4, .80/.25 after 20, .95/.00 at 5e-3, and no rate that
was tried between has both; other layers were not tried (assets/tuning/lora.json).
"""

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field

import torch
from torch import nn

from engine.delta import WeightDelta
from engine.editors import Edit, Editor, register, shift_figures
from engine.facts import Fact
from engine.layers import layers_at_depth
from engine.method_settings import resolved
from engine.model import EditableModel, EditModule
from engine.progress import Progress, silent
from engine.prompts import encode_facts
from engine.setting_bounds import BATCHES, LOSSES, RATES, SEEDS, STEPS
from engine.tuning import Schedule, tune
from engine.work import Work, tokens_of, tuning

ADAPTER = "facts"


@dataclass(frozen=True)
class LoraSettings:
    """A value of 0, or none, is this model's own, but for dropout and seed."""

    modules: str = field(
        default="",
        metadata={"help": "adapted matrices by their names within a layer, comma-separated; empty: this model's own"},
    )
    layers: str = field(default="", metadata={"help": "adapted layers, such as 12-17; empty: all"})
    rank: int = field(default=8, metadata={"help": "rank r of B A", "bounds": (1, 4096)})
    alpha: float = field(
        default=32.0, metadata={"help": "α; the adapter's output is multiplied by α / r", "bounds": (1.0, 1e4)}
    )
    dropout: float = field(
        default=0.1, metadata={"help": "share of an adapter's inputs left out while tuning", "bounds": (0.0, 0.99)}
    )
    learning_rate: float = field(default=0.0, metadata={"help": "of Adam; 0: this model's own", "bounds": RATES})
    steps: int = field(
        default=0, metadata={"help": "passes over the facts, at most; 0: this model's own", "bounds": STEPS}
    )
    batch_size: int = field(
        default=0, metadata={"help": "facts for each step of Adam; 0: this model's own", "bounds": BATCHES}
    )
    stop_below: float = field(default=1e-2, metadata={"help": "loss, in nats, at which tuning stops", "bounds": LOSSES})
    seed: int = field(
        default=0, metadata={"help": "of A's start, of the dropout and of the order of the facts", "bounds": SEEDS}
    )


@register("lora")
class Lora(Editor):
    """W x + (α / r) B A x, with B = 0 at the start; merged, Δθ (D_h, D_g) = (α / r) (B A)ᵀ."""

    title = "LoRA"
    Settings = LoraSettings
    grid = {
        "learning_rate": (2e-4, 5e-4, 1e-3, 2e-3, 5e-3),
        "steps": (10, 20, 40),
        "rank": (4, 8, 16),
        "batch_size": (8, 32),
        "layers": ("0-31 of 32", "12-31 of 32", "12-23 of 32"),
    }

    def modules(self, model: EditableModel) -> list[EditModule]:
        settings = resolved(self.settings, model, self.name)
        names = [name.strip() for name in settings.modules.split(",")]
        return model.modules_within(names, layers_at_depth(settings.layers, model.layer_count))

    def work(self, model: EditableModel, facts: Sequence[Fact]) -> Work:
        modules, settings = self.modules(model), resolved(self.settings, model, self.name)
        parameters = sum(settings.rank * (module.d_h + module.d_g) for module in modules)
        return tuning(model, modules, tokens_of(encode_facts(model, facts)), settings.steps, parameters)

    def edit(self, model: EditableModel, facts: Sequence[Fact], progress: Progress = silent) -> Edit:
        started = time.perf_counter()
        settings = resolved(self.settings, model, self.name)
        schedule = Schedule(
            settings.learning_rate, settings.steps, settings.batch_size, settings.stop_below, settings.seed
        )
        encoded = encode_facts(model, facts)
        modules = self.modules(model)
        # All devices' generators are put back: nothing else shall feel the seed.
        with torch.random.fork_rng(devices=range(torch.cuda.device_count())):
            torch.manual_seed(settings.seed)
            with _adapted(model, modules, settings) as adapters:
                parameters = [tensor for adapter in adapters for tensor in adapter.parameters() if tensor.requires_grad]
                tuned = tune(model, parameters, encoded, modules[0].layer, schedule, progress)
                shifts = {module.name: _merged(adapter, module) for module, adapter in zip(modules, adapters)}
        info = {"facts": len(facts), **asdict(settings), "passes": tuned.passes, "loss": tuned.loss}
        delta = WeightDelta(shifts, model.sha256, self.name, info)
        seconds = time.perf_counter() - started
        return Edit(delta, seconds, tuned.tokens, tuned.notes(schedule), shift_figures(model, delta))


@contextmanager
def _adapted(model: EditableModel, modules: Sequence[EditModule], settings: LoraSettings) -> Iterator[list[nn.Module]]:
    """peft's layers in the place of the modules, in their order; afterwards the very same modules are back.

    Only the adapters are in training mode: the model's own dropout stays off.
    """
    from peft import LoraConfig
    from peft.tuners.lora import LoraModel

    config = LoraConfig(
        r=settings.rank,
        lora_alpha=settings.alpha,
        lora_dropout=settings.dropout,
        target_modules=[module.name for module in modules],
        fan_in_fan_out=not modules[0].transposed,
    )
    originals = {module.name: model.lm.get_submodule(module.name) for module in modules}
    try:
        LoraModel(model.lm, config, ADAPTER)
        for parameter in model.lm.parameters():
            if parameter.requires_grad:  # peft makes adapters in the model's dtype, where a small step rounds away
                parameter.data = parameter.data.float()
        yield [model.lm.get_submodule(module.name) for module in modules]
    finally:
        for name, original in originals.items():
            model.lm.set_submodule(name, original)
        model.lm.__dict__.pop("peft_config", None)


def _merged(adapter: nn.Module, module: EditModule) -> torch.Tensor:
    """Δθ (D_h, D_g) float32 of one adapter."""
    shift = adapter.get_delta_weight(ADAPTER).detach().float()
    return shift.T.contiguous() if module.transposed else shift
