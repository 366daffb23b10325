"""Old keys: where the answers of prompts stand that an edit shall leave alone, as rows of M whose values do not change.

M = HᵀH + K₀ᵀK₀ + e^λ I with K₀ (r, D_h). The paper's M has no K₀; MEMIT's has its λC = λ E[kkᵀ] in this place. Those
of a training are prompts in general: few directions hold most of C, so that they fit into a checkpoint and cost an edit
no more than so many rows. Those of an edit are the very prompts that its facts name as unrelated.
"""

from collections.abc import Callable, Iterator, Sequence

import numpy as np
import torch
from torch import Tensor

from engine.errors import FactError
from engine.facts import Fact
from engine.forward import states_at
from engine.generation import own_answers
from engine.model import EditableModel, EditModule
from engine.progress import Progress, silent
from engine.prompts import EncodedPrompt, TokenBatch, batches, encode
from engine.training_data import TrainingData

PROMPTS = 800
DIRECTIONS = 256
# How many rows a key of the facts' own unrelated prompts counts for; all together at most as many as a key is wide, or
# a large batch would learn nothing beside them.
KEPT_WEIGHT = 10.0


def old_keys(
    model: EditableModel, modules: Sequence[EditModule], data: TrainingData, weight: float, seed: int
) -> list[Tensor]:
    """K₀ (r, D_h) float32 of every module, with K₀ᵀK₀ ≈ weight · E[kkᵀ], r ≤ DIRECTIONS.

    E is over the answer positions of PROMPTS unrelated prompts of the training facts, drawn with `seed`. Raises
    FactError where they have none.
    """
    if not data.unrelated:
        raise FactError("old_keys needs unrelated prompts with answers: give some in the training facts, or set it to 0.")
    count = min(PROMPTS, len(data.unrelated))
    members = np.random.default_rng(seed).choice(len(data.unrelated), count, replace=False).tolist()
    moments = [torch.zeros(module.d_h, module.d_h, dtype=torch.float64) for module in modules]
    rows = 0
    for keys in _answer_keys(model, modules, data.unrelated, data.unrelated_trunk, members):
        rows += len(keys[0])
        for moment, own in zip(moments, keys):
            own = own.double().cpu()
            moment.addmm_(own.T, own)
    found = []
    for moment in moments:
        values, vectors = torch.linalg.eigh(moment * (weight / rows))
        kept = min(DIRECTIONS, rows, len(values))
        found.append((vectors[:, -kept:] * values[-kept:].clamp_min(0).sqrt()).T.float().contiguous())
    return found


def unrelated_prompts(
    model: EditableModel, facts: Sequence[Fact], ask: bool = True, progress: Progress = silent
) -> list[EncodedPrompt]:
    """The facts' unrelated prompts, tokenised with their answers; one without is held to the unedited model's own.

    Not `ask`: a stand-in takes the place of such an answer. Raises FactError for one too long.
    """
    pairs = [pair for fact in facts for pair in fact.unrelated]
    where = [f"Row {fact.row or n + 1}, unrelated prompt" for n, fact in enumerate(facts) for _ in fact.unrelated]
    encoded = encode(model.tokenizer, [(prompt, answer or "?") for prompt, answer in pairs], model.context, where)
    open_ended = [index for index, (_, answer) in enumerate(pairs) if not answer] if ask else []
    asked = own_answers(model, [encoded[index] for index in open_ended], [None] * len(open_ended), progress)
    for index, item in zip(open_ended, asked):
        encoded[index] = item
    return encoded


def kept_keys(
    model: EditableModel,
    modules: Sequence[EditModule],
    encoded: Sequence[EncodedPrompt],
    trunk: Callable[[TokenBatch], Tensor],
) -> Iterator[list[Tensor]]:
    """Keys (T, D_h) float32 of every module at the answers of `encoded`, chunk by chunk, as rows of M: with its weight.

    `trunk` hands over what enters the first module's layer.
    """
    rows = sum(len(item.answer) for item in encoded)
    for keys in _answer_keys(model, modules, encoded, trunk):
        yield [min(KEPT_WEIGHT, own.shape[1] / rows) ** 0.5 * own.to(model.device) for own in keys]


def _answer_keys(
    model: EditableModel,
    modules: Sequence[EditModule],
    encoded: Sequence[EncodedPrompt],
    trunk: Callable[[TokenBatch], Tensor],
    members: Sequence[int] | None = None,
) -> Iterator[list[Tensor]]:
    places = [model.lm.get_submodule(module.name) for module in modules]
    for batch in batches(encoded, model.placement.tokens_per_chunk, model.device, members):
        states = states_at(model, batch, places, modules[0].layer, trunk(batch))
        yield [entered.index_select(0, batch.positions.to(entered.device)).float() for entered, _ in states]
