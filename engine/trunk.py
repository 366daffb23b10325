"""The frozen trunk's output of many prompts, kept between passes (training sees each prompt many times)."""

from collections.abc import Sequence

import torch
from torch import Tensor

from engine.forward import trunk
from engine.model import EditableModel
from engine.prompts import EncodedPrompt, TokenBatch, collate


class TrunkCache:
    """Hidden states that enter `layer`, for each of the encoded prompts, computed the first time they are asked for.

    At most `limit_bytes` are kept; what does not fit is computed again. All lies in one block: thousands of small ones
    would lie between the large tensors of every pass and leave holes there.
    """

    def __init__(self, model: EditableModel, layer: int, encoded: Sequence[EncodedPrompt], limit_bytes: int):
        self.model, self.layer, self.encoded = model, layer, encoded
        self.limit_bytes = limit_bytes
        self._block: Tensor | None = None  # (tokens, D), filled from its beginning
        self._first: dict[int, int] = {}  # of each kept prompt, its first row there
        self._filled = 0

    def __call__(self, batch: TokenBatch) -> Tensor:
        """(B, S, D) for the prompts of `batch`, zero at padding."""
        missing = [index for index in batch.members if index not in self._first]
        fresh: dict[int, Tensor] = {}
        if missing:
            part = batch if len(missing) == len(batch.members) else collate(self.encoded, missing, batch.ids.device)
            hidden = trunk(self.model, part, self.layer)
            for row, index in enumerate(part.members):
                fresh[index] = hidden[row, : part.lengths[row]]
                self._keep(index, fresh[index])
        rows = [fresh[index] if index in fresh else self._kept(index) for index in batch.members]
        return torch.nn.utils.rnn.pad_sequence(rows, batch_first=True)

    def _keep(self, index: int, states: Tensor) -> None:
        if self._block is None:
            width = states.shape[1]
            tokens = min(self.limit_bytes // (width * states.element_size()), sum(len(item.ids) for item in self.encoded))
            self._block = states.new_empty(tokens, width)
        last = self._filled + len(states)
        if last <= len(self._block):
            self._block[self._filled : last] = states
            self._first[index], self._filled = self._filled, last

    def _kept(self, index: int) -> Tensor:
        first = self._first[index]
        return self._block[first : first + len(self.encoded[index].ids)]
