"""Old keys: where the answers of prompts stand that an edit shall leave alone, as rows of M whose values do not change.

M = HᵀH + K₀ᵀK₀ + e^λ I with K₀ (r, D_h). The paper's M has no K₀; MEMIT's has its λC = λ E[kkᵀ] in this place. Few
directions hold most of C, so that they fit into a checkpoint and cost an edit no more than so many rows.
"""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from engine.errors import FactError
from engine.forward import states_at
from engine.model import EditableModel, EditModule
from engine.prompts import batches
from engine.training_data import TrainingData

PROMPTS = 800
DIRECTIONS = 256


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
    places = [model.lm.get_submodule(module.name) for module in modules]
    moments = [torch.zeros(module.d_h, module.d_h, dtype=torch.float64) for module in modules]
    rows = 0
    for batch in batches(data.unrelated, model.placement.tokens_per_chunk, model.device, members):
        rows += len(batch.positions)
        states = states_at(model, batch, places, data.layer, data.unrelated_trunk(batch))
        for moment, (entered, _) in zip(moments, states):
            keys = entered.index_select(0, batch.positions.to(entered.device)).double().cpu()
            moment.addmm_(keys.T, keys)
    found = []
    for moment in moments:
        values, vectors = torch.linalg.eigh(moment * (weight / rows))
        kept = min(DIRECTIONS, rows, len(values))
        found.append((vectors[:, -kept:] * values[-kept:].clamp_min(0).sqrt()).T.float().contiguous())
    return found
