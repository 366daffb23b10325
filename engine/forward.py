"""Running the language model in two parts: the frozen trunk below the first edited layer, and the suffix.

The trunk never changes under an edit and needs no backward pass, so its output is computed once for each
prompt and reused. Logits are computed only where an answer token is predicted.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from engine.delta import WeightDelta
from engine.head import head_logits
from engine.model import EditableModel
from engine.prompts import TokenBatch


class _TrunkEnds(Exception):
    """Stops a forward pass where the rest of it is not wanted."""


def trunk(model: EditableModel, batch: TokenBatch, layer: int) -> Tensor:
    """The hidden states (B, S, D) that enter `layer`, in the model's own dtype."""
    caught: list[Tensor] = []

    def stop(_module, args, kwargs):
        caught.append(args[0] if args else kwargs["hidden_states"])
        raise _TrunkEnds

    hook = model.layers[layer].register_forward_pre_hook(stop, with_kwargs=True)
    try:
        with torch.no_grad(), model.autocast():
            model.lm.base_model(input_ids=batch.ids, use_cache=False)
    except _TrunkEnds:
        pass
    finally:
        hook.remove()
    return caught[0]


@contextmanager
def _trunk_output(model: EditableModel, layer: int, hidden: Tensor | None) -> Iterator[None]:
    """Layers below `layer` hand their input on, the last of them `hidden`: their work is already done."""
    if hidden is None or layer == 0:
        yield
        return

    wrap = (lambda states: (states,)) if model.first_pass.layers_return_tuples else (lambda states: states)

    def hand_on(*args, **kwargs):
        return wrap(args[0] if args else kwargs["hidden_states"])

    below = model.layers[:layer]
    ends = dict.fromkeys(below, hand_on) | {below[-1]: lambda *args, **kwargs: wrap(hidden)}
    with _forwards(ends):
        yield


@contextmanager
def _forwards(instead: Mapping[nn.Module, Callable]) -> Iterator[None]:
    """Each of these modules computes something else."""
    kept = {module: module.__dict__.get("forward") for module in instead}
    try:
        for module, forward in instead.items():
            module.forward = forward
        yield
    finally:
        for module, forward in kept.items():
            if forward is None:
                del module.forward
            else:
                module.forward = forward  # accelerate's own wrapper


@contextmanager
def few_rows(model: EditableModel) -> Iterator[None]:
    """Linear maps of float32 on a CPU are computed as (W Xᵀ)ᵀ, which MKL does for 2 to 100 rows up to three times as
    fast as X Wᵀ: there decoding is bound by how fast the weights are read.
    """

    def transposed(linear: nn.Linear) -> Callable[[Tensor], Tensor]:
        def forward(states: Tensor) -> Tensor:
            product = (linear.weight @ states.flatten(0, -2).T).T
            if linear.bias is not None:
                product = product + linear.bias
            return product.unflatten(0, states.shape[:-1])

        return forward

    placement = model.placement
    if placement.device.type != "cpu" or placement.dtype != torch.float32:
        yield
        return
    linears = [module for module in model.lm.modules() if type(module) is nn.Linear]
    with _forwards({linear: transposed(linear) for linear in linears}):
        yield


@contextmanager
def second_half_edited(model: EditableModel, delta: WeightDelta) -> Iterator[None]:
    """The first half of every batch sees the original weights, the second half those with `delta` added.

    So one decoding answers before and after: where a few rows are decoded, reading the weights is what takes time,
    and all but the edit modules' are read once. Raises what `EditableModel.edited` raises.
    """

    def halves(module: nn.Module, original: nn.Parameter, edited: nn.Parameter) -> Callable[[Tensor], Tensor]:
        forward = module.forward

        def both(states: Tensor) -> Tensor:
            first, second = states.chunk(2)
            try:
                module.weight = original
                before = forward(first)
            finally:
                module.weight = edited
            return torch.cat((before, forward(second)))

        return both

    modules = {name: model.lm.get_submodule(name) for name in delta.shifts}
    originals = {name: module.weight for name, module in modules.items()}
    with model.edited(delta) as edited:
        with _forwards({m: halves(m, originals[name], edited[name]) for name, m in modules.items()}):
            yield


def final_hidden(
    model: EditableModel,
    batch: TokenBatch,
    layer: int = 0,
    hidden: Tensor | None = None,
    behind: Mapping[str, Any] | None = None,
) -> Tensor:
    """The last hidden states (B, S, D), after the final norm; starts at `layer` when `hidden` enters it.

    behind: what `engine.past.behind` says of the tokens before those of `batch`.
    """
    with _trunk_output(model, layer, hidden), model.autocast():
        return model.lm.base_model(input_ids=batch.ids, **(behind or {"use_cache": False})).last_hidden_state


def states_at(
    model: EditableModel, batch: TokenBatch, modules: Sequence[nn.Module], layer: int = 0, hidden: Tensor | None = None
) -> list[tuple[Tensor, Tensor]]:
    """What enters and what leaves each of these modules: (B·S, D_in), (B·S, D_out), in the model's own dtype.

    No gradient; nothing runs once the last of them is through, and nothing below `layer` when `hidden` enters it.
    """
    seen: dict[nn.Module, tuple[Tensor, Tensor]] = {}

    def look(module, args, kwargs, output):
        entered = args[0] if args else kwargs["hidden_states"]
        left = output[0] if isinstance(output, tuple | list) else output
        seen[module] = entered.flatten(0, -2).clone(), left.flatten(0, -2).clone()  # Falcon adds in place
        if len(seen) == len(modules):
            raise _TrunkEnds

    hooks = [module.register_forward_hook(look, with_kwargs=True) for module in modules]
    try:
        with torch.no_grad():
            final_hidden(model, batch, layer, hidden)
    except _TrunkEnds:
        pass
    finally:
        for hook in hooks:
            hook.remove()
    return [seen[module] for module in modules]


def logits_at(model: EditableModel, states: Tensor, positions: Tensor) -> Tensor:
    """Float32 logits (T, V) at the flat `positions` of the last hidden states (B, S, D)."""
    rows = states.reshape(-1, states.shape[-1]).index_select(0, positions.to(states.device))
    return head_logits(model, rows)


def answer_logits(
    model: EditableModel,
    batch: TokenBatch,
    layer: int = 0,
    hidden: Tensor | None = None,
    behind: Mapping[str, Any] | None = None,
) -> Tensor:
    """Float32 logits (T, V) at the positions that predict an answer token; the arguments are `final_hidden`'s."""
    return logits_at(model, final_hidden(model, batch, layer, hidden, behind), batch.positions)
