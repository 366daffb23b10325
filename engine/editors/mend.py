"""MEND in the form for massive editing: Δθ is the plain sum of the projected rows' outer products, without a solve."""

from dataclasses import dataclass, field, replace

from engine.editors import register
from engine.editors.malmen import Malmen
from engine.trace import SCOPES
from engine.training import MEND, Reading


@dataclass(frozen=True)
class MendSettings:
    """MEND's edit has no ablations of its own."""

    scope: str = field(
        default="trained",
        metadata={
            "help": "which token positions count: those that predict an answer token, or all",
            "choices": ("trained", *SCOPES),
        },
    )
    step_scale: float = field(default=1.0, metadata={"help": "multiplies the weight shift; 1 is what was trained"})


@register("mend")
class Mend(Malmen):
    """Δθ_l = Σ_t −η_l H̃_tᵀ ∇G̃_t."""

    title = "MEND"
    records = False  # it solves no system M Δθ = HᵀG
    Settings = MendSettings

    def equations(self) -> Reading:
        return replace(MEND, scope=self.scope())
