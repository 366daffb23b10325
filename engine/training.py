"""Training a hypernetwork (Eqs. 6, 7): edit a batch, see what the edited model gets wrong, improve the projection.

One step: Δθ from the rows H, ∇G of a batch; g_θ from the outer loss on the edited model; P = H M⁻¹ g_θ; and the
gradient of ⟨P, G⟩ through the hypernetwork. The loop around it is `engine.trainer`.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, kl_div

from engine.delta import WeightDelta
from engine.errors import NonFiniteError
from engine.forward import final_hidden, logits_at
from engine.hypernet import HyperNet
from engine.model import EditableModel
from engine.prompts import batches
from engine.statistics import EditSums, Solution, apply_inverse, remove_rowwise
from engine.training_data import TrainingData

ROWS_AT_ONCE = 4096


@dataclass(frozen=True)
class Reading:
    """Which equations are in force: Table 2's four switches, the reading of Eq. 4 and the scope of the rows.

    Without `least_squares` it is MEND: Δθ = Σ_t −η H̃ᵀ∇G̃. There c, e^λ I and the gradient projection have no place.
    """

    projection: str = "scaled"
    scope: str = "answer"
    coefficient: bool = True
    regularisation: bool = True
    gradient_projection: bool = True
    least_squares: bool = True


MEND = Reading("off", coefficient=False, regularisation=False, gradient_projection=False, least_squares=False)


@dataclass(frozen=True)
class Rows:
    """All rows of a batch, module by module: keys H (T, D_h) and value gradients ∇G (T, D_g), and what is summed.

    left (T, D_h), scaled (T, D_g): H and the scaled gradients G; for MEND H̃ and −η ∇G̃.
    """

    keys: list[Tensor]
    gradients: list[Tensor]
    left: list[Tensor]
    scaled: list[Tensor]


@dataclass(frozen=True)
class OuterLoss:
    """L_equiv and L_unrel in nats per prompt, and g_θ (D_h, D_g) of every module."""

    equivalent: float
    unrelated: float
    gradients: list[Tensor]


def gather_rows(
    hypernet: HyperNet, data: TrainingData, members: Sequence[int], reading: Reading, before: WeightDelta | None = None
) -> Rows:
    """The rows of the facts `members`; the normalisers see them, and the gradients are scaled (Eqs. 1, 2).

    before: what earlier rounds have added to the weights. The normalisers see first rounds only: at an edit, too, they
    are what the original weights made them.
    """
    rows = Rows([], [], [], [])
    with torch.no_grad():
        for l, features in enumerate(data.rows(members, reading.scope, before)):
            if before is None:
                hypernet.normalisers[l].update(features)
            module = hypernet.modules_edited[l]
            h, g = features.split((module.d_h, module.d_g), dim=1)
            parts = [
                hypernet.summands(l, *part, reading.coefficient, reading.least_squares)
                for part in zip(h.split(ROWS_AT_ONCE), g.split(ROWS_AT_ONCE))
            ]
            left, scaled = zip(*parts)
            rows.keys.append(h)
            rows.gradients.append(g)
            rows.left.append(h if reading.least_squares else torch.cat(left))
            rows.scaled.append(torch.cat(scaled))
    return rows


def solve_rows(hypernet: HyperNet, rows: Rows, reading: Reading) -> tuple[EditSums, Solution]:
    """The sums and Δθ of a batch whose rows are at hand (Eqs. 3–5)."""
    shapes = [(module.d_h, module.d_g) for module in hypernet.modules_edited]
    sums = EditSums(shapes, reading.projection, reading.least_squares, hypernet.old_keys)
    sums.add(rows.left, rows.scaled)
    sums.flush()  # the factors of M, and HᵀG, serve the step too
    return sums, sums.solve(hypernet.lam.detach(), reading.regularisation, keep_factors=True)


def outer_loss(
    model: EditableModel, delta: WeightDelta, data: TrainingData, members: Sequence[int], kappa: float
) -> OuterLoss:
    """L_equiv + κ·L_unrel on the edited model, and its weight gradients g_θ.

    L_equiv: answer cross-entropy of the equivalent prompts. L_unrel: KL(original ‖ edited) at the answer positions of
    the unrelated prompts. Both are summed over an answer's tokens, for an answer is right as a whole (exact, agreement)
    and a long one has more that can go wrong, and averaged over the prompts. Raises NonFiniteError.
    """
    layer = data.layer
    modules = model.edit_modules_named(delta.shifts)
    equivalents = [index for fact in members for index in data.equivalents_of[fact]]
    unrelated = [index for fact in members for index in data.unrelated_of[fact]]
    limit = model.chunk_tokens(layer)
    losses = {"equivalent": 0.0, "unrelated": 0.0}
    totals = [torch.zeros(module.d_h, module.d_g, device=model.device) for module in modules]

    def accumulate(loss: Tensor, parameters: list[Tensor], scale: float) -> float:
        if not torch.isfinite(loss):
            raise NonFiniteError("The outer loss is not finite: lower the learning rate or η, then resume.")
        for module, total, gradient in zip(modules, totals, torch.autograd.grad(loss * scale, parameters)):
            total += (gradient.T if module.transposed else gradient).float().to(total.device)
        return loss.item()

    for batch in batches(data.equivalents, limit, model.device, equivalents):
        hidden = data.equivalent_trunk(batch)
        with model.edited(delta) as shifted:
            parameters = [shifted[module.name].requires_grad_() for module in modules]
            logits = logits_at(model, final_hidden(model, batch, layer, hidden), batch.positions)
            loss = cross_entropy(logits, batch.labels.to(logits.device), reduction="sum")
            losses["equivalent"] += accumulate(loss, parameters, 1 / len(equivalents))
    for batch in batches(data.unrelated, limit, model.device, unrelated):
        hidden = data.unrelated_trunk(batch)
        original = data.original_states(batch, hidden)
        with torch.no_grad():
            reference = logits_at(model, original, torch.arange(len(original))).log_softmax(1)
        with model.edited(delta) as shifted:
            parameters = [shifted[module.name].requires_grad_() for module in modules]
            logits = logits_at(model, final_hidden(model, batch, layer, hidden), batch.positions).log_softmax(1)
            loss = kl_div(logits, reference, log_target=True, reduction="sum")
            losses["unrelated"] += accumulate(loss, parameters, kappa / len(unrelated))
    return OuterLoss(
        losses["equivalent"] / max(len(equivalents), 1), losses["unrelated"] / max(len(unrelated), 1), totals
    )


def hypernet_gradient(
    hypernet: HyperNet,
    rows: Rows,
    sums: EditSums,
    solution: Solution,
    gradients: Sequence[Tensor],
    reading: Reading,
) -> float:
    """Accumulate dL_AGRADE/dφ into the hypernetwork's `.grad` (Eqs. 6, 7); returns L_AGRADE.

    P = H M⁻¹ g_θ is constant, and so is S, hence ⟨P, G − ⟨G,S⟩/⟨S,S⟩ S⟩ = ⟨P − ⟨P,S⟩/⟨S,S⟩ S, G⟩ with G before
    Eq. 4. λ_l gets −e^λ ⟨M⁻¹ g_θ, Δθ⟩. `gradients`: g_θ (D_h, D_g) of every module.
    For MEND it is the gradient of ⟨g_θ, Δθ⟩ = ⟨H̃ g_θ, −η ∇G̃⟩, through both H̃ and ∇G̃.
    """
    total = 0.0
    for l, guide in enumerate(gradients):
        direction = (
            apply_inverse(solution.factors[l], guide, reading.regularisation) if reading.gradient_projection else guide
        )
        if reading.regularisation and reading.gradient_projection:
            slope = -hypernet.lam[l].detach().exp() * (direction * solution.shifts[l]).sum()
            hypernet.lam.grad = torch.zeros_like(hypernet.lam) if hypernet.lam.grad is None else hypernet.lam.grad
            hypernet.lam.grad[l] += slope
        previous, share = _removed(rows, sums, solution, l, direction, reading)
        for part in torch.arange(len(rows.keys[l])).split(ROWS_AT_ONCE):
            left, scaled = hypernet.summands(
                l, rows.keys[l][part], rows.gradients[l][part], reading.coefficient, reading.least_squares
            )
            target = left @ direction
            if previous is not None:
                target = (
                    remove_rowwise(target, previous[part]) if share is None else target - share * previous[part]
                )
            loss = (target * scaled).sum()
            loss.backward()
            total += loss.item()
    return total


def _removed(
    rows: Rows, sums: EditSums, solution: Solution, l: int, direction: Tensor, reading: Reading
) -> tuple[Tensor | None, float | None]:
    """S of module l, row by row, and ⟨P,S⟩/⟨S,S⟩ (None: an inner product for each row). (None, None): no Eq. 4."""
    if reading.projection == "off" or not sums.follows(l):
        return None, None
    if reading.projection == "per_token":
        return rows.scaled[l - 1], None
    weights = torch.zeros(len(rows.scaled), dtype=torch.float64)
    weights[l - 1] = 1.0
    if reading.projection == "projected":
        weights = solution.mixture[l - 1]
    square = float(weights @ sums.gram @ weights)
    if square <= 0:
        return None, None
    used = [k for k in range(l) if weights[k] != 0]
    previous = sum(float(weights[k]) * rows.scaled[k] for k in used)
    # ⟨P, S⟩ = ⟨H D, S⟩ = ⟨D, HᵀS⟩, and HᵀS is in the sums.
    inner = sum(float(weights[k]) * float((direction * sums.products[l][k]).sum()) for k in used)
    return previous, inner / square
