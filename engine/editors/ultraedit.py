"""UltraEdit: MALMEN's solve without training, the normalised features standing for a hypernetwork's output.

The facts are passed over twice: the first pass finds mean and standard deviation, the second adds up the sums.
"""

import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace

import torch

from engine.delta import WeightDelta
from engine.edit_state import EditState
from engine.editors import Edit, Editor, register, shift_figures
from engine.facts import Fact
from engine.hypernet import Normaliser
from engine.layers import layers_at_depth
from engine.method_settings import resolved
from engine.model import EditableModel, EditModule
from engine.progress import Progress, silent
from engine.prompts import SCOPE_HELP, SCOPES, batches, encode_facts, row_owners
from engine.recorder import Recorder
from engine.row_cache import RowCache
from engine.setting_bounds import SCALES
from engine.statistics import EditSums
from engine.subjects import clear_subjects
from engine.work import FLOAT32_BYTES, Work, rows_of, summing, tokens_of, tracing

# Rows of the first pass kept for the second, so that a batch of some thousand facts goes through the model once.
ROWS_BYTES = 1 << 30
ROUNDING = 1e-5  # what keys after the same text may be apart, as a share of themselves


@dataclass(frozen=True)
class UltraEditSettings:
    """A value of 0, or none, is this model's own."""

    layers: str = field(
        default="", metadata={"help": "edited layers, such as 24-29; empty: this model's own, or the last six"}
    )
    scope: str = field(default="answer", metadata={"help": SCOPE_HELP, "choices": SCOPES})
    eta: float = field(
        default=0.0, metadata={"help": "step size η of every module; 0: this model's own", "bounds": SCALES}
    )


@register("ultraedit")
class UltraEdit(Editor):
    """c = −η rowsum(H̃ ⊙ H̃), G = c ⊙ ∇G̃, Δθ = (HᵀH + e⁰ I)⁻¹ HᵀG; [H̃, ∇G̃] is [H, ∇G] normalised over this batch."""

    title = "UltraEdit"
    records = True
    Settings = UltraEditSettings
    grid = {
        "eta": (2e-4, 5e-4, 1e-3, 2e-3, 5e-3, 1e-2, 2e-2),
        "layers": ("26-31 of 32", "20-31 of 32", "13-31 of 32", "19-24 of 32", "13-18 of 32"),
        "scope": SCOPES,
    }

    def modules(self, model: EditableModel) -> list[EditModule]:
        settings = resolved(self.settings, model, self.name)
        return model.edit_modules(layers_at_depth(settings.layers, model.layer_count))

    def work(self, model: EditableModel, facts: Sequence[Fact]) -> Work:
        encoded, modules = encode_facts(model, facts, self.settings.scope), self.modules(model)
        rows = rows_of(encoded, self.settings.scope)
        held = rows * FLOAT32_BYTES * sum(module.d_h + module.d_g for module in modules)
        again = max(0.0, 1 - ROWS_BYTES / held)  # the share of rows for which the second pass traces once more
        work = tracing(model, modules, tokens_of(encoded) * (1 + again)) + summing(modules, rows)
        return replace(work, bytes=work.bytes + min(held, ROWS_BYTES))

    def notes(self, facts: Sequence[Fact]) -> list[str]:
        return clear_subjects(facts)[1] if "subject" in self.settings.scope else []

    def edit(
        self,
        model: EditableModel,
        facts: Sequence[Fact],
        progress: Progress = silent,
        recorder: Recorder | None = None,
    ) -> Edit:
        started = time.perf_counter()
        settings = resolved(self.settings, model, self.name)
        encoded = encode_facts(model, facts, settings.scope)
        modules = self.modules(model)
        shapes = [(module.d_h, module.d_g) for module in modules]
        rows = RowCache(model, modules, encoded, ROWS_BYTES)
        normalisers = [Normaliser(d_h + d_g).to(model.device) for d_h, d_g in shapes]
        sums = EditSums(shapes, "off")

        def count(features: list[torch.Tensor], _members: Sequence[int]) -> None:
            for normaliser, own in zip(normalisers, features):
                normaliser.update(own)

        def follow(l: int, keys: torch.Tensor, gradients: torch.Tensor) -> dict[str, torch.Tensor]:
            normal_keys, normal_gradients = normalisers[l](torch.cat((keys, gradients), dim=1)).split(shapes[l], dim=1)
            scaled = -settings.eta * normal_keys.square().sum(1, keepdim=True) * normal_gradients
            return {"H_tilde": normal_keys, "grad_tilde": normal_gradients, "G_before": scaled}

        def add(features: list[torch.Tensor], members: Sequence[int]) -> None:
            pairs = [own.split(shape, dim=1) for own, shape in zip(features, shapes)]
            keys, gradients = zip(*pairs)
            sums.add(list(keys), [follow(l, *pair)["G_before"] for l, pair in enumerate(pairs)])
            if recorder:
                recorder.add(row_owners(encoded, members, settings.scope), keys, gradients)

        tokens, total = 0, 2 * sum(len(item.ids) for item in encoded)
        progress("Editing", 0, total)
        with torch.no_grad():
            for take in (count, add):
                for batch in batches(encoded, model.placement.tokens_per_chunk):
                    take(rows(batch.members, settings.scope), batch.members)
                    tokens += sum(batch.lengths)
                    progress("Editing", tokens, total)
            lam = torch.zeros(len(modules), device=model.device)
            solution = sums.solve(lam)
        if recorder:
            last = (settings.scope, sums, solution, lam, True, follow)
            recorder.finish(EditState(self.name, modules, encoded, *last))
        delta = WeightDelta(
            {module.name: shift for module, shift in zip(modules, solution.shifts)},
            model.sha256,
            self.name,
            {"facts": len(facts), **asdict(settings)},
        )
        notes = solution.notes + self.notes(facts)
        if not any(_vary(normaliser, d_h) for normaliser, (d_h, _d_g) in zip(normalisers, shapes)):
            notes.append(
                "There is nothing to normalise over, for there is one answer token alone, or several after the same text; "
                "so the step is far shorter than the one that η is meant for: add facts, or set scope=all."
            )
        return Edit(delta, time.perf_counter() - started, total // 2, notes, shift_figures(model, delta))


def _vary(normaliser: Normaliser, d_h: int) -> bool:
    """Whether any feature of the keys is another from row to row, by more than roundings."""
    rounded = normaliser.count * (ROUNDING * normaliser.mean[:d_h]).square()
    return bool((normaliser.square[:d_h] > rounded).any())
