"""What a prompt's first tokens leave to the later ones: their keys and values, so that they need not run again.

Where only later tokens change between passes, as when one hidden state is optimised, nothing before them does.
"""

import inspect
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from engine.errors import ModelError
from engine.model import EditableModel
from engine.prompts import TokenBatch

if TYPE_CHECKING:
    from transformers import DynamicCache


@dataclass(frozen=True)
class Past:
    """states (P, L, 2, heads, width of a head): keys and values of a prompt's first P tokens in the last L layers.

    On the model's first device, in its own dtype.
    """

    states: Tensor

    @property
    def length(self) -> int:
        """P, maybe 0."""
        return len(self.states)


def check_attention(model: EditableModel) -> None:
    """Raises ModelError where a layer keeps something else of a prompt than its own keys and values."""
    if not model.first_pass.layers_keep_keys:
        raise ModelError(
            f"Target states z* need attention, with keys and values of its own, in every layer, and {model.name} "
            f"({model.family}) has layers that keep something else of a prompt. Choose a method that needs no target "
            "states."
        )


def split_prompts(
    model: EditableModel, batch: TokenBatch, layer: int, lengths: Sequence[int]
) -> list[tuple[Past, Tensor]]:
    """Run a batch once, and cut each of its prompts behind its first `lengths` tokens.

    Returns for each prompt the past of those tokens from `layer` on, and the hidden states (R, D) of its other R
    tokens that enter `layer`, in the model's own dtype. No gradient. Raises what `check_attention` raises.
    """
    check_attention(model)
    entering: list[Tensor] = []
    cache = _empty_cache()

    def look(_module, args, kwargs):
        entering.append(args[0] if args else kwargs["hidden_states"])

    hook = model.layers[layer].register_forward_pre_hook(look, with_kwargs=True)
    try:
        with torch.no_grad(), model.autocast():
            model.lm.base_model(input_ids=batch.ids, past_key_values=cache, use_cache=True)
    finally:
        hook.remove()
    # In one tensor: a batch of many pasts is then padded once, not layer by layer, which a GPU would wait for.
    pairs = [torch.stack((one.keys, one.values)).to(model.device) for one in cache.layers[layer:]]
    states = torch.stack(pairs).permute(2, 4, 0, 1, 3, 5)  # (B, S, L, 2, heads, width of a head)
    return [
        (Past(states[row, :first].clone()), entering[0][row, first:last].clone())
        for row, (first, last) in enumerate(zip(lengths, batch.lengths))
    ]


def behind(model: EditableModel, pasts: Sequence[Past], batch: TokenBatch, layer: int) -> dict[str, Any]:
    """What the model's forward pass is told, so that the prompts of `batch`, from `layer` on, go on behind `pasts`."""
    lengths = [past.length for past in pasts]
    longest = max(lengths)
    cache = _empty_cache()
    padded = pad_sequence([past.states for past in pasts], batch_first=True, padding_side="left")
    layers = padded.permute(2, 3, 0, 4, 1, 5)  # (L, 2, B, heads, longest, width of a head)
    for index, (keys, values) in enumerate(layers, layer):
        device = next(model.layers[index].parameters()).device
        pair = keys.to(device), values.to(device)
        if index == layer:
            for below in range(layer):  # they do not run, but the first is asked how long the past is
                cache.update(*pair, below)
        cache.update(*pair, index)
    first = torch.tensor(lengths, device=batch.ids.device).unsqueeze(1)
    before = torch.arange(longest, device=first.device) >= longest - first
    own = torch.arange(batch.ids.shape[1], device=first.device)
    real = own < torch.tensor(batch.lengths, device=first.device).unsqueeze(1)
    told = {"past_key_values": cache, "use_cache": True, "attention_mask": torch.cat((before, real), 1).long()}
    if "position_ids" in inspect.signature(model.lm.base_model.forward).parameters:
        told["position_ids"] = first + own
    return told


def _empty_cache() -> "DynamicCache":
    from transformers import DynamicCache  # it takes a second, for which no page has to wait

    return DynamicCache()
