"""The numbers beside the picture: what the matrices of an edit are to each other in their original space.

Sums run in float64 over blocks of rows, so that no second copy of a matrix is made; what needs a decomposition is
found by iteration (ARPACK). Of 11008 × 4096 this takes about twice as long as its solve.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

BLOCK_ROWS = 512
SINGULAR_VALUES = 32


@dataclass(frozen=True)
class ModuleNumbers:
    """One module of an edit, all from the full matrices; pairs are (before Eq. 4, after), None where unknown.

    cosine, distance: between HᵀG and Δθ, the latter relative: ‖HᵀG − Δθ‖ / ‖HᵀG‖. alignment: of HᵀG with M.
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
    blocks = zip(one.split(BLOCK_ROWS), other.split(BLOCK_ROWS))
    return float(sum((a.double() * b.double()).sum() for a, b in blocks))


def cosine(one: Tensor, other: Tensor) -> float:
    """⟨A, B⟩ / (‖A‖ ‖B‖); 0 where one of them is zero."""
    lengths = (inner(one, one) * inner(other, other)) ** 0.5
    return inner(one, other) / lengths if lengths else 0.0


def relative_distance(one: Tensor, other: Tensor) -> float:
    """‖A − B‖ / ‖A‖; 0 where A is zero."""
    square = inner(one, one)
    return max(square - 2 * inner(one, other) + inner(other, other), 0.0) ** 0.5 / square**0.5 if square else 0.0


@dataclass(frozen=True)
class Regularised:
    """M = HᵀH + ridge·I (D_h, D_h), without a second copy. covariance: HᵀH, float32; ridge: e^λ, 0 where it is off."""

    covariance: Tensor
    ridge: float

    def __matmul__(self, right: Tensor) -> Tensor:
        """M right in the dtype of `right`; HᵀH is converted block by block."""
        blocks = self.covariance.split(BLOCK_ROWS)
        return torch.cat([block.to(right.dtype) @ right for block in blocks]) + self.ridge * right

    def rows(self, units: Tensor) -> Tensor:
        """M[units], (n, D_h) float32."""
        chosen = self.covariance[units]  # a copy: advanced indexing
        chosen[torch.arange(len(units), device=chosen.device), units] += self.ridge
        return chosen

    def trace(self) -> float:
        return float(self.covariance.diagonal().double().sum()) + self.ridge * len(self.covariance)

    def square(self) -> float:
        """‖M‖²."""
        trace = float(self.covariance.diagonal().double().sum())
        return inner(self.covariance, self.covariance) + 2 * self.ridge * trace + self.ridge**2 * len(self.covariance)


def alignment(matrix: Regularised, target: Tensor) -> float:
    """⟨M, AAᵀ⟩ / (‖M‖ ‖AAᵀ‖) for A = HᵀG (D_h, D_g): the kernel alignment of Cristianini et al. (2001).

    1 where A's rows are to each other as M says; 0 where A is zero.
    """
    gram = target.T @ target  # ‖AᵀA‖ = ‖AAᵀ‖, and it is the smaller one
    lengths = (matrix.square() * inner(gram, gram)) ** 0.5
    if not lengths:
        return 0.0
    blocks = zip(matrix.covariance.split(BLOCK_ROWS), target.split(BLOCK_ROWS))
    agreement = sum(inner(block @ target, part) for block, part in blocks)
    return (agreement + matrix.ridge * inner(target, target)) / lengths


def effective_rank(matrix: Regularised) -> float:
    """(Σλ)² / Σλ² over the eigenvalues λ of M, the participation ratio: D_h where all are equal, 1 where one rules."""
    square = matrix.square()
    return matrix.trace() ** 2 / square if square else 0.0


def condition_number(matrix: Regularised, solve: Callable[[Tensor], Tensor]) -> float:
    """λ_max / λ_min of M, NaN where it is not found.

    `solve`: v (D_h, 1) float32 → M⁻¹v; with a pseudo-inverse λ_min is the least eigenvalue that it inverts.
    """
    from scipy.sparse.linalg import ArpackNoConvergence, LinearOperator, eigsh  # half a second, which no start needs

    width, device = len(matrix.covariance), matrix.covariance.device
    if width <= 2:
        found = torch.linalg.eigvalsh(matrix @ torch.eye(width, dtype=torch.float64, device=device))
        return float(found[-1] / found[0])

    def eigenvalue(function: Callable[[Tensor], Tensor]) -> float:
        """Of M, for the leading eigenvector of `function`: float32 finds the vector, float64 reads the value off M."""

        def product(vector: np.ndarray) -> np.ndarray:
            column = torch.from_numpy(np.ascontiguousarray(vector).reshape(-1, 1)).to(device, torch.float32)
            return function(column)[:, 0].double().cpu().numpy()

        operator = LinearOperator((width, width), product, dtype=np.float64)
        _, vectors = eigsh(operator, k=1, which="LA", v0=_start(width), tol=1e-5)
        vector = torch.from_numpy(vectors).to(device)
        return inner(vector, matrix @ vector)

    try:
        largest, smallest = eigenvalue(lambda vector: matrix @ vector), eigenvalue(solve)
    except ArpackNoConvergence:
        return float("nan")
    return largest / smallest if smallest > 0 else float("inf")


def singular_values(shift: Tensor) -> tuple[float, ...]:
    """The largest singular values of Δθ (D_h, D_g), at most 32, in falling order."""
    from scipy.sparse.linalg import ArpackNoConvergence, svds

    if min(shift.shape) <= 2 * SINGULAR_VALUES:
        found = torch.linalg.svdvals(shift.double()).cpu().numpy()
    else:
        array = shift.double().cpu().numpy()
        start = _start(min(array.shape))
        try:
            found = np.sort(svds(array, SINGULAR_VALUES, return_singular_vectors=False, v0=start))[::-1]
        except ArpackNoConvergence:  # values too near to each other
            found = torch.linalg.svdvals(shift.float()).cpu().numpy()
    return tuple(float(value) for value in found[:SINGULAR_VALUES])


def _start(width: int) -> np.ndarray:
    """The iterations' start vector, always the same: results repeat exactly."""
    return np.random.default_rng(0).standard_normal(width)
