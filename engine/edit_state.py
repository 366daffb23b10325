"""An edit at its end: its sums and its solution, and of each module M, HᵀG and Δθ – some rows, and the numbers of all.

The matrices are as wide as the keys. Where an edit was solved from few rows they are never made: each is Hᵀ times
another so few rows, and the numbers are found there.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from engine.edit_record import BEFORE
from engine.geometry import (
    Closeness,
    ModuleNumbers,
    OfFewRows,
    Regularised,
    beyond_rounding,
    closeness,
    condition_number,
    effective_rank,
    singular_values,
)
from engine.model import EditModule
from engine.prompts import EncodedPrompt
from engine.statistics import EditSums, Solution, apply_inverse, factorise


@dataclass(frozen=True)
class EditState:
    """An edit at its end. `follow(l, H, ∇G)`: what follows from rows of module l, by the names of `edit_record.KINDS`:
    H_tilde, grad_tilde and G_before, the scaled gradient of Eq. 2; in training also P.

    lam (L,): λ_l; regularised: e^λ I is in M; step_scale: what Δθ was multiplied by.
    """

    method: str
    modules: Sequence[EditModule]
    encoded: Sequence[EncodedPrompt]
    scope: str
    sums: EditSums
    solution: Solution
    lam: Tensor
    regularised: bool
    follow: Callable[[int, Tensor, Tensor], Mapping[str, Tensor]]
    step_scale: float = 1.0

    def is_unchanged(self, l: int) -> bool:
        """Whether Eq. 4 left module l as it was."""
        if self.sums.projection == "per_token":
            return not self.sums.follows(l)
        shares = self.solution.mixture[l]
        return not any(bool(shares[k]) for k in range(len(shares)) if k != l)

    @property
    def ridge(self) -> Tensor:
        """e^λ (L,), 0 where it is off."""
        return self.lam.exp() * self.regularised


def module_matrices(state: EditState, l: int) -> "_Matrices":
    """Of module l."""
    return _FewRows(state, l) if state.sums.few_rows(l, state.solution.mixture[l]) else _Summed(state, l)


class _Matrices:
    """M, HᵀG and Δθ of one module, before and after Eq. 4."""

    def __init__(self, state: EditState, l: int):
        self.state, self.l = state, l
        device = state.solution.shifts[l].device
        self.device = torch.device("cpu") if device.type == "mps" else device  # it has no float64
        self.ridge = float(state.ridge[l])
        # Row by row, what was there before Eq. 4 is never summed.
        self.has_before = not state.is_unchanged(l) and state.sums.projection != "per_token"

    @property
    def alone(self) -> Tensor:
        """The shares (L,) of what was there before Eq. 4."""
        return torch.eye(len(self.state.modules))[self.l]

    def numbers(self, weight: float) -> ModuleNumbers:
        """The numbers of this module; `weight`: ‖W‖."""
        state, l = self.state, self.l
        sums, solution, unchanged = state.sums, state.solution, state.is_unchanged(l)
        after = self.closeness(self.targets["HtG"], self.shifts["shift"])
        before = after if unchanged else None
        if self.has_before:
            before = self.closeness(self.targets[BEFORE["HtG"]], self.shifts[BEFORE["shift"]])
            before = beyond_rounding(before, after)
        return ModuleNumbers(
            module=state.modules[l].name,
            cosine=(before and before.cosine, after.cosine),
            distance=(before and before.distance, after.distance),
            alignment=(before and before.alignment, after.alignment),
            cosine_to_previous=sums.cosine_to_previous(l),
            kept=sums.kept(l, solution.mixture),
            condition_number=self.condition_number(),
            effective_rank=effective_rank(self.matrix),
            relative_norm=state.step_scale * float(torch.linalg.vector_norm(solution.shifts[l])) / weight,
            singular_values=self.singular_values(),
        )


class _Summed(_Matrices):
    """As the sums have them."""

    def __init__(self, state: EditState, l: int):
        super().__init__(state, l)
        sums, solution = state.sums, state.solution
        self.matrix = Regularised(sums.covariance[l].to(self.device), self.ridge, sums.rows)
        # Made again: kept from the edit on, all modules' would be as large as their HᵀH.
        self.factor = factorise(self.matrix.covariance, state.lam[l], state.regularised, state.modules[l].name)
        self.targets = {"HtG": sums.guidance(l, solution.mixture[l]).to(self.device)}
        self.shifts = {"shift": state.step_scale * solution.shifts[l].to(self.device)}
        if self.has_before:
            before = sums.guidance(l, self.alone).to(self.device)
            self.targets[BEFORE["HtG"]] = before
            self.shifts[BEFORE["shift"]] = state.step_scale * self._solve(before)

    def _solve(self, right: Tensor) -> Tensor:
        return apply_inverse(self.factor, right, self.state.regularised)

    def rows(self, units: np.ndarray) -> dict[str, Tensor]:
        """The rows of these hidden units."""
        at = torch.from_numpy(units).to(self.device)
        return {"M": self.matrix.rows(at)} | {name: rows[at] for name, rows in (self.targets | self.shifts).items()}

    def closeness(self, targets: Tensor, shifts: Tensor) -> Closeness:
        return closeness(self.matrix, targets, shifts)

    def condition_number(self) -> float:
        return condition_number(self.matrix, self._solve)

    def singular_values(self) -> tuple[float, ...]:
        return singular_values(self.shifts["shift"])


class _FewRows(_Matrices):
    """Each is Hᵀ times T rows: G for HᵀG, (HHᵀ + e^λ I)⁻¹ G for Δθ."""

    def __init__(self, state: EditState, l: int):
        super().__init__(state, l)
        keys, after = state.sums.few_rows(l, state.solution.mixture[l])
        self.matrix = OfFewRows(keys.to(self.device).double(), self.ridge)
        self.targets = {"HtG": after.to(self.device).double()}
        if self.has_before:
            self.targets[BEFORE["HtG"]] = state.sums.few_rows(l, self.alone)[1].to(self.device).double()
        square = self.matrix.gram + self.ridge * torch.eye(len(keys), dtype=torch.float64, device=self.device)
        names = {"HtG": "shift", BEFORE["HtG"]: BEFORE["shift"]}
        self.shifts = {
            names[name]: state.step_scale * torch.linalg.solve(square, rows) for name, rows in self.targets.items()
        }

    def rows(self, units: np.ndarray) -> dict[str, Tensor]:
        """The rows of these hidden units; those of Δθ are the ones applied."""
        at = torch.from_numpy(units).to(self.device)
        left = self.matrix.keys[:, at].T
        made = {name: left @ rows for name, rows in (self.targets | self.shifts).items()}
        applied = self.state.step_scale * self.state.solution.shifts[self.l].to(self.device)[at]
        return {"M": self.matrix.rows(at)} | made | {"shift": applied}

    def closeness(self, targets: Tensor, shifts: Tensor) -> Closeness:
        return self.matrix.closeness(targets, shifts)

    def condition_number(self) -> float:
        return self.matrix.condition_number

    def singular_values(self) -> tuple[float, ...]:
        return self.matrix.singular_values(self.shifts["shift"])
