"""The streamed sums of an edit and the least-squares solve (Eqs. 3–5).

Everything Δθ needs is a sum over token rows, so rows are added chunk by chunk and dropped: memory does not
grow with the number of facts. An edit of a few facts is over before a first sum is worth its making, and is solved from
its rows.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from engine.errors import EditingError, NonFiniteError

# Eq. 4's readings of S: the previous module's scaled gradient, the same after its own Eq. 4, row by row, none.
PROJECTIONS = ("scaled", "projected", "per_token", "off")
# 500 facts fill it too, and a product of so many rows costs more than moving its sum. Of more rows, what a record asks
# of them (engine.edit_state) costs more than sums would.
FLUSH_ROWS = 512


def remove_rowwise(gradient: Tensor, previous: Tensor) -> Tensor:
    """Eq. 4 with an inner product for each row: (T, D_g), (T, D_g) → (T, D_g). Zero rows of S change nothing."""
    inner = (gradient * previous).sum(1, keepdim=True)
    square = previous.square().sum(1, keepdim=True)
    return gradient - torch.where(square > 0, inner / square.clamp_min(1e-45), 0.0) * previous


@dataclass(frozen=True)
class Solution:
    """Δθ_l (D_h, D_g) of every module, and what was said.

    factors: what `factorise` made of M_l, for the training step; an edit's are not kept.
    `mixture` (L, L) float64: G_l after Eq. 4 is Σ_k mixture[l, k] G_k.
    """

    shifts: list[Tensor]
    factors: list[Tensor]
    mixture: Tensor
    notes: list[str]


class EditSums:
    """HᵀH, HᵀG_k for the k that Eq. 4 mixes into module l, and the inner products ⟨G_k, G_j⟩ of all modules.

    Without `least_squares` (MEND) Δθ is the sum HᵀG itself: no HᵀH is kept, and nothing is solved.

    `old_keys`: K₀ (r, D_h) of every module, rows as `keep` takes them, known from the beginning (`engine.old_keys`).
    `old_factors`: of K₀K₀ᵀ + e^λ I (r, r), where they are known too.

    Rows are gathered up to FLUSH_ROWS before they are multiplied in: a matrix product of a few rows would
    move the whole sum through memory for little work. Where they are all there are, and fewer than a key is wide, no
    sum is made at all: with A = K₀ᵀK₀ + e^λ I, whose inverse K₀K₀ᵀ gives (Woodbury), M⁻¹HᵀG = A⁻¹Hᵀ(I + HA⁻¹Hᵀ)⁻¹G,
    and what is inverted is (T, T).
    """

    def __init__(
        self,
        shapes: Sequence[tuple[int, int]],
        projection: str = "scaled",
        least_squares: bool = True,
        old_keys: Sequence[Tensor] = (),
        old_factors: Sequence[Tensor] = (),
    ):
        if projection not in PROJECTIONS:
            raise EditingError(f"Unknown reading of Eq. 4 {projection!r}: choose one of {', '.join(PROJECTIONS)}.")
        self.shapes, self.projection, self.least_squares, self.rows = list(shapes), projection, least_squares, 0
        self.covariance: list[Tensor | None] = [None] * len(shapes)  # HᵀH (D_h, D_h)
        self.products: list[dict[int, Tensor]] = [{} for _ in shapes]  # k → HᵀG_k (D_h, D_g of k)
        self.gram = torch.zeros(len(shapes), len(shapes), dtype=torch.float64)
        self._waiting: list[tuple[list[Tensor], list[Tensor]]] = []
        self._old_keys, self._old_factors = list(old_keys) if least_squares else [], list(old_factors)
        self._few: tuple[list[Tensor], list[Tensor]] | None = None  # all rows, where nothing was summed

    def _partners(self, index: int) -> list[int]:
        first = {"scaled": max(index - 1, 0), "projected": 0}.get(self.projection, index)
        return [k for k in range(first, index + 1) if self.shapes[k][1] == self.shapes[index][1]]

    def add(self, keys: list[Tensor], gradients: list[Tensor]) -> None:
        """Take in rows: keys[l] (T, D_h), gradients[l] (T, D_g), the scaled gradients G of Eq. 2, float32."""
        self._waiting.append((keys, gradients))
        self.rows += len(keys[0])
        if sum(len(waiting[0][0]) for waiting in self._waiting) >= FLUSH_ROWS:
            self.flush()

    def keep(self, keys: list[Tensor]) -> None:
        """Take in rows of HᵀH, keys[l] (T, D_h) float32, whose gradient is zero."""
        self.add(keys, [own.new_zeros(len(own), d_g) for own, (_, d_g) in zip(keys, self.shapes)])

    def flush(self) -> None:
        """Multiply the gathered rows into the sums."""
        if not self._waiting:
            return
        keys, gradients = self._gather()
        for l in range(len(self.shapes)):
            if self.least_squares:
                self.covariance[l] = _with_product(self.covariance[l], keys[l], keys[l])
            for k in self._partners(l):
                self.products[l][k] = _with_product(self.products[l].get(k), keys[l], gradients[k].to(keys[l]))

    def _gather(self) -> tuple[list[Tensor], list[Tensor]]:
        """The waiting rows in one; row by row Eq. 4 is done here, others only need the inner products."""
        count = len(self.shapes)
        keys = [torch.cat([waiting[0][l] for waiting in self._waiting]) for l in range(count)]
        gradients = [torch.cat([waiting[1][l] for waiting in self._waiting]) for l in range(count)]
        self._waiting.clear()
        for l in range(count):
            for k in range(l + 1):
                if self.shapes[k][1] == self.shapes[l][1]:
                    self.gram[l, k] += torch.dot(gradients[l].flatten(), gradients[k].flatten().to(gradients[l])).cpu()
                    self.gram[k, l] = self.gram[l, k]
        if self.projection == "per_token":
            gradients = [
                remove_rowwise(gradients[l], gradients[l - 1].to(gradients[l]))
                if self.follows(l)
                else gradients[l]
                for l in range(count)
            ]
        return keys, gradients

    def follows(self, l: int) -> bool:
        """Whether there is a previous module for Eq. 4: one of the same output width."""
        return l > 0 and self.shapes[l][1] == self.shapes[l - 1][1]

    def cosine_to_previous(self, l: int) -> float | None:
        """cos(G_l, G_{l−1}) before Eq. 4; None where there is no previous gradient."""
        lengths = float((self.gram[l, l] * self.gram[l - 1, l - 1]).sqrt()) if self.follows(l) else 0.0
        return float(self.gram[l, l - 1]) / lengths if lengths else None

    def kept(self, l: int, mixture: Tensor) -> float | None:
        """‖G_l‖ after Eq. 4 over ‖G_l‖ before; None where it is taken away row by row, which the sums do not tell."""
        square, left = float(self.gram[l, l]), float(mixture[l] @ self.gram @ mixture[l])
        if square <= 0 or (self.projection == "per_token" and self.follows(l)):
            return None
        return (max(left, 0.0) / square) ** 0.5

    def mixture(self) -> tuple[Tensor, list[str]]:
        """Eq. 4 as a matrix: G_l after it is Σ_k mixture[l, k] G_k. (L, L) float64, and what was skipped."""
        count = len(self.shapes)
        mixture, notes = torch.eye(count, dtype=torch.float64), []
        if self.projection == "off":
            return mixture, notes
        for l in range(1, count):
            if not self.follows(l):
                notes.append(f"Module {l + 1}: Eq. 4 skipped, its output width differs from the previous module's.")
                continue
            previous = (mixture if self.projection == "projected" else torch.eye(count, dtype=torch.float64))[l - 1]
            square = previous @ self.gram @ previous
            if square <= 0:
                notes.append(f"Module {l + 1}: Eq. 4 skipped, the previous module's gradient is zero.")
                continue
            if self.projection == "per_token":
                continue  # done row by row in `flush`
            mixture[l] -= (self.gram[l] @ previous) / square * previous
        return mixture, notes

    def guidance(self, index: int, shares: Tensor) -> Tensor:
        """Σ_k shares[k] HᵀG_k, (D_h, D_g) float32: with a row of the mixture it is HᵀG_l after Eq. 4."""
        return sum(float(shares[k]) * product for k, product in self.products[index].items())

    def few_rows(self, index: int, shares: Tensor) -> tuple[Tensor, Tensor] | None:
        """H (T, D_h) of a module and Σ_k shares[k] G_k (T, D_g), where the edit was solved from its rows; else None.

        K₀ are the last rows, with a gradient of zero.
        """
        if self._few is None:
            return None
        keys, gradients = self._own_rows(index, shares)
        if self._old_keys:
            old = self._old_keys[index].to(keys)
            none = gradients.new_zeros(len(old), gradients.shape[1])
            keys, gradients = torch.cat((keys, old)), torch.cat((gradients, none))
        return keys, gradients

    def _own_rows(self, index: int, shares: Tensor) -> tuple[Tensor, Tensor]:
        keys, gradients = self._few
        return keys[index], sum(float(shares[k]) * gradients[k].to(keys[index]) for k in self._partners(index))

    @property
    def held_bytes(self) -> int:
        """Bytes of the sums, and of rows that wait."""
        sums = [one for one in self.covariance if one is not None]
        sums += [product for own in self.products for product in own.values()]
        parts = [*self._waiting, self._few] if self._few else self._waiting
        rows = [own for part in parts for side in part for own in side]
        return sum(one.nbytes for one in (*sums, *rows))

    def solve(self, lam: Tensor, regularise: bool = True, keep_factors: bool = False) -> Solution:
        """Δθ_l = (HᵀH + e^{λ_l} I)⁻¹ HᵀG_l (Eqs. 3, 5) for every module; `lam` (L,) are the λ_l.

        Without `regularise` the shift is the least-squares one of least norm; without least squares it is HᵀG_l, and
        there are no factors: each is as large as HᵀH. Raises NonFiniteError.
        """
        if not self.rows:
            raise ValueError("No rows were added: there is nothing to solve.")
        unsummed = self.least_squares and self.covariance[0] is None
        if unsummed and regularise and not keep_factors and self.rows < min(d_h for d_h, _ in self.shapes):
            self._few = self._gather()
        else:
            self.flush()
            for covariance, keys in zip(self.covariance, self._old_keys):
                covariance.addmm_(keys.T.to(covariance), keys.to(covariance))
        self.rows += max((len(keys) for keys in self._old_keys), default=0)
        mixture, notes = self.mixture()
        shifts, factors = [], []
        for l, covariance in enumerate(self.covariance):
            if not self.least_squares:
                shifts.append(self.guidance(l, mixture[l]))
                continue
            if self._few:
                shifts.append(self._solve_rows(l, mixture[l], lam[l]))
                continue
            factor = factorise(covariance, lam[l], regularise, f"module {l + 1}")
            shifts.append(apply_inverse(factor, self.guidance(l, mixture[l]), regularise))
            if keep_factors:
                factors.append(factor)
        return Solution(shifts, factors, mixture, notes)

    def _solve_rows(self, l: int, shares: Tensor, lam: Tensor) -> Tensor:
        """Δθ_l = A⁻¹Hᵀ (I + HA⁻¹Hᵀ)⁻¹ G_l, with A = K₀ᵀK₀ + e^λ I."""
        keys, right = self._own_rows(l, shares)
        spread, name = keys.T, f"module {l + 1}"  # A⁻¹Hᵀ e^λ
        if self._old_keys:
            old = self._old_keys[l].to(keys)
            factor = self._old_factors[l].to(keys) if self._old_factors else factorise(old @ old.T, lam, True, name)
            spread = spread - old.T @ apply_inverse(factor, old @ spread)
        return spread @ apply_inverse(factorise(keys @ spread, lam, True, name), right)


def _with_product(total: Tensor | None, left: Tensor, right: Tensor) -> Tensor:
    """total + leftᵀ right, in place where there is a total."""
    return left.T @ right if total is None else total.addmm_(left.T, right)


def factorise(covariance: Tensor, lam: Tensor | float, regularise: bool, name: str) -> Tensor:
    """The Cholesky factor of M = HᵀH + e^λ I (D_h, D_h); without `regularise`, the pseudo-inverse of HᵀH.

    `covariance`: HᵀH, or of few rows HHᵀ (T, T).
    Raises NonFiniteError when HᵀH is not finite or M is not positive definite even in float64.
    """
    if not math.isfinite(torch.linalg.vector_norm(covariance)):  # ten times as fast as looking at each number
        raise NonFiniteError(f"HᵀH of {name} is not finite, so nothing was edited. Load the model in float32.")
    if not regularise:
        # HᵀH was summed in float32: what lies below its rounding is noise, not a direction to invert.
        noise = len(covariance) * torch.finfo(covariance.dtype).eps
        return torch.linalg.pinv(_doubled(covariance), rtol=noise, hermitian=True).to(covariance)
    matrix = covariance.clone()
    matrix.diagonal().add_(torch.as_tensor(lam).exp().to(matrix))
    factor, failed = torch.linalg.cholesky_ex(matrix)
    if failed:
        factor, failed = torch.linalg.cholesky_ex(_doubled(matrix))
        if failed:
            raise NonFiniteError(f"M of {name} is not positive definite, so nothing was edited. Raise λ.")
        factor = factor.to(matrix)
    return factor


def _doubled(matrix: Tensor) -> Tensor:
    """In float64, which Apple's GPUs do not have."""
    return (matrix.cpu() if matrix.device.type == "mps" else matrix).double()


def apply_inverse(factor: Tensor, right: Tensor, regularise: bool = True) -> Tensor:
    """M⁻¹ right, from what `factorise` returned. (D_h, D_h), (D_h, D_g) → (D_h, D_g)."""
    return torch.cholesky_solve(right, factor) if regularise else factor @ right
