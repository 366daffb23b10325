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
from engine.generation import decoding_batches, written_tokens
from engine.model import EditableModel
from engine.work import Work
from studio.own_thread import in_own_thread

LETTERS_PER_TOKEN = 4.2
TIMED_TOKENS = 256
# The cost of a layer's backward pass, in that of its forward pass: frozen weights need no gradient of their own.
BACKWARD = 1.0
# A step of writing text reads all weights, however few its prompts: that alone is the cost of so many tokens.
STEP_TOKENS = 50
# Where attention writes out its scores, a number for each two tokens and head: how often a layer holds them as it runs,
# and the cost of an operation there, in that of one with a weight. As measured on a CPU with 1,000 and 2,000 tokens.
SCORES_HELD = 4
SCORES_COST = 2.5
HEAD_WIDTH = 64  # in most families


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


def scoring(model: EditableModel, facts: Sequence[Fact], generate: int, first: int) -> Work:
    """What scoring runs where the shallowest edited layer is `first`: before and after, and the prompts of the first
    `generate` facts continued twice. Tokens are guessed from letters."""
    layers, chunk = model.layer_count, model.placement.tokens_per_chunk
    forward = operations = held = 0.0
    steps = 0
    prompts: list[int] = []
    answers: list[int] = []
    for number, fact in enumerate(facts):
        pairs = [(fact.prompt, fact.target), *((prompt, fact.target) for prompt in fact.equivalent), *fact.unrelated]
        for prompt, answer in pairs:
            tokens = (len(prompt) + len(answer)) / LETTERS_PER_TOKEN
            forward += tokens * (2 * layers - first)
            operations += _attention_operations(model, tokens, tokens) * (2 * layers - first)
            held = max(held, _running_bytes(model, max(tokens, chunk), tokens))
            if number < generate:
                prompts.append(round(len(prompt) / LETTERS_PER_TOKEN))
                answers.append(round(len(answer) / LETTERS_PER_TOKEN))
    for members in decoding_batches(model, prompts, answers, 2):  # before and after at once
        width, new = (max(own[index] for index in members) for own in (prompts, answers))
        new, rows = written_tokens(new), 2 * len(members)
        forward += rows * (width + new) * layers
        operations += _attention_operations(model, rows * width, width) * layers
        held = max(held, _running_bytes(model, rows * width, width) + _cache_bytes(model, rows * (width + new)))
        steps += new
    return Work(forward, steps=steps, operations=operations, bytes=int(held))


def editing_bytes(model: EditableModel, facts: Sequence[Fact], first: int) -> float:
    """What a chunk leaves for the backward pass through the layers from `first` on, or the longest prompt if it is
    longer than a chunk."""
    longest = max((len(fact.prompt) + len(fact.target) for fact in facts), default=0) / LETTERS_PER_TOKEN
    tokens = max(model.chunk_tokens(first), longest)
    layers = model.layer_count - first + SCORES_HELD
    return tokens * model.activation_bytes(first) + layers * _scores_bytes(model, tokens, longest)


def seconds_of(work: Work, pace: float, layers: int, parameters: int) -> float:
    """At `pace` seconds a token through all layers; a token costs two operations a parameter there."""
    passes = (work.forward + BACKWARD * work.backward) / layers + work.steps * STEP_TOKENS
    return pace * (passes + work.operations / (2 * parameters))


class Pace:
    """Seconds a token takes in each model, where and as it was loaded; measured once, while nothing else uses it."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._seconds: dict[tuple[str, str], float] = {}  # by weights, and by device and dtype

    def seconds_per_token(self, model: EditableModel) -> float | None:
        """None while the model is in use."""
        loaded = model.sha256, model.reason
        with self._lock:
            if loaded not in self._seconds:
                if not model.lock.acquire(blocking=False):
                    return None
                try:
                    self._seconds[loaded] = in_own_thread(_timed, model)
                finally:
                    model.lock.release()
            return self._seconds[loaded]

    def estimate(
        self, model: EditableModel, found: Forecast, facts: Sequence[Fact], generate: int
    ) -> Estimate | None:
        """None while the model is in use and has not been timed yet."""
        pace = self.seconds_per_token(model)
        if pace is None:
            return None
        layers, first = model.layer_count, min(module.layer for module in found.modules)
        parameters = sum(parameter.numel() for parameter in model.lm.parameters())
        score = scoring(model, facts, generate, first)
        seconds = [seconds_of(one, pace, layers, parameters) for one in (found.preparation, found.work, score)]
        edit_bytes = (found.preparation + found.work).bytes + int(editing_bytes(model, facts, first))
        extra = max(edit_bytes, score.bytes)
        return Estimate(*seconds, extra, _held_bytes(model) + extra, found.work.at_most)


def _attention_operations(model: EditableModel, tokens: float, width: float) -> float:
    """Of one layer's attention, for so many tokens that each look at `width` of them; in operations with weights."""
    return 4 * tokens * width * model.width * (SCORES_COST if model.placement.attention == "eager" else 1)


def _scores_bytes(model: EditableModel, tokens: float, width: float) -> float:
    """Of one layer's attention scores, for so many tokens that each look at `width`; 0 where none are written out."""
    if model.placement.attention != "eager":
        return 0.0
    return _heads(model) * tokens * width * model.dtype.itemsize


def _running_bytes(model: EditableModel, tokens: float, width: float) -> float:
    """What a forward pass holds of so many tokens, in rows of `width`: that of one layer at a time."""
    return tokens * model.activation_bytes(model.layer_count - 1) + SCORES_HELD * _scores_bytes(model, tokens, width)


def _cache_bytes(model: EditableModel, tokens: float) -> float:
    """The keys and values that all layers keep of so many tokens while text is written."""
    kept = (getattr(model.config, "num_key_value_heads", None) or _heads(model)) / _heads(model)
    return 2 * model.layer_count * tokens * model.width * kept * model.dtype.itemsize


def _heads(model: EditableModel) -> int:
    return getattr(model.config, "num_attention_heads", None) or max(1, model.width // HEAD_WIDTH)


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
