"""Tuning a few tensors on the answers of a batch of facts: passes of mini-batches, by Adam. What FT and LoRA share.

It knows nothing of which tensors they are: whoever calls it has put them into the model's forward pass.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from engine.errors import NonFiniteError
from engine.forward import answer_logits
from engine.model import EditableModel
from engine.progress import Progress
from engine.prompts import EncodedPrompt, TokenBatch, batches
from engine.trunk import TrunkCache

TRUNK_BYTES = 2 << 30


@dataclass(frozen=True)
class Schedule:
    """How to tune. steps: passes over all facts; batch_size: facts for each step of Adam; stop_below: nats.

    `seed` shuffles each pass; without it facts keep their order.
    """

    learning_rate: float
    steps: int
    batch_size: int
    stop_below: float
    seed: int | None = None

    def order(self, count: int, step: int) -> list[int]:
        """The facts 0…count−1 in the order of pass `step`."""
        if self.seed is None:
            return list(range(count))
        # Far apart, so that no pass has the order of another seed's.
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + step)
        return torch.randperm(count, generator=generator).tolist()


@dataclass(frozen=True)
class Tuned:
    """loss: of the last pass, in nats a token, met before each step; passes: how many; tokens: real ones run."""

    loss: float
    passes: int
    tokens: int

    def notes(self, schedule: Schedule) -> list[str]:
        """What a person should know."""
        if self.loss < schedule.stop_below:
            return []
        return [
            f"After {self.passes} pass{'es' * (self.passes != 1)} the answers' loss was {self.loss:.2g} nats, above "
            f"{schedule.stop_below:g}: more steps, or another learning rate, would edit more of the facts."
        ]


def tune(
    model: EditableModel,
    parameters: Sequence[Tensor],
    encoded: Sequence[EncodedPrompt],
    layer: int,
    schedule: Schedule,
    progress: Progress,
) -> Tuned:
    """Lower the answer cross-entropy of `encoded` by Adam on `parameters`, float32 leaves changed in place.

    The loss of a mini-batch is the mean over its facts of the mean over the answer's tokens, as in the reference
    implementations; so is leaving out the step of a mini-batch below `stop_below`, and stopping after a pass whose
    mean is. Nothing below `layer` depends on the parameters: it runs once for each fact.
    Raises NonFiniteError.
    """
    optimiser = torch.optim.Adam(parameters, lr=schedule.learning_rate)
    trunk = TrunkCache(model, layer, encoded, TRUNK_BYTES)
    lengths = torch.tensor([len(item.answer) for item in encoded], device=model.device)
    total = schedule.steps * sum(len(item.ids) for item in encoded)
    tokens = passes = 0
    loss = float("inf")
    progress("Editing", 0, total)
    while passes < schedule.steps and loss >= schedule.stop_below:
        order = schedule.order(len(encoded), passes)
        summed = 0.0
        for first in range(0, len(order), schedule.batch_size):
            members = order[first : first + schedule.batch_size]
            optimiser.zero_grad()
            own = 0.0
            for batch in batches(encoded, model.chunk_tokens(layer), model.device, members):
                own += _backward(model, batch, layer, trunk, lengths[batch.owner] * len(members))
                tokens += sum(batch.lengths)
                progress("Editing", tokens, total)
            if own >= schedule.stop_below:
                optimiser.step()
            summed += own * len(members)
        passes += 1
        loss = summed / len(encoded)
    progress("Editing", total, total)
    return Tuned(loss, passes, tokens)


def _backward(model: EditableModel, batch: TokenBatch, layer: int, trunk: TrunkCache, shares: Tensor) -> float:
    """Accumulate the gradient of Σ cross-entropy / shares over the answer positions of `batch`; returns the sum."""
    hidden = trunk(batch) if layer else None
    with torch.enable_grad():
        logits = answer_logits(model, batch, layer, hidden)
        losses = cross_entropy(logits, batch.labels.to(logits.device), reduction="none")
        loss = (losses / shares.to(losses.device)).sum()
    if not torch.isfinite(loss):
        raise NonFiniteError(
            f"The answer cross-entropy is {loss.item()}, so nothing was edited: lower the learning rate, or load the "
            "model with --dtype float32."
        )
    loss.backward()
    return loss.item()
