"""The numbers beside the picture: what the matrices of an edit are to each other in their original space.

Work goes over blocks of rows, so that no second copy of a matrix is made: products of matrices in float32, sums in
float64.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

BLOCK_ROWS = 512
SINGULAR_VALUES = 32
ROUNDING = 1e-6
# A Gram matrix of so many columns is decomposed in less time than a solve takes; a wider matrix is sampled.
GRAM_WIDTH = 1024
OVERSAMPLES, POWER_STEPS = 32, 4
# Few are enough for a leading eigenvector, and the first check whether it is found comes after so many products.
KRYLOV_VECTORS = 8


@dataclass(frozen=True)
class ModuleNumbers:
    """One module of an edit, all from the full matrices; pairs are (before Eq. 4, after), None where unknown.

    cosine, distance, alignment: as `Closeness` of HᵀG says.
    cosine_to_previous: cos(G_l, G_{l−1}) before Eq. 4. kept: ‖G_l‖ after Eq. 4 / before. condition_number: of M.
    effective_rank: of M, (Σλ)² / Σλ² of its eigenvalues. relative_norm: ‖Δθ‖ / ‖W‖. singular_values: the largest
    of Δθ, at most 32.
    """

    module: str
    cosine: tuple[float | None, float]
    distance: tuple[float | None, float]
    alignment: tuple[float | None, float]
    cosine_to_previous: float | None
    kept: float | None
    condition_number: float
    effective_rank: float
    relative_norm: float
    singular_values: tuple[float, ...]


def inner(one: Tensor, other: Tensor) -> float:
    """The Frobenius inner product of two (n, d) matrices."""
    return float(torch.linalg.vecdot(one, other).double().sum())


@dataclass(frozen=True)
class Regularised:
    """M = HᵀH + ridge·I (D_h, D_h), without a second copy.

    covariance: HᵀH, float32; ridge: e^λ, 0 where it is off; row_count: rows of H, of which HᵀH has at most the rank.
    """

    covariance: Tensor
    ridge: float
    row_count: int

    def __matmul__(self, right: Tensor) -> Tensor:
        """M right in the dtype of `right`; HᵀH is converted block by block."""
        blocks = self.covariance.split(BLOCK_ROWS)
        return torch.cat([block.to(right.dtype) @ right for block in blocks]) + self.ridge * right

    def rows(self, units: Tensor) -> Tensor:
        """M[units], (n, D_h) float32."""
        chosen = self.covariance[units]  # a copy: advanced indexing
        chosen[torch.arange(len(units), device=chosen.device), units] += self.ridge
        return chosen

    @cached_property
    def trace(self) -> float:
        return float(self.covariance.diagonal().double().sum()) + self.ridge * len(self.covariance)

    @cached_property
    def square(self) -> float:
        """‖M‖²."""
        width = len(self.covariance)
        return inner(self.covariance, self.covariance) + self.ridge * (2 * self.trace - self.ridge * width)

    def along(self, target: Tensor, square: float) -> float:
        """⟨M, AAᵀ⟩ of A (D_h, d) with ‖A‖² = square; half of the symmetric HᵀH is enough."""
        total, matrix = self.ridge * square, self.covariance
        for start in range(0, len(matrix), BLOCK_ROWS):
            stop = start + BLOCK_ROWS
            own = target[start:stop]
            total += inner(matrix[start:stop, start:stop] @ own, own)
            total += 2 * inner(matrix[start:stop, stop:] @ target[stop:], own)
        return total


class Closeness(NamedTuple):
    """Of A = HᵀG to Δθ and to M.

    cosine: ⟨A, Δθ⟩ / (‖A‖ ‖Δθ‖). distance: ‖A − Δθ‖ / ‖A‖. alignment: ⟨M, AAᵀ⟩ / (‖M‖ ‖AAᵀ‖), the kernel alignment of
    Cristianini et al. (2001): 1 where A's rows are to each other as M says. 0 where what divides is zero.
    """

    cosine: float
    distance: float
    alignment: float


def closeness(matrix: Regularised, target: Tensor, shift: Tensor) -> Closeness:
    """How close HᵀG (D_h, D_g) is to Δθ (D_h, D_g) and to M, each inner product taken once.

    Cosine and distance are those of float64: Δθ may be so small that the distance differs from 1 by 1e-7.
    """
    square = across = length = 0.0
    for one, other in zip(target.split(BLOCK_ROWS), shift.split(BLOCK_ROWS)):
        one, other = one.double().flatten(), other.double().flatten()
        square += float(one @ one)
        across += float(one @ other)
        length += float(other @ other)
    gram = target.T @ target  # ‖AᵀA‖ = ‖AAᵀ‖, and it is the smaller one
    sizes = (matrix.square * inner(gram, gram)) ** 0.5
    return _closeness(square, across, length, matrix.along(target, square), sizes)


def _closeness(square: float, across: float, length: float, along: float, sizes: float) -> Closeness:
    """From ‖A‖², ⟨A, Δθ⟩, ‖Δθ‖², ⟨M, AAᵀ⟩ and ‖M‖ ‖AAᵀ‖."""
    return Closeness(
        across / (square * length) ** 0.5 if square and length else 0.0,
        (max(square - 2 * across + length, 0.0) / square) ** 0.5 if square else 0.0,
        along / sizes if sizes else 0.0,
    )


@dataclass(frozen=True)
class OfFewRows:
    """M = HᵀH + ridge·I of few rows H (T, D_h): neither M nor any other matrix so wide is made.

    Every one of them is Hᵀ times another T rows, HᵀG = HᵀY and Δθ = HᵀX, and what they are to each other stands in
    HHᵀ, YYᵀ, … (T, T), float64. H, Y and X are float64 too.
    """

    keys: Tensor
    ridge: float

    @cached_property
    def gram(self) -> Tensor:
        """HHᵀ (T, T)."""
        return self.keys @ self.keys.T

    def rows(self, units: Tensor) -> Tensor:
        """M[units], (n, D_h) float64."""
        chosen = self.keys[:, units].T @ self.keys
        chosen[torch.arange(len(units), device=chosen.device), units] += self.ridge
        return chosen

    @cached_property
    def trace(self) -> float:
        return float(self.gram.trace()) + self.ridge * self.keys.shape[1]

    @cached_property
    def square(self) -> float:
        """‖M‖²."""
        return inner(self.gram, self.gram) + self.ridge * (2 * self.trace - self.ridge * self.keys.shape[1])

    @cached_property
    def condition_number(self) -> float:
        """λ_max / λ_min of M: HᵀH has a kernel, so λ_min is e^λ, but where the rows are as many as H is wide."""
        values = torch.linalg.eigvalsh(self.gram).flip(0)
        wide = self.keys.shape[1]
        least = max(float(values[wide - 1]), 0.0) if len(values) >= wide else 0.0
        return (float(values[0]) + self.ridge) / (least + self.ridge)

    def closeness(self, targets: Tensor, shifts: Tensor) -> Closeness:
        """How close HᵀY is to HᵀX and to M; Y, X (T, D_g)."""
        own, mixed = targets @ targets.T, self.gram @ targets
        square, turned = inner(self.gram, own), self.gram @ own
        across, length = inner(self.gram, targets @ shifts.T), inner(self.gram, shifts @ shifts.T)
        along = inner(mixed, mixed) + self.ridge * square
        sizes = (self.square * max(inner(turned, turned.T), 0.0)) ** 0.5
        return _closeness(square, across, length, along, sizes)

    def singular_values(self, shifts: Tensor) -> tuple[float, ...]:
        """The largest singular values of HᵀX, at most 32, in falling order; all after the T-th are 0."""
        values, vectors = torch.linalg.eigh(shifts @ shifts.T)
        half = vectors * values.clamp_min(0).sqrt()
        found = torch.linalg.eigvalsh(half.T @ self.gram @ half).flip(0).clamp_min(0).sqrt().tolist()
        count = min(SINGULAR_VALUES, self.keys.shape[1], shifts.shape[1])
        return tuple((found + [0.0] * count)[:count])


def beyond_rounding(before: Closeness, after: Closeness) -> Closeness:
    """`before`, and where float32 rounding is all that it differs by, `after`: of a single row Eq. 4 changes no more.

    Δθ comes of a float32 solve, the alignment of float32 products. What Δθ takes of the distance is 1 − distance.
    """
    scales = 1.0, 1 - after.distance, 1.0
    return Closeness(*(b if abs(b - a) > ROUNDING * abs(one) else a for b, a, one in zip(before, after, scales)))


def effective_rank(matrix: Regularised | OfFewRows) -> float:
    """(Σλ)² / Σλ² over the eigenvalues λ of M, the participation ratio: D_h where all are equal, 1 where one rules.

    Both are sums over M's entries: the trace, and the square of the Frobenius norm.
    """
    return matrix.trace**2 / matrix.square if matrix.square else 0.0


def condition_number(matrix: Regularised, solve: Callable[[Tensor], Tensor]) -> float:
    """λ_max / λ_min of M, to about 1e-3 of itself; NaN where it is not found.

    `solve`: v (D_h, 1) float32 → M⁻¹v; with a pseudo-inverse λ_min is the least eigenvalue that it inverts. Of fewer
    rows than D_h, HᵀH has a kernel: there λ_min is e^λ, and nothing is solved.
    """
    from scipy.sparse.linalg import ArpackNoConvergence, LinearOperator, eigsh  # half a second, which no start needs

    width, device = len(matrix.covariance), matrix.covariance.device
    if width <= KRYLOV_VECTORS:
        found = torch.linalg.eigvalsh(matrix @ torch.eye(width, dtype=torch.float64, device=device))
        return float(found[-1] / found[0])

    def eigenvalue(function: Callable[[Tensor], Tensor], dtype: torch.dtype) -> float:
        """Of M, for the leading eigenvector of `function`: float32 finds the vector, M in `dtype` tells its value."""

        def product(vector: np.ndarray) -> np.ndarray:
            column = torch.from_numpy(np.ascontiguousarray(vector).reshape(-1, 1)).to(device, torch.float32)
            return function(column)[:, 0].double().cpu().numpy()

        operator = LinearOperator((width, width), product, dtype=np.float64)
        start = np.random.default_rng(0).standard_normal(width)  # the same each time: results repeat exactly
        _, vectors = eigsh(operator, k=1, which="LA", v0=start, ncv=KRYLOV_VECTORS, tol=1e-3)
        vector = torch.from_numpy(vectors).to(device, dtype)
        return inner(vector, matrix @ vector)

    try:
        largest = eigenvalue(lambda vector: matrix @ vector, torch.float32)
        known = matrix.ridge > 0 and matrix.row_count < width
        smallest = matrix.ridge if known else eigenvalue(solve, torch.float64)
    except ArpackNoConvergence:
        return float("nan")
    return largest / smallest if smallest > 0 else float("inf")


def singular_values(shift: Tensor) -> tuple[float, ...]:
    """The largest singular values of Δθ (D_h, D_g), at most 32, in falling order.

    With a side of at most 1,024 they are the roots of the eigenvalues of its Gram matrix in float64: a value σ is off
    by about 1e-16 σ_max²/σ, and below a few 1e-8 σ_max is nothing but rounding, as it is in a float32 Δθ. Of a larger matrix
    they are those of its image of 64 random directions after four power steps (Halko et al. 2011), never too large:
    exact where its rank is smaller than that, and where all values are alike a few percent too small.
    """
    if min(shift.shape) <= GRAM_WIDTH:
        tall = (shift if shift.shape[0] >= shift.shape[1] else shift.T).double()
        found = torch.linalg.eigvalsh(tall.T @ tall).flip(0).clamp_min(0).sqrt()
    else:
        from sklearn.utils.extmath import randomized_svd  # a second, which no start needs

        array, sampled = shift.float().cpu().numpy(), {"n_oversamples": OVERSAMPLES, "n_iter": POWER_STEPS}
        _, found, _ = randomized_svd(array, SINGULAR_VALUES, **sampled, random_state=0)
    return tuple(float(value) for value in found[:SINGULAR_VALUES])
