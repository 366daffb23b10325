"""What an editor hands over of an edit: a seeded sample of its token rows as they stream by, and its sums at the end.

Without a recorder an editor does nothing more.

    recorder = Recorder(path, rows=400)
    editor.edit(model, facts, progress, recorder)      # calls recorder.add(…) for each chunk, recorder.finish(…) last
    recorder.write(model)                               # → EditRecord, now or when the result has been shown

Held at most: `LIMIT_BYTES`, one half for the token rows while the edit streams, the other for the matrices' rows in
`write`, which also needs HᵀG and Δθ of one module at a time, before and after Eq. 4. From `finish` to `write` the
edit's sums are held too, `held_bytes` in all: whoever waits in between first looks at `LIMIT_BYTES`.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError
from torch import Tensor

from engine.edit_record import EditRecord, RecordCard, tensor_name, write_record
from engine.edit_state import EditState, module_matrices
from engine.errors import EditingError
from engine.model import EditableModel, EditModule
from engine.progress import Progress, silent
from engine.statistics import remove_rowwise

LIMIT_BYTES = 256_000_000
ROWS = 400
# Of a token row: H and H̃, and ∇G, ∇G̃, G before and after Eq. 4, P.
WIDE, NARROW = 2, 5
STAGE = "Keeping what the edit computed"


class Recorder:
    """Keeps a sample of at most `rows` token rows of one edit, then writes `path`.

    A row's place in the sample depends on the seed, its fact and its place in it alone, so that neither chunks nor
    their order matter.
    """

    def __init__(self, path: Path, rows: int = ROWS, seed: int = 0):
        if rows < 2:
            raise EditingError(f"{rows} rows are too few to be looked into: keep 2 or more, or none at all.")
        self.path, self.rows, self.seed = path, rows, seed
        self.state: EditState | None = None
        self._seen = self._fact_count = 0
        self._draws = self._facts = self._places = np.empty(0)
        self._keys: list[Tensor] = []
        self._gradients: list[Tensor] = []

    def add(self, owner: Tensor, keys: Sequence[Tensor], gradients: Sequence[Tensor]) -> None:
        """Rows H (T, D_h) and ∇G (T, D_g) of every module; owner (T,): each row's fact, all rows of a fact together."""
        if not self._keys:
            self._make_room(keys, gradients)
        facts = owner.cpu().numpy()
        places, draws = self._draw(facts)
        self._seen += len(facts)
        self._fact_count += len(np.unique(facts))
        room = len(self._draws)
        chosen = np.argsort(np.concatenate([self._draws, draws]), kind="stable")[:room]
        entering = np.sort(chosen[chosen >= room] - room)
        free = np.setdiff1d(np.arange(room), chosen)
        self._facts[free], self._places[free], self._draws[free] = facts[entering], places[entering], draws[entering]
        for kept, rows in zip((*self._keys, *self._gradients), (*keys, *gradients)):
            kept[torch.from_numpy(free)] = rows[torch.from_numpy(entering).to(rows.device)].to(kept)

    def finish(self, state: EditState) -> None:
        """The edit is solved. `write` makes the record of it and lets go of the sums."""
        self.state = state

    @property
    def row_bytes(self) -> int:
        """Bytes of the token rows that are held, in the memory of the CPU."""
        return int(np.isfinite(self._draws).sum()) * sum(4 * rows.shape[1] for rows in (*self._keys, *self._gradients))

    @property
    def held_bytes(self) -> int:
        """Bytes held until `write`: token rows, and of a finished edit its sums; Δθ is the edit's own."""
        return self.row_bytes + (self.state.sums.held_bytes if self.state else 0)

    def write(self, model: EditableModel, progress: Progress = silent) -> EditRecord:
        """The record on disk. Raises EditingError when the editor handed nothing over."""
        state, self.state = self.state, None
        if state is None:
            raise EditingError("This method keeps nothing to be looked into.")
        kept = np.flatnonzero(np.isfinite(self._draws))
        order = kept[np.lexsort((self._places[kept], self._facts[kept]))]
        units, numbers = [], []
        with torch.no_grad():
            matrices = self._token_rows(state, order)
            for l, module in enumerate(state.modules):
                progress(STAGE, l, len(state.modules))
                units.append(self._draw_units(module, state))
                own = module_matrices(state, l)
                matrices |= {
                    tensor_name(name, l): rows.float().cpu().numpy() for name, rows in own.rows(units[l]).items()
                }
                numbers.append(own.numbers(float(torch.linalg.vector_norm(model.weight(module).float()))))
        card = RecordCard(
            modules=tuple(state.modules),
            method=state.method,
            model=model.name,
            model_sha256=model.sha256,
            projection=state.sums.projection,
            scope=state.scope,
            seed=self.seed,
            rows=self._seen,
            fact_count=self._fact_count,
            units=tuple(tuple(own.tolist()) for own in units),
            unchanged=tuple(l for l in range(len(units)) if state.is_unchanged(l)),
            numbers=tuple(numbers),
            notes=tuple(state.solution.notes),
            **self._labels(state, order, model),
        )
        progress(STAGE, len(state.modules), len(state.modules))  # a cancel is heeded before there is a file
        write_record(self.path, card, matrices)
        return EditRecord(self.path)

    def try_write(self, model: EditableModel, progress: Progress = silent) -> list[str]:
        """`write`; a disk that is full costs the record alone, and is the note returned."""
        try:
            self.write(model, progress)
        except (OSError, SafetensorError) as error:
            return [f"What was computed could not be kept at {self.path} for the Projections tab: {error}."]
        return []

    def _make_room(self, keys: Sequence[Tensor], gradients: Sequence[Tensor]) -> None:
        row_bytes = 4 * sum(WIDE * h.shape[1] + NARROW * g.shape[1] for h, g in zip(keys, gradients))
        room = max(2, min(self.rows, LIMIT_BYTES // 2 // row_bytes))
        self._draws = np.full(room, np.inf)  # a free place draws the worst
        self._facts, self._places = np.zeros(room, dtype=np.int64), np.zeros(room, dtype=np.int64)
        self._keys = [torch.empty(room, rows.shape[1]) for rows in keys]
        self._gradients = [torch.empty(room, rows.shape[1]) for rows in gradients]

    def _draw(self, owner: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Each row's place among its fact's rows, and its draw in [0, 1): the rows of the least ones are kept."""
        places, draws = np.empty(len(owner), dtype=np.int64), np.empty(len(owner))
        for fact, start, count in zip(*np.unique(owner, return_index=True, return_counts=True)):
            places[start : start + count] = np.arange(count)
            draws[start : start + count] = np.random.default_rng((self.seed, int(fact))).random(count)
        return places, draws

    def _draw_units(self, module: EditModule, state: EditState) -> np.ndarray:
        """The hidden units of a module whose rows are kept, in rising order; a layer's are always the same ones."""
        row_bytes = 4 * sum(one.d_h + 4 * one.d_g for one in state.modules)
        count = min(module.d_h, max(2, min(self.rows, LIMIT_BYTES // 2 // row_bytes)))
        return np.sort(np.random.default_rng((self.seed, module.layer)).choice(module.d_h, count, replace=False))

    def _labels(self, state: EditState, order: np.ndarray, model: EditableModel) -> dict[str, tuple]:
        """What the sampled rows are: fact, position, the token there and the one after it."""
        facts, places = self._facts[order].tolist(), self._places[order].tolist()
        positions = [state.encoded[fact].rows(state.scope)[place] for fact, place in zip(facts, places)]
        texts = [(*item.ids, item.answer[-1]) for item in state.encoded]
        decode = model.tokenizer.decode
        prompts = [(fact, state.encoded[fact]) for fact in sorted(set(facts))]
        return {
            "facts": tuple(facts),
            "positions": tuple(positions),
            "tokens": tuple(decode([texts[fact][at]]) for fact, at in zip(facts, positions)),
            "predicted": tuple(decode([texts[fact][at + 1]]) for fact, at in zip(facts, positions)),
            "prompts": tuple(
                (fact, decode(item.ids[: item.start + 1]), decode(item.answer).strip()) for fact, item in prompts
            ),
        }

    def _token_rows(self, state: EditState, order: np.ndarray) -> dict[str, np.ndarray]:
        """All token matrices of the sample; G after Eq. 4 is mixed as the sums were."""
        found: dict[str, Tensor] = {}
        for l in range(len(state.modules)):
            device = state.lam.device
            keys, gradients = self._keys[l][order].to(device), self._gradients[l][order].to(device)
            found |= {tensor_name("H", l): keys, tensor_name("grad", l): gradients}
            found |= {tensor_name(name, l): rows for name, rows in state.follow(l, keys, gradients).items()}
        before = [found[tensor_name("G_before", l)] for l in range(len(state.modules))]
        for l, own in enumerate(before):
            if state.sums.projection == "per_token":
                after = remove_rowwise(own, before[l - 1]) if state.sums.follows(l) else own
            else:
                shares = state.solution.mixture[l]
                used = [k for k in range(len(before)) if shares[k]]
                after = sum(float(shares[k]) * before[k] for k in used)
            found[tensor_name("G", l)] = after
            if state.is_unchanged(l):
                del found[tensor_name("G_before", l)]
        return {name: rows.float().cpu().numpy() for name, rows in found.items()}
