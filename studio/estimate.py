"""How long an edit will take and how much memory it will need, before it is started.

The time comes from one timed pass of the model on this machine, the memory from the sizes of the sums.
Both are rough, and are meant to tell seconds from minutes and one gigabyte from eight.
"""

import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass

import psutil
import torch

from engine.facts import Fact
from engine.model import EditableModel, EditModule

LETTERS_PER_TOKEN = 4.2
TIMED_TOKENS = 256
# Prompts are continued in batches, token by token; each such step reads all weights, however few the prompts.
GENERATED_TOKENS = 8
PROMPTS_AT_ONCE = 32
STEP_TOKENS = 100
PROMPT_TOKENS = 12
FLOAT32_BYTES = 4


@dataclass(frozen=True)
class Work:
    """Tokens that an edit and its scoring run, and prompts that are continued freely."""

    edit_tokens: float
    score_tokens: float
    generated_prompts: int


@dataclass(frozen=True)
class Estimate:
    """Seconds of the edit and of the scoring after it; memory above and with the loaded model."""

    edit_seconds: float
    score_seconds: float
    extra_bytes: int
    peak_bytes: int


def work_of(facts: Sequence[Fact], generate: int) -> Work:
    """What is to be run for these facts, of which the first `generate` are also generated."""
    edit = score = prompts = 0
    for number, fact in enumerate(facts):
        own = len(fact.prompt) + len(fact.target)
        edit += own
        score += own + sum(len(prompt) + len(fact.target) for prompt in fact.equivalent)
        score += sum(len(prompt) + len(answer) for prompt, answer in fact.unrelated)
        if number < generate:
            prompts += 1 + len(fact.equivalent) + len(fact.unrelated)
    return Work(edit / LETTERS_PER_TOKEN, score / LETTERS_PER_TOKEN, prompts)


def sums_bytes(modules: Sequence[EditModule]) -> int:
    """M, two of HᵀG and Δθ of every edited module, in float32."""
    return FLOAT32_BYTES * sum(2 * one.d_h**2 + 3 * one.d_h * one.d_g for one in modules)


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
                    self._seconds[model.sha256] = _timed(model)
                finally:
                    model.lock.release()
            return self._seconds[model.sha256]

    def estimate(
        self, model: EditableModel, modules: Sequence[EditModule], facts: Sequence[Fact], generate: int
    ) -> Estimate | None:
        """None while the model is in use and has not been timed yet."""
        pace = self.seconds_per_token(model)
        if pace is None:
            return None
        work = work_of(facts, generate)
        suffix = (model.layer_count - min(one.layer for one in modules)) / model.layer_count if modules else 1.0
        parameters = sum(parameter.numel() for parameter in model.lm.parameters())
        # A pass costs two operations a parameter and token, a Cholesky solve D³/3 + 2 D² D_g.
        solve = sum(one.d_h**3 / 3 + 2 * one.d_h**2 * one.d_g for one in modules) * pace / (2 * parameters)
        batches = -(-work.generated_prompts // PROMPTS_AT_ONCE)
        each = PROMPT_TOKENS + GENERATED_TOKENS
        generated = 2 * (GENERATED_TOKENS * batches * STEP_TOKENS + work.generated_prompts * each)
        extra = sums_bytes(modules) + _chunk_bytes(model, suffix)
        return Estimate(
            work.edit_tokens * pace * (1 + 2 * suffix) + solve,
            (work.score_tokens * (1 + suffix) + generated) * pace,
            extra,
            _held_bytes(model) + extra,
        )


def _timed(model: EditableModel) -> float:
    ids = torch.arange(TIMED_TOKENS, device=model.device)[None] % model.lm.config.vocab_size
    ids = ids[:, : model.context]
    with torch.no_grad(), model.autocast():
        for _ in range(2):  # the first pass also warms up
            started = time.perf_counter()
            model.lm(ids, logits_to_keep=1).logits[0, -1, 0].item()
            taken = time.perf_counter() - started
    return taken / ids.shape[1]


def _chunk_bytes(model: EditableModel, suffix: float) -> int:
    """Activations that the backward pass of one chunk keeps: some twenty of the hidden width a layer and token."""
    width = model.lm.get_input_embeddings().weight.shape[1]
    return int(model.placement.tokens_per_chunk * width * 20 * suffix * model.layer_count * FLOAT32_BYTES)


def _held_bytes(model: EditableModel) -> int:
    if model.device.type == "cuda":
        return sum(torch.cuda.memory_allocated(index) for index in range(torch.cuda.device_count()))
    return psutil.Process().memory_info().rss
