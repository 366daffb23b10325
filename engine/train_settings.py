"""Everything that decides a training run: its equations, its batches, its losses and its pace."""

from dataclasses import dataclass, field, replace

from engine.prompts import SCOPES
from engine.statistics import PROJECTIONS
from engine.training import MEND, Reading
from engine.training_data import OUTER_PROMPTS

METHODS = ("agrade", "malmen", "mend")


@dataclass(frozen=True)
class TrainSettings:
    """Everything that decides a training run."""

    method: str = field(default="agrade", metadata={"help": "malmen: Eq. 4 off; mend: a plain sum, no solve", "choices": METHODS})
    layers: str = field(default="", metadata={"help": "edited layers, such as 12-17 or 12,15,18; empty: the last six"})
    projection: str = field(default="scaled", metadata={"help": "the reading of Eq. 4", "choices": PROJECTIONS})
    scope: str = field(default="answer", metadata={"help": "token positions that become rows", "choices": SCOPES})
    coefficient: bool = field(default=True, metadata={"help": "the adjustment coefficient c of Eq. 1"})
    regularisation: bool = field(default=True, metadata={"help": "e^λ I in M, Eq. 3"})
    gradient_projection: bool = field(default=True, metadata={"help": "P = H M⁻¹ g (off: P = H g)"})
    rank: int = field(default=256, metadata={"help": "rank r of the hypernetwork's blocks"})
    eta: float = field(default=1e-3, metadata={"help": "start value of every module's step size η"})
    lam: float = field(default=3.0, metadata={"help": "start value of every module's λ in e^λ I"})
    learning_rate: float = field(default=4e-4, metadata={"help": "Adam, for the hypernetwork's matrices"})
    scalar_rate: float = field(default=1e-2, metadata={"help": "Adam, for ln η and λ of each module"})
    warmup: int = field(default=10, metadata={"help": "steps of linear warm-up, before a cosine to a tenth"})
    steps: int = field(default=400, metadata={"help": "training steps"})
    smallest_batch: int = field(default=32, metadata={"help": "fewest facts edited in a step"})
    largest_batch: int = field(default=1024, metadata={"help": "most facts edited in a step; sizes are log-uniform"})
    outer_facts: int = field(default=256, metadata={"help": "facts of the batch that enter the outer loss, at most"})
    outer_prompts: str = field(
        default="equivalent+edit",
        metadata={"help": "what L_equiv sees beside the equivalent prompts", "choices": OUTER_PROMPTS},
    )
    kappa: float = field(default=1.0, metadata={"help": "weight κ of L_unrel"})
    rounds: int = field(
        default=1,
        metadata={"help": "how often an edit runs, each time from the weights before; a step learns one, drawn at random"},
    )
    old_keys: float = field(
        default=0.0,
        metadata={"help": "how many rows the keys of unrelated prompts count for in M, which keeps what they stand for"},
    )
    clip: float = field(default=1.0, metadata={"help": "largest gradient norm"})
    validate_every: int = field(default=50, metadata={"help": "steps between validations, each of which saves"})
    valid_facts: int = field(default=512, metadata={"help": "validation facts of each data set, edited as one batch"})
    cache_gb: float = field(default=4.0, metadata={"help": "memory for what the unedited model makes of the prompts"})
    seed: int = field(default=0, metadata={"help": "of the hypernetwork's start and of the batches"})

    def reading(self) -> Reading:
        """The equations in force."""
        if self.method == "mend":
            return replace(MEND, scope=self.scope)
        return Reading(
            "off" if self.method == "malmen" else self.projection,
            self.scope,
            self.coefficient,
            self.regularisation,
            self.gradient_projection,
        )
