"""The frozen trunk's output of many prompts, kept between passes (training sees each prompt many times)."""

from collections.abc import Sequence

import torch
from torch import Tensor

from engine.forward import trunk
from engine.model import EditableModel
from engine.prompts import EncodedPrompt, TokenBatch, collate


class TrunkCache:
    """Hidden states that enter `layer`, for each of the encoded prompts, computed the first time they are asked for.

    At most `limit_bytes` are kept; what does not fit is computed again.
    """

    def __init__(self, model: EditableModel, layer: int, encoded: Sequence[EncodedPrompt], limit_bytes: int):
        self.model, self.layer, self.encoded = model, layer, encoded
        self.room = limit_bytes
        self._kept: dict[int, Tensor] = {}

    def __call__(self, batch: TokenBatch) -> Tensor:
        """(B, S, D) for the prompts of `batch`, zero at padding."""
        missing = [index for index in batch.members if index not in self._kept]
        fresh: dict[int, Tensor] = {}
        if missing:
            part = batch if len(missing) == len(batch.members) else collate(self.encoded, missing, batch.ids.device)
            hidden = trunk(self.model, part, self.layer)
            for row, index in enumerate(part.members):
                fresh[index] = hidden[row, : part.lengths[row]]
                size = fresh[index].numel() * fresh[index].element_size()
                if size <= self.room:
                    self.room -= size
                    self._kept[index] = fresh[index].clone()
        rows = [fresh[index] if index in fresh else self._kept[index] for index in batch.members]
        return torch.nn.utils.rnn.pad_sequence(rows, batch_first=True)
