"""MEMIT, PMET, EMMET and AlphaEdit read literally and slowly: one fact at a time, whole model, plain autograd.

Written from the methods' texts. Of the engine it knows how a prompt and its answer become tokens.
"""

from collections.abc import Callable
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, kl_div

from engine.prompts import encode


@dataclass(frozen=True)
class Rule:
    steps: int
    rate: float
    decay: float
    kl: float
    clamp: float
    stop: float = 0.05
    pmet: bool = False


@dataclass(frozen=True)
class Asked:
    """One prompt's tokens with its answer, and the place of its subject's last token."""

    ids: list[int]
    answer: list[int]
    subject: int


def ask(model, prompt: str, target: str, subject: str) -> Asked:
    [item] = encode(model.tokenizer, [(prompt, target)], 10**6, [""])
    letters = prompt.rindex(subject) + len(subject)
    for place in range(1, len(item.ids) + 1):  # the first token after which the subject has been said
        if len(model.tokenizer.decode(item.ids[:place])) >= letters:
            return Asked(list(item.ids), list(item.answer), place - 1)
    raise AssertionError(prompt)


def output(value):
    return value[0] if isinstance(value, tuple) else value


@contextmanager
def hooked(modules: list[nn.Module], hook: Callable):
    handles = [m.register_forward_hook(lambda m, a, o, p=p: hook(p, a, o)) for p, m in enumerate(modules)]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def run(model, ids: list[int], places: list[nn.Module], at: int, shifts: list[Tensor]) -> tuple[Tensor, list[Tensor]]:
    """Logits (S, V) with each shift added to its place's output at one token, and what stood there before."""
    before: list[Tensor] = [torch.empty(0)] * len(places)

    def add(place, _args, value):
        states = output(value)
        shape = states.shape
        states = states.reshape(1, len(ids), -1)
        before[place] = states[0, at].detach().clone()
        where = torch.zeros(1, len(ids), 1)
        where[0, at] = 1
        states = (states + where * shifts[place]).reshape(shape)
        return (states, *value[1:]) if isinstance(value, tuple) else states

    with hooked(places, add):
        return model.lm(torch.tensor([ids])).logits[0], before


def target(model, asked: list[Asked], essence: Asked, places: list[nn.Module], width: int, rule: Rule) -> list[Tensor]:
    """z* of one fact at each place, by torch's own Adam."""
    shifts = [torch.zeros(width, requires_grad=True) for _ in places]
    adam = torch.optim.Adam(shifts, lr=rule.rate)
    states: list[Tensor] = []
    original, weight = None, 1.0
    for step in range(rule.steps):
        nll, certain = [], True
        for one in asked:
            logits, before = run(model, one.ids, places, one.subject, shifts)
            states = states or before
            logits = logits[len(one.ids) - len(one.answer) :]
            nll.append(cross_entropy(logits, torch.tensor(one.answer)))
            certain = certain and logits.argmax(1).tolist() == one.answer
        logits, _ = run(model, essence.ids, places, essence.subject, shifts)
        behind = logits[essence.subject].log_softmax(0)
        original = behind.detach() if original is None else original
        kl = rule.kl * kl_div(original, behind, log_target=True, reduction="sum")
        loss = weight * torch.stack(nll).mean() + kl
        for shift, state in zip(shifts, states):
            loss = loss + rule.decay * torch.norm(shift) / torch.norm(state) ** 2
        if loss < rule.stop:
            break
        if rule.pmet:
            weight = 0.1 if certain else 1.0
            if certain and kl <= 0.01:
                break
        if step == rule.steps - 1:
            break
        adam.zero_grad()
        loss.backward()
        adam.step()
        with torch.no_grad():
            for shift, state in zip(shifts, states):
                if shift.norm() > rule.clamp * state.norm():
                    shift *= rule.clamp * state.norm() / shift.norm()
    return [state + shift.detach() for state, shift in zip(states, shifts)]


def seen(model, one: Asked, module: nn.Module) -> tuple[Tensor, Tensor]:
    """What enters and leaves a module at the subject's last token."""
    found = []

    def look(_place, args, value):
        entered = args[0] if args else torch.empty(1, len(one.ids), 0)
        found.append((entered.reshape(len(one.ids), -1), output(value).reshape(len(one.ids), -1)))

    with torch.no_grad(), hooked([module], look):
        model.lm(torch.tensor([one.ids]))
    [(entered, left)] = found
    return entered[one.subject], left[one.subject]


def key(model, asked: list[Asked], module: nn.Module) -> Tensor:
    """The mean over the two kinds of context, bare and prefixed, of each kind's mean."""
    keys = [seen(model, one, module)[0] for one in asked]
    return torch.stack([keys[0], torch.stack(keys[1:]).mean(0)]).mean(0)


def covariance(model, rows: list[list[int]], module: nn.Module) -> Tensor:
    """E[kkᵀ], key by key, float64."""
    total, count = 0.0, 0
    for ids in rows:

        def look(_place, args, _value):
            nonlocal total, count
            for k in args[0].reshape(len(ids), -1).double():
                total = total + torch.outer(k, k)
                count += 1

        with torch.no_grad(), hooked([module], look):
            model.lm(torch.tensor([ids]))
    return total / count


# The solves, facts as columns as the methods write them: K (D_h, N), R (D_g, N) → Δ (D_g, D_h).


def memit_solve(K: Tensor, R: Tensor, C: Tensor, weight: float) -> Tensor:
    return R @ K.T @ torch.linalg.inv(weight * C + K @ K.T)


def emmet_solve(K: Tensor, R: Tensor, C: Tensor, ridge: float) -> Tensor:
    inverse = torch.linalg.inv(C)
    return R @ torch.linalg.inv(K.T @ inverse @ K + ridge * torch.eye(K.shape[1], dtype=K.dtype)) @ K.T @ inverse


def alphaedit_solve(K: Tensor, R: Tensor, C: Tensor, ridge: float, threshold: float) -> Tensor:
    U, S, _ = torch.linalg.svd(C)
    P = U[:, S < threshold] @ U[:, S < threshold].T
    return torch.linalg.solve(P @ K @ K.T + ridge * torch.eye(len(K), dtype=K.dtype), P @ K @ R.T).T
