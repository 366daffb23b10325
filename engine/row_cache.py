"""Keys and value gradients of training facts, kept between steps: the unedited model gives the same ones every time."""

from collections.abc import Sequence

import torch
from torch import Tensor

from engine.model import EditableModel, EditModule
from engine.prompts import EncodedPrompt
from engine.trace import trace


class RowCache:
    """The rows [H, ∇G] of every edited module for each of `encoded`, traced the first time they are asked for.

    At most `limit_bytes` are kept; what does not fit is traced again.
    """

    def __init__(
        self, model: EditableModel, modules: Sequence[EditModule], encoded: Sequence[EncodedPrompt], limit_bytes: int
    ):
        self.model, self.modules, self.encoded = model, modules, encoded
        self.room = limit_bytes
        self._kept: dict[tuple[str, int], list[Tensor]] = {}

    def __call__(self, members: Sequence[int], scope: str) -> list[Tensor]:
        """Rows (T, D_h + D_g) float32 of every module, facts in the order of `members`. Raises NonFiniteError."""
        fresh: dict[int, list[Tensor]] = {}
        missing = [index for index in members if (scope, index) not in self._kept]
        for chunk in trace(self.model, self.modules, self.encoded, scope, missing) if missing else ():
            features = [torch.cat(pair, dim=1) for pair in zip(chunk.keys, chunk.gradients)]
            for index in chunk.owner.unique().tolist():
                at = (chunk.owner == index).nonzero().flatten()
                fresh[index] = [rows.index_select(0, at.to(rows.device)) for rows in features]
                size = sum(rows.nbytes for rows in fresh[index])
                if size <= self.room:
                    self.room -= size
                    self._kept[scope, index] = fresh[index]
        facts = [fresh[index] if index in fresh else self._kept[scope, index] for index in members]
        return [torch.cat(rows) for rows in zip(*facts)]
