"""PMET: z* of the attention's and the feed-forward's output together, of which only the feed-forward's is written.

On the embedded model it stays behind MEMIT. Of 20 facts of zsRE `valid` it learned 0 to .10, whatever the
covariance_weight, where MEMIT learned .90; of 8 of them .12 with the reference's target_clamp of 1, and .38 with 4
(assets/tuning).
"""

from torch import nn

from engine.editors import register
from engine.editors.memit import Memit
from engine.errors import ModelError
from engine.model import EditableModel, EditModule

# The last matrix of an attention block, by the names the families give it.
OUTPUTS = frozenset({"o_proj", "out_proj", "c_proj", "dense"})


@register("pmet")
class Pmet(Memit):
    title = "PMET"
    until_certain = True

    def places(self, model: EditableModel, last: EditModule) -> list[nn.Module]:
        return [attention_output(model, last.layer), model.lm.get_submodule(last.name)]

    def share(self, remaining: int) -> float:
        return remaining**-0.5


def attention_output(model: EditableModel, layer: int) -> nn.Module:
    """The matrix whose output is the layer's attention. Raises ModelError where no single one has a known name."""
    named = [
        module
        for name, module in model.layers[layer].named_modules()
        if "att" in name and name.rsplit(".", 1)[-1] in OUTPUTS
    ]
    if len(named) != 1:
        raise ModelError(
            f"PMET needs the output matrix of the attention, and layer {layer} of {model.name} has {len(named)} named "
            f"{' or '.join(sorted(OUTPUTS))}. Choose MEMIT for this model."
        )
    return named[0]
