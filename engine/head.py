"""A language model's head: from its last hidden states to logits, with what its family does behind it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from engine.model import EditableModel


def head_logits(model: EditableModel, states: Tensor) -> Tensor:
    """Float32 logits (T, V) of last hidden states (T, D)."""
    head: nn.Module = model.lm.get_output_embeddings()
    with model.autocast():
        logits = head(states).float()
    # What a family does behind its head: Cohere multiplies, Granite divides, Gemma caps.
    config = model.config
    scale = (getattr(config, "logit_scale", None) or 1) / (getattr(config, "logits_scaling", None) or 1)
    if scale != 1:
        logits = logits * scale
    cap = getattr(config, "final_logit_softcapping", None)
    return cap * torch.tanh(logits / cap) if cap else logits
