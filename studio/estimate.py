"""How long an edit will take and how much memory it will need, before it is started.

The counts come from the editor, the time of a token from one timed pass of the model on this machine. Both are
rough, and are meant to tell seconds from minutes and one gigabyte from eight.
"""

import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass

import psutil
import torch

from engine.facts import Fact
from engine.forecast import Forecast
from engine.generation import PROMPTS_AT_ONCE, SHOWN_TOKENS
from engine.model import EditableModel
from engine.work import Work
from studio.own_thread import in_own_thread

LETTERS_PER_TOKEN = 4.2
TIMED_TOKENS = 256
# The cost of a layer's backward pass, in that of its forward pass: frozen weights need no gradient of their own.
BACKWARD = 1.0
# A step of writing text reads all weights, however few its prompts: that alone is the cost of so many tokens.
STEP_TOKENS = 50
PROMPT_TOKENS = 12


@dataclass(frozen=True)
class Estimate:
    """Seconds of what is made first and kept, of the edit and of its scoring; memory above the model and with it.

    at_most: the edit may end sooner, by its stopping rule.
    """

    prepare_seconds: float
    edit_seconds: float
    score_seconds: float
    extra_bytes: int
    peak_bytes: int
    at_most: bool


def scoring(facts: Sequence[Fact], generate: int, layers: int, first: int) -> Work:
    """What scoring runs in a model of so many layers, edited from layer `first` on: before and after, and the prompts
    of the first `generate` facts continued twice. Tokens are guessed from letters."""
    letters = prompts = 0
    for number, fact in enumerate(facts):
        letters += len(fact.prompt) + len(fact.target)
        letters += sum(len(prompt) + len(fact.target) for prompt in fact.equivalent)
        letters += sum(len(prompt) + len(answer) for prompt, answer in fact.unrelated)
        if number < generate:
            prompts += 1 + len(fact.equivalent) + len(fact.unrelated)
    written = 2 * prompts * (PROMPT_TOKENS + SHOWN_TOKENS) * layers
    batches = -(-prompts // PROMPTS_AT_ONCE)
    return Work(letters / LETTERS_PER_TOKEN * (2 * layers - first) + written, steps=batches * SHOWN_TOKENS)  # both at once


def seconds_of(work: Work, pace: float, layers: int, parameters: int) -> float:
    """At `pace` seconds a token through all layers; a token costs two operations a parameter there."""
    passes = (work.forward + BACKWARD * work.backward) / layers + work.steps * STEP_TOKENS
    return pace * (passes + work.operations / (2 * parameters))


class Pace:
    """Seconds a token takes in each model, measured once a model and only while nothing else uses it."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._seconds: dict[str, float] = {}

    def seconds_per_token(self, model: EditableModel) -> float | None:
        """None while the model is in use."""
        with self._lock:
            if model.sha256 not in self._seconds:
                if not model.lock.acquire(blocking=False):
                    return None
                try:
                    self._seconds[model.sha256] = in_own_thread(_timed, model)
                finally:
                    model.lock.release()
            return self._seconds[model.sha256]

    def estimate(
        self, model: EditableModel, found: Forecast, facts: Sequence[Fact], generate: int
    ) -> Estimate | None:
        """None while the model is in use and has not been timed yet."""
        pace = self.seconds_per_token(model)
        if pace is None:
            return None
        layers, first = model.layer_count, min(module.layer for module in found.modules)
        parameters = sum(parameter.numel() for parameter in model.lm.parameters())
        score = scoring(facts, generate, layers, first)
        seconds = [seconds_of(one, pace, layers, parameters) for one in (found.preparation, found.work, score)]
        extra = (found.preparation + found.work).bytes + model.chunk_tokens(first) * model.activation_bytes(first)
        return Estimate(*seconds, extra, _held_bytes(model) + extra, found.work.at_most)


def _timed(model: EditableModel) -> float:
    ids = torch.arange(TIMED_TOKENS, device=model.device)[None] % model.config.vocab_size
    ids = ids[:, : model.context]
    with torch.no_grad(), model.autocast():
        for _ in range(2):  # the first pass also warms up
            started = time.perf_counter()
            model.lm(ids, logits_to_keep=1).logits[0, -1, 0].item()
            taken = time.perf_counter() - started
    return taken / ids.shape[1]


def _held_bytes(model: EditableModel) -> int:
    if model.device.type == "cuda":
        return sum(torch.cuda.memory_allocated(index) for index in range(torch.cuda.device_count()))
    return psutil.Process().memory_info().rss
