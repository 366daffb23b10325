"""MEND in the form for massive editing: Δθ is the plain sum of the projected rows' outer products, without a solve.

It is a method for few facts. The embedded model's checkpoint gave on CounterFact `valid`, ES/GS/LS: .81/.25/.63 one fact
at a time (mean of 16), .88/.38/.25 with 8 at once, .27/.08/.53 with 64, .00/.00/.01 with 512. Keys of different facts
overlap, and each row's shift answers to all of them: the step that writes one fact is tens of times too large for a sum
over hundreds. Trained on batches of 256 to 1,024 it learns a step that harms less, and edits nothing: .02/.03/.71.
"""

from dataclasses import dataclass, field, replace

from torch import Tensor

from engine.editors import register
from engine.editors.agrade import ROUNDS_HELP, STEP_HELP, TEACH_HELP
from engine.editors.malmen import Malmen
from engine.prompts import SCOPE_HELP, SCOPES
from engine.setting_bounds import ROUNDS, SCALES
from engine.training import MEND, Reading


@dataclass(frozen=True)
class MendSettings:
    """MEND's edit has no ablations of its own."""

    scope: str = field(default="trained", metadata={"help": SCOPE_HELP, "choices": ("trained", *SCOPES)})
    teach_equivalent: bool = field(default=False, metadata={"help": TEACH_HELP})
    rounds: int = field(default=0, metadata={"help": ROUNDS_HELP, "bounds": ROUNDS})
    step_scale: float = field(default=0.0, metadata={"help": STEP_HELP, "bounds": SCALES})


@register("mend")
class Mend(Malmen):
    """Δθ_l = Σ_t −η_l H̃_tᵀ ∇G̃_t."""

    title = "MEND"
    records = False  # it solves no system M Δθ = HᵀG
    Settings = MendSettings

    def old_keys(self) -> list[Tensor]:
        return []

    def keeps_unrelated(self) -> bool:
        return False  # it has no M

    def advice(self, unsaid: int, facts: int) -> list[str]:
        return []  # where the sum of many rows has harmed, another one harms more

    def equations(self) -> Reading:
        return replace(MEND, scope=self.scope())
