"""MEMIT: the states from which the model says the new answers, written into several layers by least squares.

PMET, EMMET and AlphaEdit are this with another place for z*, another share for each layer, or another solve.
"""

import time
from collections.abc import Hashable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from engine.contexts import (
    OPENINGS,
    PREFIX_TOKENS,
    Contexts,
    count_tokens,
    make_contexts,
    make_prefixes,
    subject_states,
)
from engine.contributions import arriving, attention_output
from engine.covariance import Text, measure, measuring, read
from engine.delta import WeightDelta
from engine.editors import Edit, Editor, register
from engine.errors import ModelError, NonFiniteError
from engine.facts import Fact
from engine.layers import layers_at_depth
from engine.method_settings import resolved
from engine.model import EditableModel, EditModule
from engine.past import check_attention
from engine.progress import Progress, silent
from engine.prompts import encode_facts
from engine.setting_bounds import RATES, SCALES, SEEDS, STEPS
from engine.subjects import find_subjects
from engine.targets import STOP_LOSS, TargetRule, Targets, find_targets
from engine.trunk import TrunkCache
from engine.work import FLOAT32_BYTES, Work, tokens_of

FLOAT64_COST = 2  # of an operation, in those of float32
FACTORS = 3  # (D_h, D_h) float64 at once: C, what is solved, its factor
TRUNK_BYTES = 2**30  # what enters the first edited layer, kept for all layers; the rest is computed again


@dataclass(frozen=True)
class LocateSettings:
    """What the locate-then-edit methods share."""

    layers: str = field(
        default="",
        metadata={
            "help": "edited layers, such as 4-8 or 4,6, or 4-8 of 32 for the same relative depth; empty: this model's own"
        },
    )
    target_steps: int = field(
        default=0,
        metadata={"help": "Adam steps for the target state z* of each fact; 0: this model's own", "bounds": STEPS},
    )
    target_rate: float = field(
        default=0.0, metadata={"help": "Adam's learning rate for z*; 0: this model's own", "bounds": RATES}
    )
    target_decay: float = field(
        default=0.0, metadata={"help": "weight of ‖δ‖/‖h‖² in z*'s loss; 0: this model's own", "bounds": SCALES}
    )
    target_kl: float = field(
        default=0.0,
        metadata={"help": "weight of the KL on “{subject} is a” in z*'s loss; 0: this model's own", "bounds": SCALES},
    )
    target_clamp: float = field(
        default=0.0,
        metadata={"help": "the longest shift δ, in lengths of the state h; 0: this model's own", "bounds": SCALES},
    )
    covariance_text: str = field(
        default="",
        metadata={
            "help": "a text file whose keys shall be kept; empty: text drawn from the model itself",
            "file": True,
        },
    )
    covariance_tokens: int = field(
        default=100_000,
        metadata={
            "help": "how many tokens of that text; measured once, then kept in the cache",
            "bounds": (1, 1_000_000_000),
        },
    )
    seed: int = field(
        default=0, metadata={"help": "of the text and the prompt prefixes drawn from the model", "bounds": SEEDS}
    )


@dataclass(frozen=True)
class MemitSettings(LocateSettings):
    covariance_weight: float = field(
        default=0.0, metadata={"help": "λ, how strongly old keys are kept; 0: this model's own", "bounds": (0.0, 1e9)}
    )


# What the locate-then-edit methods are tuned over, beside what they do not share.
TARGET_GRID = {"target_rate": (0.1, 0.2, 0.5), "target_clamp": (0.75, 1.5, 4.0), "target_steps": (15, 25, 50)}
RANGES = ("2-6 of 32", "4-8 of 32", "8-12 of 32", "12-16 of 32", "16-20 of 32")


@register("memit")
class Memit(Editor):
    title = "MEMIT"
    needs = frozenset({"subject", "covariance"})
    Settings = MemitSettings
    grid = {"covariance_weight": (20.0, 60.0, 200.0, 600.0, 2000.0, 6000.0), "layers": RANGES} | TARGET_GRID
    until_certain = False  # PMET's own stopping rule for z*

    def __init__(self, settings: LocateSettings):
        super().__init__(settings)
        self._found: dict[Hashable, tuple[Targets, float]] | None = None

    def keep(self, found: dict[Hashable, tuple[Targets, float]]) -> None:
        self._found = found

    def modules(self, model: EditableModel) -> list[EditModule]:
        settings = resolved(self.settings, model, self.name)
        return model.edit_modules(layers_at_depth(settings.layers, model.layer_count))

    def text(self, model: EditableModel) -> Text:
        """What the old keys are those of."""
        settings = self.settings
        return Text(model, settings.covariance_text, settings.covariance_tokens, settings.seed)

    def preparation(self, model: EditableModel) -> Work:
        return measuring(model, self.modules(model), self.text(model))

    def work(self, model: EditableModel, facts: Sequence[Fact]) -> Work:
        bare, modules = tokens_of(encode_facts(model, facts)), self.modules(model)
        first, last, deep = modules[0].layer, modules[-1].layer, model.layer_count
        tokens, steps = count_tokens(bare, len(facts)), resolved(self.settings, model, self.name).target_steps
        prefixes = Work(len(OPENINGS) * PREFIX_TOKENS * deep, steps=len(OPENINGS) * PREFIX_TOKENS)
        rests = self._rests(model, facts)
        targets = Work(tokens * deep + rests * steps * (deep - last), rests * steps * (deep - 1 - last), at_most=True)
        keys = sum(tokens * (module.layer + 1 - first) + bare * (last + 1 - first) for module in modules)
        written = Work(
            forward=tokens * first + keys,
            operations=FLOAT64_COST * sum(self.solve_operations(module, len(facts)) for module in modules),
            bytes=int(
                min(FLOAT32_BYTES * tokens * model.width, TRUNK_BYTES)
                + FLOAT32_BYTES * sum(module.d_h * module.d_g for module in modules)
                + 2 * FLOAT32_BYTES * FACTORS * max(module.d_h for module in modules) ** 2
            ),
        )
        return prefixes + targets + written

    def _rests(self, model: EditableModel, facts: Sequence[Fact]) -> int:
        """The tokens that a step of z* runs: those from the subject's last one on, behind a prefix as without."""
        contexts = make_contexts(model, facts, find_subjects(facts)[0], [])
        bare = sum(len(contexts.rests[contexts.members(fact)[0]].ids) for fact in range(len(facts)))
        return (1 + len(OPENINGS)) * bare + len(facts)

    def solve_operations(self, module: EditModule, facts: int) -> float:
        """Those of `solve`, floating-point: the products, a Cholesky factor of D_h³/3, two triangular solves."""
        d_h, d_g = module.d_h, module.d_g
        return 2 * facts * d_h * (d_h + d_g) + d_h**3 / 3 + 2 * d_h**2 * d_g

    def places(self, model: EditableModel, last: EditModule) -> list[nn.Module]:
        """The modules whose outputs z* is for, in running order; the last one's residual is written."""
        return [model.layers[last.layer]]

    def arrivals(self, model: EditableModel, modules: Sequence[EditModule]) -> list[float]:
        """The factor by which what each module gives arrives in the state that z* is for.

        Raises ModelError where it is not one factor.
        """
        factors = [arriving(model, module) for module in modules]
        if None in factors:
            wrong = max(at for at, factor in enumerate(factors) if factor is None)
            otherwise = "PMET, or " if _pmet_works(model, modules[wrong]) else ""
            raise ModelError(
                f"{self.title} writes what the state of layer {modules[wrong].layer} lacks, but {model.name} gates or "
                f"normalises what {modules[wrong].name} gives, or uses it otherwise, before it is added there. Choose "
                f"{otherwise}a method that needs no target states."
            )
        return factors

    def rule(self, settings: LocateSettings) -> TargetRule:
        return TargetRule(
            settings.target_steps,
            settings.target_rate,
            settings.target_decay,
            settings.target_kl,
            settings.target_clamp,
            self.until_certain,
        )

    def share(self, remaining: int) -> float:
        """The part of the residual that a layer takes when so many, itself included, are still to be written."""
        return 1 / remaining

    def solve(self, keys: Tensor, residual: Tensor, covariance: Tensor, settings, name: str) -> Tensor:
        """Δθ = (λC + KᵀK)⁻¹ KᵀR, rows being facts: (N, D_h), (N, D_g), (D_h, D_h) → (D_h, D_g), all float64."""
        factor = cholesky(settings.covariance_weight * covariance + keys.T @ keys, name)
        return torch.cholesky_solve(keys.T @ residual, factor)

    def edit(self, model: EditableModel, facts: Sequence[Fact], progress: Progress = silent) -> Edit:
        started = time.perf_counter()
        encode_facts(model, facts)  # its errors come before any work
        subjects, notes = find_subjects(facts)
        settings = resolved(self.settings, model, self.name)
        modules, text = self.modules(model), self.text(model)
        check_attention(model)
        places, factors = self.places(model, modules[-1]), self.arrivals(model, modules)
        preparing = time.perf_counter()
        measure(model, modules, text, progress)
        prepared = time.perf_counter() - preparing
        contexts = make_contexts(model, facts, subjects, make_prefixes(model, settings.seed))
        targets, reused = self._targets(model, contexts, places, modules[-1].layer, settings, progress)
        shifts, figures, tokens = self._write(
            model, modules, factors, contexts, places[-1], targets, text, settings, progress
        )
        info = {
            "facts": len(facts),
            "layers": [module.layer for module in modules],
            "covariance_text": settings.covariance_text or "drawn from the model itself",
            "covariance_tokens": sum(text.lengths),
        }
        missed = sum(loss >= STOP_LOSS for loss in targets.losses)
        if missed:
            notes.append(
                f"The target states of {missed} of {len(facts)} fact{'s' * (len(facts) != 1)} stopped at a loss over "
                f"{STOP_LOSS}, {max(targets.losses):.2f} at most: those answers will be the less certain ones."
            )
        delta = WeightDelta(shifts, model.sha256, self.name, info)
        seconds = time.perf_counter() - started - prepared + reused
        return Edit(delta, seconds, targets.tokens + tokens, notes, figures, prepared)

    def _targets(
        self,
        model: EditableModel,
        contexts: Contexts,
        places: Sequence[nn.Module],
        layer: int,
        settings: LocateSettings,
        progress: Progress,
    ) -> tuple[Targets, float]:
        """z*, and the seconds that were saved where it was found before: an edit's time is what it takes by itself."""
        rule = self.rule(settings)
        key = (model.sha256, self.name, layer, rule, *contexts.encoded, *contexts.subjects)
        if self._found is not None and key in self._found:
            return self._found[key]
        started = time.perf_counter()
        targets = find_targets(model, contexts, places, layer, rule, progress)
        if self._found is not None:
            self._found[key] = targets, time.perf_counter() - started
        return targets, 0.0

    def _write(
        self,
        model: EditableModel,
        modules: Sequence[EditModule],
        factors: Sequence[float],
        contexts: Contexts,
        place: nn.Module,
        targets: Targets,
        text: Text,
        settings,
        progress: Progress,
    ) -> tuple[dict[str, Tensor], list[dict], int]:
        """Δθ layer by layer, keys and states seen anew under the shifts so far; its figures, and the tokens run."""
        shifts: dict[str, Tensor] = {}
        figures: list[dict] = []
        trunk = TrunkCache(model, modules[0].layer, contexts.encoded, TRUNK_BYTES)
        bare = [contexts.members(fact)[0] for fact in range(len(contexts.rows))]
        asking = [index for fact in range(len(bare)) for index in contexts.members(fact)[: contexts.asking]]
        for at, (module, factor) in enumerate(zip(modules, factors)):
            progress("Editing", at, len(modules))
            with model.edited(WeightDelta(shifts, model.sha256, self.name)):
                entered, _ = subject_states(model, contexts, asking, model.lm.get_submodule(module.name), trunk)
                _, states = subject_states(model, contexts, bare, place, trunk)
            residual = targets.values[:, -1] - states
            covariance = read(model, module, text)
            keys = mean_keys(entered.view(len(bare), contexts.asking, -1)).to(covariance)
            taken = self.share(len(modules) - at) * residual.to(covariance) / factor
            shift = self.solve(keys, taken, covariance, settings, module.name).float().to(model.device)
            shifts[module.name] = shift
            norm = float(torch.linalg.vector_norm(shift))
            figures.append(
                {
                    "module": module.name,
                    "norm": norm,
                    "relative_norm": norm / float(torch.linalg.vector_norm(model.weight(module).float())),
                    "residual": float(torch.linalg.vector_norm(residual, dim=1).mean()),
                }
            )
        progress("Editing", len(modules), len(modules))
        tokens = len(modules) * sum(len(contexts.encoded[index].ids) for index in (*bare, *asking))
        return shifts, figures, tokens


def _pmet_works(model: EditableModel, module: EditModule) -> bool:
    """Whether PMET has a place for z* beside this module."""
    try:
        return attention_output(model, module.layer) is not model.lm.get_submodule(module.name)
    except ModelError:
        return False


def mean_keys(keys: Tensor) -> Tensor:
    """(N, C, D_h) → (N, D_h): the bare prompt counts one half, the prefixed ones the other half together."""
    return (keys[:, 0] + keys[:, 1:].mean(1)) / 2


def cholesky(matrix: Tensor, name: str) -> Tensor:
    """The lower factor of a symmetric matrix (D, D) float64. Raises NonFiniteError when it is not positive definite."""
    factor, failed = torch.linalg.cholesky_ex(matrix)
    if failed:
        raise NonFiniteError(
            f"The covariance of {name} cannot be inverted, so nothing was edited. Raise covariance_tokens, or name a "
            "covariance_text with more different words."
        )
    return factor
