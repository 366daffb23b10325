"""AlphaEdit: MEMIT inside the null space of the old keys, where an edit changes nothing that was there."""

from dataclasses import dataclass, field

import torch
from torch import Tensor

from engine.editors import register
from engine.editors.emmet import EmmetSettings
from engine.editors.memit import RANGES, TARGET_GRID, Memit, cholesky
from engine.errors import EditingError
from engine.model import EditModule


@dataclass(frozen=True)
class AlphaEditSettings(EmmetSettings):
    null_threshold: float = field(
        default=0.0,
        metadata={"help": "eigenvalues of C under it span the null space; 0: this model's own", "bounds": (0.0, 1e6)},
    )


EIGH = 9  # operations of all eigenvalues and eigenvectors, in D_h³


@register("alphaedit")
class AlphaEdit(Memit):
    title = "AlphaEdit"
    Settings = AlphaEditSettings
    grid = {
        "null_threshold": (0.003, 0.006, 0.02, 0.06),
        "ridge": (0.1, 0.3, 1.0, 3.0, 10.0),
        "layers": RANGES,
    } | TARGET_GRID

    def solve_operations(self, module: EditModule, facts: int) -> float:
        return EIGH * module.d_h**3 + super().solve_operations(module, facts)

    def solve(self, keys: Tensor, residual: Tensor, covariance: Tensor, settings, name: str) -> Tensor:
        """Δθ = (P KᵀK + ridge·I)⁻¹ P KᵀR with P = UUᵀ the projection on C's null space, rows being facts.

        In the coordinates of U, of which there are fewer than D_h: U (K₀ᵀK₀ + ridge·I)⁻¹ K₀ᵀR with K₀ = KU.
        Raises EditingError when no eigenvalue is under the threshold.
        """
        eigenvalues, vectors = torch.linalg.eigh(covariance)
        null = vectors[:, eigenvalues < settings.null_threshold]  # U (D_h, D_0)
        if not null.shape[1]:
            raise EditingError(
                f"The covariance of {name} has no eigenvalue under {settings.null_threshold:g}, so AlphaEdit has no "
                f"null space to edit in. Raise null_threshold: the smallest eigenvalue is {float(eigenvalues[0]):.2g}."
            )
        inside = keys @ null
        matrix = inside.T @ inside
        matrix.diagonal().add_(settings.ridge)
        return null @ torch.cholesky_solve(inside.T @ residual, cholesky(matrix, name))
