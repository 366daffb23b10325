"""FT in the form that recent work found hardest to beat: shuffled mini-batch epochs over the whole batch of facts.

One down-projection, answer tokens only ("Fine-tuning Done Right in Model Editing", 2025).
"""

from dataclasses import dataclass, field

from engine.editors import register
from engine.editors.ft import Ft, FtSettings
from engine.setting_bounds import SEEDS
from engine.tuning import Schedule


@dataclass(frozen=True)
class FtBatchedSettings(FtSettings):
    """FT's, and the order of the facts."""

    seed: int = field(
        default=0, metadata={"help": "of the order of the facts, drawn anew for each pass", "bounds": SEEDS}
    )


@register("ft-batched")
class FtBatched(Ft):
    title = "FT, batched"
    Settings = FtBatchedSettings

    def schedule(self, settings: FtBatchedSettings) -> Schedule:
        """The passes, each in an order of its own."""
        return Schedule(
            settings.learning_rate, settings.steps, settings.batch_size, settings.stop_below, settings.seed
        )
