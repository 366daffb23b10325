"""MALMEN: AGRADE's solve with Eq. 4 off."""

from dataclasses import dataclass, field

from engine.editors import register
from engine.editors.agrade import KEEP_HELP, OLD_KEYS_HELP, ROUNDS_HELP, STEP_HELP, TEACH_HELP, Agrade
from engine.prompts import SCOPE_HELP, SCOPES
from engine.setting_bounds import ROUNDS, SCALES


@dataclass(frozen=True)
class MalmenSettings:
    """MALMEN's edit has no ablations of its own."""

    scope: str = field(default="trained", metadata={"help": SCOPE_HELP, "choices": ("trained", *SCOPES)})
    coefficient: bool = field(default=True, metadata={"help": "the coefficient c of Eq. 1 (off: c = −η)"})
    regularisation: bool = field(default=True, metadata={"help": "e^λ I in M (off: least squares of least norm)"})
    old_keys: bool = field(default=True, metadata={"help": OLD_KEYS_HELP})
    keep_unrelated: bool = field(default=False, metadata={"help": KEEP_HELP})
    teach_equivalent: bool = field(default=False, metadata={"help": TEACH_HELP})
    rounds: int = field(default=0, metadata={"help": ROUNDS_HELP, "bounds": ROUNDS})
    step_scale: float = field(default=0.0, metadata={"help": STEP_HELP, "bounds": SCALES})


@register("malmen")
class Malmen(Agrade):
    title = "MALMEN"
    Settings = MalmenSettings

    def reading(self) -> str:
        return "off"
