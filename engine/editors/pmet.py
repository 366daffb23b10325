"""PMET: z* of the attention's and the feed-forward's output together, of which only the feed-forward's is written.

On the embedded model it stays behind MEMIT. Of 20 facts of zsRE `valid` it learned 0 to .10, whatever the
covariance_weight, where MEMIT learned .90; of 8 of them .12 with the reference's target_clamp of 1, and .38 with 4
(assets/tuning).
"""

from collections.abc import Sequence

from torch import nn

from engine.contributions import attention_output
from engine.editors import register
from engine.editors.memit import Memit
from engine.model import EditableModel, EditModule


@register("pmet")
class Pmet(Memit):
    title = "PMET"
    until_certain = True

    def places(self, model: EditableModel, last: EditModule) -> list[nn.Module]:
        return [attention_output(model, last.layer), model.lm.get_submodule(last.name)]

    def arrivals(self, model: EditableModel, modules: Sequence[EditModule]) -> list[float]:
        return [1.0] * len(modules)  # z* is for what the module itself gives

    def share(self, remaining: int) -> float:
        return remaining**-0.5
