"""FT, LoRA and UltraEdit read literally and slowly: float64, every prompt alone through the whole model, Adam by hand.

Written from the methods' texts, not from the engine: a prompt is (ids, answer), the last ids predict the answer.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

Prompt = tuple[Sequence[int], Sequence[int]]


class Adam:
    """m ← 0.9 m + 0.1 g, v ← 0.999 v + 0.001 g², θ ← θ − lr m̂ / (√v̂ + 1e-8), hats: corrected for their start at 0."""

    def __init__(self, parameters: list[Tensor], rate: float):
        self.parameters, self.rate, self.steps = parameters, rate, 0
        self.m = [torch.zeros_like(parameter) for parameter in parameters]
        self.v = [torch.zeros_like(parameter) for parameter in parameters]

    @torch.no_grad()
    def step(self, gradients: Sequence[Tensor]) -> None:
        self.steps += 1
        for i, gradient in enumerate(gradients):
            self.m[i] = 0.9 * self.m[i] + 0.1 * gradient
            self.v[i] = 0.999 * self.v[i] + 0.001 * gradient**2
            first, second = self.m[i] / (1 - 0.9**self.steps), self.v[i] / (1 - 0.999**self.steps)
            self.parameters[i] -= self.rate * first / (second.sqrt() + 1e-8)


def answer_loss(lm: nn.Module, prompts: list[Prompt]) -> Tensor:
    """The mean over the prompts of the mean cross-entropy of the answer's tokens, in nats."""
    losses = []
    for ids, answer in prompts:
        logits = lm(torch.tensor([list(ids)])).logits[0, len(ids) - len(answer) :]
        losses.append(cross_entropy(logits, torch.tensor(list(answer))))
    return torch.stack(losses).mean()


def tuned(
    lm: nn.Module,
    parameters: list[Tensor],
    prompts: list[Prompt],
    rate: float,
    batch_size: int,
    orders: list[list[int]],
    stop_below: float,
) -> int:
    """Tune `parameters`, which are in use in `lm`, one pass for each of `orders`; returns how many were made."""
    adam = Adam(parameters, rate)
    for passes, order in enumerate(orders, 1):
        losses = []
        for first in range(0, len(order), batch_size):
            chosen = [prompts[index] for index in order[first : first + batch_size]]
            loss = answer_loss(lm, chosen)
            losses += [loss.item()] * len(chosen)
            if loss >= stop_below:
                adam.step(torch.autograd.grad(loss, parameters))
        if sum(losses) / len(losses) < stop_below:
            return passes
    return len(orders)


def with_adapter(lm: nn.Module, name: str, A: Tensor, B: Tensor, scale: float) -> None:
    """W x becomes W x + scale B A x, for good; A (r, D_h), B (D_g, r)."""

    def add(_module, args, output):
        return output + scale * (args[0] @ A.T @ B.T)

    lm.get_submodule(name).register_forward_hook(add)


def ultraedit_shift(H: Tensor, dG: Tensor, eta: float) -> Tensor:
    """(HᵀH + I)⁻¹ HᵀG with G_t = −η ‖H̃_t‖² ∇G̃_t; tilde: less the mean of all rows, over their deviation."""

    def normal(rows: Tensor) -> Tensor:
        return (rows - rows.mean(0)) / (rows.std(0) + 1e-7)

    G = torch.stack([-eta * (h @ h) * g for h, g in zip(normal(H), normal(dG))])
    return torch.linalg.solve(H.T @ H + torch.eye(H.shape[1], dtype=H.dtype), H.T @ G)

