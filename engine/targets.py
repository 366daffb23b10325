"""z*: the hidden state at a fact's subject from which the model says the new answer, found for many facts in one batch.

Each fact's shift δ of that state has its own Adam and its own stopping rule, and is untouched by who shares the batch;
a fact that stops makes room for the next. Only the layers from the shifted one up run, and of a prompt only the tokens
from its subject's last one on: what enters the layer there, and the keys and values of what is before, are kept.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from engine.contexts import Contexts
from engine.errors import NonFiniteError
from engine.forward import answer_logits
from engine.model import EditableModel
from engine.past import Past, behind, split_prompts
from engine.progress import Progress, silent
from engine.prompts import batches, collate

STOP_LOSS = 0.05
BETAS, EPSILON = (0.9, 0.999), 1e-8  # Adam's
# PMET's rule: once every answer token is the likeliest, the answer counts less, and a small KL is enough.
CERTAIN_SHARE, CERTAIN_KL = 0.1, 0.01


@dataclass(frozen=True)
class TargetRule:
    """How z* is found. steps of Adam at `rate`; the loss of a fact with shifts δ_p of the states h_p is

        mean NLL of the answer over the asking contexts + kl · KL(shifted ‖ original | "{subject} is a")
        + Σ_p decay · ‖δ_p‖ / ‖h_p‖²,        and after each step ‖δ_p‖ ≤ clamp · ‖h_p‖.

    It stops when the loss is under STOP_LOSS, or the steps are done; `until_certain` adds PMET's rule.
    """

    steps: int
    rate: float
    decay: float
    kl: float
    clamp: float
    until_certain: bool = False


@dataclass(frozen=True)
class Targets:
    """values (N, P, D) float32: z* = h + δ at each of P places; losses: the last of each fact; tokens: run in all."""

    values: Tensor
    losses: list[float]
    tokens: int


@dataclass(eq=False)
class _Search:
    """One fact on its way: δ and Adam's moments (P, D), and what its first pass saw of the unshifted model."""

    fact: int
    prompts: list[tuple[Past, Tensor]]  # of each: what is before the subject's last token, and (R, D) from there on
    shift: Tensor | None = None
    mean: Tensor | None = None
    square: Tensor | None = None
    states: Tensor | None = None  # h (P, D)
    original: Tensor | None = None  # log-probabilities (V,) behind the subject
    step: int = 0
    answer_weight: float = 1.0


@dataclass(frozen=True)
class _Seen:
    """One forward pass of A facts: their answers' mean NLL (A,), whether every answer token is the likeliest (A,),
    log-probabilities behind the subject (A, V), and the states before the shift (A, P, D)."""

    nll: Tensor
    certain: Tensor
    subject: Tensor
    states: Tensor


def find_targets(
    model: EditableModel,
    contexts: Contexts,
    places: Sequence[nn.Module],
    layer: int,
    rule: TargetRule,
    progress: Progress = silent,
) -> Targets:
    """z* of every fact at the outputs of `places`: modules of `layer`, in running order, or that layer itself.

    `progress` is called in facts and may raise Cancelled. Raises NonFiniteError naming a row whose loss is not finite.
    """
    count = len(contexts.rows)
    length = [max(len(contexts.rests[index].ids) for index in contexts.members(fact)) for fact in range(count)]
    whole = [max(len(contexts.encoded[index].ids) for index in contexts.members(fact)) for fact in range(count)]
    waiting = sorted(range(count), key=lambda fact: -length[fact])  # taken from the end: the shortest first
    active: list[_Search] = []
    values: list[Tensor | None] = [None] * count
    losses, tokens = [0.0] * count, 0
    progress("Targets", 0, count)
    while waiting or active:
        entering: list[int] = []
        room = model.chunk_tokens(layer) // contexts.size
        while waiting:
            together = [*(search.fact for search in active), *entering, waiting[-1]]
            # Padded to each other, a long past before a short rest and a short one before a long must have positions.
            reach = max(whole[fact] - length[fact] for fact in together) + max(length[fact] for fact in together)
            if len(together) > 1 and (len(together) * length[waiting[-1]] > room or reach > model.context):
                break
            entering.append(waiting.pop())
        active += _begin(model, contexts, entering, layer)
        tokens += sum(len(contexts.encoded[index].ids) for fact in entering for index in contexts.members(fact))
        with torch.enable_grad():
            finished = _advance(model, contexts, places, layer, rule, active)
        tokens += sum(len(contexts.rests[i].ids) for search in active for i in contexts.members(search.fact))
        for search, loss in finished.items():
            values[search.fact], losses[search.fact] = search.states + search.shift, loss
        active = [search for search in active if search not in finished]
        progress("Targets", count - len(waiting) - len(active), count)
    return Targets(torch.stack(values), losses, tokens)


def _begin(model: EditableModel, contexts: Contexts, facts: Sequence[int], layer: int) -> list[_Search]:
    prompts: dict[int, tuple[Past, Tensor]] = {}
    members = [index for fact in facts for index in contexts.members(fact)]
    for batch in batches(contexts.encoded, model.placement.tokens_per_chunk, model.device, members):
        parts = split_prompts(model, batch, layer, [contexts.subjects[index] for index in batch.members])
        prompts.update(zip(batch.members, parts))
    return [_Search(fact, [prompts[index] for index in contexts.members(fact)]) for fact in facts]


def _advance(
    model: EditableModel,
    contexts: Contexts,
    places: Sequence[nn.Module],
    layer: int,
    rule: TargetRule,
    active: Sequence[_Search],
) -> dict[_Search, float]:
    """One step of every active fact; those that stop before it, with their loss."""
    width = active[0].prompts[0][1].shape[-1]
    for search in active:
        if search.shift is None:
            search.shift = torch.zeros(len(places), width, device=model.device)
            search.mean, search.square = torch.zeros_like(search.shift), torch.zeros_like(search.shift)
    shifts = torch.stack([search.shift for search in active]).requires_grad_()
    seen = _run(model, contexts, places, layer, active, shifts)
    for search, states, subject in zip(active, seen.states, seen.subject):
        if not search.step:
            search.states, search.original = states, subject.detach()
    original = torch.stack([search.original for search in active])
    divergence = rule.kl * (seen.subject.exp() * (seen.subject - original)).sum(-1)
    lengths = torch.linalg.vector_norm(torch.stack([search.states for search in active]), dim=-1)  # (A, P)
    decay = rule.decay * (torch.linalg.vector_norm(shifts, dim=-1) / lengths.square()).sum(-1)
    weights = torch.tensor([search.answer_weight for search in active], device=model.device)
    loss = weights * seen.nll + divergence + decay
    stops: dict[_Search, float] = {}
    for at, (search, value, certain, apart) in enumerate(
        zip(active, loss.tolist(), seen.certain.tolist(), divergence.tolist())
    ):
        if not math.isfinite(value):
            raise NonFiniteError(
                f"{contexts.rows[search.fact]}: the loss of its target state is {value}: the model overflows in "
                f"{model.dtype}. Load it with --dtype float32. Nothing was edited."
            )
        done = value < STOP_LOSS or search.step == rule.steps - 1
        if rule.until_certain:
            search.answer_weight = CERTAIN_SHARE if certain else 1.0
            done = done or (certain and apart <= CERTAIN_KL)
        if done:
            stops[search] = value
    if len(stops) == len(active):
        return stops
    (gradients,) = torch.autograd.grad(loss.sum(), [shifts])
    for search, gradient, limit in zip(active, gradients, rule.clamp * lengths):
        if search not in stops:
            _adam(search, gradient, rule.rate)
            size = torch.linalg.vector_norm(search.shift, dim=-1)
            search.shift *= (limit / size.clamp_min(limit)).unsqueeze(-1)
    return stops


def _adam(search: _Search, gradient: Tensor, rate: float) -> None:
    search.step += 1
    search.mean.lerp_(gradient, 1 - BETAS[0])
    search.square.mul_(BETAS[1]).addcmul_(gradient, gradient, value=1 - BETAS[1])
    first, second = (1 - beta**search.step for beta in BETAS)
    search.shift = search.shift - rate * (search.mean / first) / ((search.square / second).sqrt() + EPSILON)


def _run(
    model: EditableModel,
    contexts: Contexts,
    places: Sequence[nn.Module],
    layer: int,
    active: Sequence[_Search],
    shifts: Tensor,
) -> _Seen:
    """From the kept hidden states to the log-probabilities, with each fact's δ at all its subjects' last tokens."""
    members = [index for search in active for index in contexts.members(search.fact)]
    batch = collate(contexts.rests, members, model.device)
    pasts, hidden = zip(*(prompt for search in active for prompt in search.prompts))
    entering = torch.nn.utils.rnn.pad_sequence(hidden, batch_first=True)
    rows = torch.arange(len(members)) * batch.ids.shape[1]  # each prompt begins with its subject's last token
    before: list[Tensor] = []

    def add(place: int):
        def hook(_module, _args, output):
            states = output[0] if isinstance(output, tuple | list) else output
            flat, at = states.flatten(0, -2), rows.to(states.device)
            before.append(flat.index_select(0, at[:: contexts.size]).detach().float().to(shifts.device))
            added = shifts[:, place].repeat_interleave(contexts.size, dim=0).to(flat)
            shifted = flat.index_add(0, at, added).view_as(states)
            return (shifted, *output[1:]) if isinstance(output, tuple | list) else shifted

        return hook

    hooks = [module.register_forward_hook(add(place)) for place, module in enumerate(places)]
    try:
        logits = answer_logits(model, batch, layer, entering, behind(model, pasts, batch, layer))
    finally:
        for hook in hooks:
            hook.remove()
    chances = logits.log_softmax(-1)
    lengths = torch.tensor([len(contexts.encoded[index].answer) for index in members], device=chances.device)
    owner = torch.repeat_interleave(lengths)  # of each predicting position, its prompt in the batch
    labels = batch.labels.to(chances.device)
    picked = chances.gather(1, labels.unsqueeze(1)).squeeze(1)

    def asking(rows: Tensor) -> Tensor:
        """Means over the answer tokens of each prompt, (A, asking)."""
        means = rows.new_zeros(len(lengths)).index_add(0, owner, rows) / lengths
        return means.view(len(active), contexts.size)[:, : contexts.asking].to(shifts.device)

    hits = (chances.argmax(-1) == labels).float()
    return _Seen(
        -asking(picked).mean(1),
        asking(hits).amin(1) == 1,
        chances[(lengths.cumsum(0) - 1)[contexts.asking :: contexts.size]].to(shifts.device),
        torch.stack(before, dim=1),
    )
