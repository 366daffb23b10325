"""What one token tells of a language model: what its layers return and keep, and that its logits are understood.

It goes through once, when the model is made an editable one, so that what would go wrong later is said before any work.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from engine.errors import ModelError
from engine.head import head_logits

if TYPE_CHECKING:
    from engine.model import EditableModel

OFF, ROUNDINGS = 1e-3, 4  # how far logits may be apart, in the largest of them, or in roundings of their dtype


@dataclass(frozen=True)
class FirstPass:
    """layers_return_tuples: a layer returns (hidden states, …), as GPT-J's does, or a list of them, not them alone.
    layers_keep_keys: each layer keeps of a prompt its keys and values and nothing else, as no recurrent one does.
    masks_padding: tokens before a prompt that are masked out change nothing, as in a recurrence they may."""

    layers_return_tuples: bool
    layers_keep_keys: bool
    masks_padding: bool


def first_pass(model: EditableModel) -> FirstPass:
    """Raises ModelError where the model cannot be run on text alone, does not show its last hidden states, has layers
    that hand on more than these, or does something to its logits that `engine.head` does not."""
    vocabulary = model.lm.get_input_embeddings().weight.shape[0]
    ids = torch.tensor([[vocabulary // 2]], device=model.device)  # no padding token: its state may be all zero
    tuples: list[bool] = []

    def hidden_alone(_module, _args, out):
        """All that is put in a layer's place when the trunk below it is not run (`engine.forward`)."""
        tuples.append(isinstance(out, tuple | list))
        return (out[0],) if tuples[-1] else out

    with torch.no_grad(), model.autocast():
        with _refused(f"{model.name} ({model.family}) cannot be run on text alone", "that needs nothing else"):
            whole = model.lm(input_ids=ids, use_cache=False)
        hook = model.layers[0].register_forward_hook(hidden_alone)
        try:
            more = f"The layers of {model.name} ({model.family}) hand on more than hidden states"
            with _refused(more, "of another family"):
                base = model.lm.base_model(input_ids=ids, use_cache=True)
        finally:
            hook.remove()
    if not tuples:
        raise ModelError(
            f"The layers that the module pattern names are not those through which {model.name} reads text. "
            "Give the pattern of its language model's layers."
        )
    if getattr(base, "last_hidden_state", None) is None:
        raise ModelError(
            f"{model.name} ({model.family}) does not show its last hidden states, from which all losses are computed "
            "here. Load a model of another family."
        )
    with torch.no_grad():
        logits, known = whole.logits[0].float().cpu(), head_logits(model, base.last_hidden_state[0]).cpu()
    largest = float(logits.nan_to_num(posinf=0, neginf=0).abs().max())  # overflows are told where they matter
    within = largest * max(OFF, ROUNDINGS * torch.finfo(model.dtype).eps)
    if not torch.allclose(known, logits, rtol=0, atol=within, equal_nan=True):
        raise ModelError(
            f"{model.name} ({model.family}) does something to its logits that the studio does not know: its losses "
            "would be wrong. Load a model of another family."
        )
    kept = getattr(getattr(base, "past_key_values", None), "layers", ())
    keys = [getattr(one, "keys", None) is not None and not hasattr(one, "conv_states") for one in kept]
    return FirstPass(tuples[0], len(keys) == model.layer_count and all(keys), _masks_padding(model, ids, 3 * within))


def _masks_padding(model: EditableModel, ids: Tensor, within: float) -> bool:
    """Whether three tokens say the same behind two that are masked out, as `generate` would pad them."""
    padded = {"input_ids": ids.expand(1, 5), "attention_mask": torch.tensor([[0, 0, 1, 1, 1]]).to(ids)}
    if "position_ids" in inspect.signature(model.lm.forward).parameters:
        padded["position_ids"] = torch.tensor([[0, 0, 0, 1, 2]]).to(ids)
    with torch.no_grad(), model.autocast():
        alone = model.lm(input_ids=ids.expand(1, 3), use_cache=False).logits[0, -1]
        try:
            beside = model.lm(**padded, use_cache=False).logits[0, -1]
        except (MemoryError, torch.OutOfMemoryError):
            raise
        except Exception:  # it takes no mask, in whatever way it says so
            return False
    return torch.allclose(alone.float(), beside.float(), rtol=0, atol=within, equal_nan=True)


@contextmanager
def _refused(what: str, wanted: str) -> Iterator[None]:
    """Any error but that of memory, for each model has its own, as a ModelError."""
    try:
        yield
    except (MemoryError, torch.OutOfMemoryError):
        raise
    except Exception as error:
        reason = (str(error).strip().splitlines() or [""])[0].rstrip(".")
        raise ModelError(f"{what}: {type(error).__name__}: {reason}. Load a causal language model {wanted}.") from error
