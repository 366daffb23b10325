"""EMMET: MEMIT's target states held as equalities, in one layer."""

from dataclasses import dataclass, field

import torch
from torch import Tensor

from engine.editors import register
from engine.editors.memit import TARGET_GRID, LocateSettings, Memit, cholesky
from engine.model import EditModule


@dataclass(frozen=True)
class EmmetSettings(LocateSettings):
    ridge: float = field(
        default=0.0,
        metadata={
            "help": "added to the diagonal of KᵀC⁻¹K (EMMET) or of KKᵀ in the null space (AlphaEdit); 0: this "
            "model's own",
            "bounds": (0.0, 1e9),
        },
    )


@register("emmet")
class Emmet(Memit):
    title = "EMMET"
    Settings = EmmetSettings
    grid = {
        "layers": ("3 of 32", "5 of 32", "8 of 32", "12 of 32", "16 of 32"),
        "ridge": (0.01, 0.03, 0.1, 0.3, 1.0),
    } | TARGET_GRID

    def solve_operations(self, module: EditModule, facts: int) -> float:
        d_h = module.d_h
        return d_h**3 / 3 + 4 * facts * d_h**2 + facts**3 / 3 + 2 * facts * (facts + d_h) * module.d_g

    def solve(self, keys: Tensor, residual: Tensor, covariance: Tensor, settings, name: str) -> Tensor:
        """Δθ = C⁻¹Kᵀ (KC⁻¹Kᵀ + ridge·I)⁻¹ R, rows being facts."""
        whitened = torch.cholesky_solve(keys.T, cholesky(covariance, name))  # C⁻¹Kᵀ (D_h, N)
        overlap = keys @ whitened
        overlap.diagonal().add_(settings.ridge)
        return whitened @ torch.cholesky_solve(residual, cholesky((overlap + overlap.T) / 2, name))
