"""What a layer's matrices contribute to its output: which one is the attention's, and how much of another's arrives."""

import torch
from torch import Tensor, nn

from engine.errors import ModelError, NonFiniteError
from engine.forward import states_at, trunk
from engine.model import EditableModel, EditModule
from engine.prompts import EncodedPrompt, collate, prompt_ids

# The last matrix of an attention block, by the names the families give it.
OUTPUTS = frozenset({"o_proj", "out_proj", "c_proj", "dense"})
TEXT = "A few words, as they stand in any other text."
OFF, ROUNDINGS = 1e-2, 8  # how far what arrives may be off s·δ: relative to itself, or in roundings of its dtype


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
            f"{' or '.join(sorted(OUTPUTS))}. Choose another method."
        )
    return named[0]


def arriving(model: EditableModel, module: EditModule) -> float | None:
    """s where a shift δ of the module's output arrives as s·δ in its layer's, 1.0 where that is all but 1.

    None where it arrives otherwise: normalised, gated token by token, used within the layer. Seen on a few tokens.
    Raises NonFiniteError when the model overflows.
    """
    ids = tuple(prompt_ids(model.tokenizer, [TEXT])[0])
    batch = collate([EncodedPrompt(ids, ids[-1:])], [0], model.device)
    layer, entering = model.layers[module.layer], trunk(model, batch, module.layer)
    [(_, before)] = states_at(model, batch, [layer], module.layer, entering)
    # As long as the layer's output, token by token, so that rounding takes nothing from it.
    lengths = torch.linalg.vector_norm(before.float(), dim=1, keepdim=True)
    generator = torch.Generator().manual_seed(0)
    shift = torch.nn.functional.normalize(torch.randn(before.shape, generator=generator)).to(before.device)

    def add(_module, _args, output: Tensor) -> Tensor | None:
        if output.numel() == shift.numel():  # one of several experts does not see every token
            return output + (lengths * shift).to(output).view_as(output)
        return None

    hook = model.lm.get_submodule(module.name).register_forward_hook(add)
    try:
        [(_, after)] = states_at(model, batch, [layer], module.layer, entering)
    finally:
        hook.remove()
    if not torch.isfinite(after).all():
        raise NonFiniteError(
            f"The model overflows in {model.dtype}. Load it with --dtype float32. Nothing was edited."
        )
    arrived = (after.float() - before.float()) / lengths
    share = float((arrived * shift).sum() / shift.square().sum())
    off = float(torch.linalg.vector_norm(arrived - share * shift) / torch.linalg.vector_norm(arrived))
    if not off < max(OFF, ROUNDINGS * torch.finfo(model.dtype).eps):
        return None
    return 1.0 if abs(share - 1) < OFF else share
