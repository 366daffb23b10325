"""Text drawn from the model itself: seeded, batched, whatever the machine. It knows nothing of greedy decoding."""

from collections.abc import Callable

import torch
from torch import Tensor

from engine.errors import NonFiniteError
from engine.forward import few_rows
from engine.model import EditableModel


@torch.no_grad()
def sample(
    model: EditableModel,
    ids: Tensor,
    new: int,
    generator: torch.Generator,
    top: int = 0,
    each: Callable[[int], None] = lambda tokens: None,
) -> Tensor:
    """(B, S) token ids continued by `new` tokens each: (B, S + new) int64 on the CPU, S + new ≤ the model's context.

    Every token is drawn from the whole distribution at temperature 1, or from its `top` likeliest tokens, by the CPU
    `generator`. `each` hears how many tokens a row has so far and may raise Cancelled.
    Raises NonFiniteError when the model overflows.
    """
    cache, rows, fed = None, [ids.cpu()], ids
    for step in range(new):
        with few_rows(model), model.autocast():
            out = model.lm(input_ids=fed.to(model.device), past_key_values=cache, use_cache=True, logits_to_keep=1)
        cache, logits = out.past_key_values, out.logits[:, -1].float().cpu()
        if not torch.isfinite(logits).all():
            raise NonFiniteError(
                f"The model overflows in {model.dtype} when it writes text of its own. "
                "Load it with --dtype float32. Nothing was edited."
            )
        if top:
            logits = logits.masked_fill(logits < logits.topk(top).values[:, -1:], float("-inf"))
        fed = torch.multinomial(logits.softmax(-1), 1, generator=generator)
        rows.append(fed)
        each(ids.shape[1] + step + 1)
    return torch.cat(rows, dim=1)
