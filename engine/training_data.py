"""A training set as token sequences, with all that the unedited model makes of them kept between epochs."""

from collections.abc import Sequence

import torch
from torch import Tensor

from engine.delta import WeightDelta
from engine.errors import EditingError, FactError
from engine.facts import Fact
from engine.forward import final_hidden
from engine.model import EditableModel, EditModule
from engine.prompts import EncodedPrompt, TokenBatch, encode, encode_facts
from engine.row_cache import RowCache
from engine.trunk import TrunkCache

OUTER_PROMPTS = ("equivalent", "equivalent+edit")


class TrainingData:
    """The editing, equivalent and unrelated prompts of `facts`, encoded once.

    `equivalents_of[i]`, `unrelated_of[i]`: indices of fact i's prompts in `equivalents` and `unrelated`. With
    outer_prompts "equivalent+edit" an editing prompt counts among its equivalents. Unrelated prompts without an
    answer are left out: they have no answer position to compare. Of `cache_bytes` the trunk's outputs of the outer
    prompts and the unedited model's last states take what they need, the rows of the editing prompts the rest.
    """

    def __init__(
        self,
        model: EditableModel,
        facts: Sequence[Fact],
        modules: Sequence[EditModule],
        outer_prompts: str,
        cache_bytes: int,
        scope: str = "answer",
    ):
        if outer_prompts not in OUTER_PROMPTS:
            raise EditingError(f"Unknown outer_prompts {outer_prompts!r}: choose {' or '.join(OUTER_PROMPTS)}.")
        self.model, self.layer = model, modules[0].layer
        equivalents, unrelated = [], []
        self.equivalents_of: list[list[int]] = []
        self.unrelated_of: list[list[int]] = []
        for fact in facts:
            mine = [(prompt, fact.target) for prompt in fact.equivalent]
            if outer_prompts == "equivalent+edit" or not mine:
                mine.append((fact.prompt, fact.target))
            self.equivalents_of.append(list(range(len(equivalents), len(equivalents) + len(mine))))
            equivalents += mine
            others = [(prompt, answer) for prompt, answer in fact.unrelated if answer]
            self.unrelated_of.append(list(range(len(unrelated), len(unrelated) + len(others))))
            unrelated += others
        if not facts:
            raise FactError("The training set holds no facts: give a file with at least a few hundred.")
        self.edits = encode_facts(model, facts, scope, "Training set, ")
        self.equivalents = self._encode(equivalents, "equivalent")
        self.unrelated = self._encode(unrelated, "unrelated")
        sizes = [sum(len(item.ids) for item in part) for part in (self.equivalents, self.unrelated)]
        sizes.append(sum(len(item.answer) for item in self.unrelated))
        wanted = sum(sizes) * model.config.hidden_size * model.placement.weight_dtype.itemsize
        kept_bytes = min(cache_bytes, wanted)
        share = [kept_bytes * size // max(sum(sizes), 1) for size in sizes]
        self.equivalent_trunk = TrunkCache(model, self.layer, self.equivalents, share[0])
        self.unrelated_trunk = TrunkCache(model, self.layer, self.unrelated, share[1])
        self.edit_rows = RowCache(model, modules, self.edits, cache_bytes - kept_bytes)
        self._states: dict[int, Tensor] = {}
        self._room = share[2]

    def _encode(self, pairs: list[tuple[str, str]], kind: str) -> list[EncodedPrompt]:
        where = [f"Training set, {kind} prompt {index + 1}" for index in range(len(pairs))]
        return encode(self.model.tokenizer, pairs, self.model.context, where)

    def __len__(self) -> int:
        return len(self.edits)

    def rows(self, members: Sequence[int], scope: str, delta: WeightDelta | None = None) -> list[Tensor]:
        """Rows (T, D_h + D_g) float32 of every module with `delta` added, facts in the order of `members`.

        Those of the original weights are kept. Raises NonFiniteError.
        """
        if delta is None:
            return self.edit_rows(members, scope)
        with self.model.edited(delta):
            return RowCache(self.model, self.edit_rows.modules, self.edits, 0)(members, scope)

    def original_states(self, batch: TokenBatch, hidden: Tensor) -> Tensor:
        """The unedited model's last hidden states (T, D) at the answer positions of unrelated prompts.

        Kept as far as there is room; a batch of which one is missing is run as a whole.
        """
        if all(index in self._states for index in batch.members):
            return torch.cat([self._states[index] for index in batch.members])
        with torch.no_grad():
            states = final_hidden(self.model, batch, self.layer, hidden).flatten(0, 1)
        rows = states.index_select(0, batch.positions.to(states.device))
        counts = [len(self.unrelated[index].answer) for index in batch.members]
        for index, part in zip(batch.members, rows.split(counts)):
            if index not in self._states and part.nbytes <= self._room:
                self._room -= part.nbytes
                self._states[index] = part.clone()
        return rows
