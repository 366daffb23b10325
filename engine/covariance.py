"""C = E[kkᵀ] of the keys at a module over text: measured once for a model, module and text, then kept in the cache.

The text is the person's own file, or is drawn from the model itself and kept beside the sums, for other modules. The
sum is kept part by part, so that a cancelled measurement goes on where it stopped, to the same bits.
"""

import hashlib
import os
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from engine.embedded import cache_path
from engine.errors import EditingError, FactError, ModelError, NonFiniteError
from engine.forward import states_at
from engine.model import EditableModel, EditModule
from engine.progress import Progress, silent
from engine.prompts import EncodedPrompt, collate
from engine.sampling import sample
from engine.work import FLOAT32_BYTES, Work

FORMAT = "agrade-studio covariance 1"
STAGE = "Covariance"
ROW_TOKENS = 128
PART_ROWS = 32
SAVE_SECONDS = 60  # a sum can be hundreds of megabytes


@dataclass(frozen=True)
class Text:
    """At most `tokens` tokens in rows: those of the file at `path`, or, where that is "", drawn from the model itself.

    A row begins with the token that the tokenizer puts before every text, where it does, as each prompt does; before
    a file's own tokens it is one more. Raises FactError when the file cannot be read or is empty.
    """

    model: EditableModel
    path: str
    tokens: int
    seed: int

    @property
    def width(self) -> int:
        return min(ROW_TOKENS, self.model.context)

    @cached_property
    def _file_rows(self) -> list[Tensor]:
        try:
            text = Path(self.path).expanduser().read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise FactError(
                f"The covariance text {self.path} could not be read: {error}. Name a text file in UTF-8, or none: "
                "the text is then drawn from the model itself."
            ) from error
        ids = self.model.tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"][: self.tokens]
        if not ids:
            raise FactError(f"The covariance text {self.path} is empty: name a file with text in it.")
        opening = torch.tensor(_opening(self.model), dtype=torch.long)  # as every prompt has it
        return [torch.cat((opening, row)) for row in torch.tensor(ids).split(self.width - len(opening))]

    @cached_property
    def lengths(self) -> list[int]:
        """Tokens of each row."""
        if self.path:
            return [len(row) for row in self._file_rows]
        return [self.width] * -(-self.tokens // self.width)

    @property
    def parts(self) -> int:
        return -(-len(self.lengths) // PART_ROWS)

    @cached_property
    def sha256(self) -> str:
        """Of the very tokens, or of what decides them, and of the dtype the keys are computed in."""
        whole = hashlib.sha256(f"{FORMAT} {self.width} {self.model.dtype} ".encode())
        if self.path:
            whole.update(torch.cat(self._file_rows).numpy().tobytes())
        else:
            whole.update(f"drawn {self.tokens} {self.seed}".encode())
        return whole.hexdigest()

    @property
    def folder(self) -> Path:
        """Where the cache keeps what was drawn and measured."""
        return cache_path() / "covariance" / self.model.sha256[:16] / self.sha256[:16]

    def part(self, number: int, progress: Progress = silent) -> list[Tensor]:
        """The rows of one part; a drawn one is drawn here, each part from a generator of its own, and kept."""
        rows = slice(number * PART_ROWS, (number + 1) * PART_ROWS)
        if self.path:
            return self._file_rows[rows]
        with suppress(OSError, SafetensorError, KeyError):  # not there, or damaged: drawn anew
            return list(load_file(self._kept(number))["tokens"])
        drawn = self._draw(number, rows, progress)
        _keep(self._kept(number), {"tokens": drawn}, {"text": self.about})
        return list(drawn)

    def undrawn(self, first: int) -> int:
        """How many tokens of the parts from `first` on are still to be drawn."""
        if self.path:
            return 0
        missing = [number for number in range(first, self.parts) if not self._kept(number).exists()]
        return sum(sum(self.lengths[number * PART_ROWS : (number + 1) * PART_ROWS]) for number in missing)

    @property
    def about(self) -> str:
        """What the text is, for people."""
        return self.path or f"drawn from the model, seed {self.seed}"

    def _kept(self, number: int) -> Path:
        return self.folder / f"text-{number}.safetensors"

    def _draw(self, number: int, rows: slice, progress: Progress) -> Tensor:
        done, total, count = sum(self.lengths[: rows.start]), sum(self.lengths), len(self.lengths[rows])
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + number)
        first = _ordinary_tokens(self.model)
        starts = first[torch.randint(len(first), (count, 1), generator=generator)]
        opening = _opening(self.model)
        starts = torch.cat((torch.tensor([opening] * count, dtype=torch.long).reshape(count, -1), starts), dim=1)
        new = self.width - starts.shape[1]
        return sample(
            self.model, starts, new, generator, each=lambda tokens: progress(STAGE, done + count * tokens // 2, total)
        )


def _ordinary_tokens(model: EditableModel) -> Tensor:
    special = set(model.tokenizer.all_special_ids)
    known = range(min(len(model.tokenizer), model.config.vocab_size))
    return torch.tensor([token for token in known if token not in special])


def _opening(model: EditableModel) -> list[int]:
    """The token that the tokenizer puts before every text, where it does."""
    first = model.tokenizer("a")["input_ids"][0]
    return [first] if first in model.tokenizer.all_special_ids else []


class _Sum:
    """Σ kkᵀ of one module over the first `parts` parts, as kept in one file: `value`, (D_h, D_h) float32, once taken."""

    def __init__(self, model: EditableModel, module: EditModule, text: Text):
        self.module = module
        self.file = text.folder / f"{module.name}.safetensors"
        self.about = {"model": model.name, "text": text.about}
        self.identity = {
            "format": FORMAT, "model_sha256": model.sha256, "module": module.name, "text_sha256": text.sha256
        }  # fmt: skip
        self._read(whole=False)

    def take(self) -> None:
        """Have the sum in memory too. Another process may replace the file, so it is of the same one as its count."""
        self._read(whole=True)

    def _read(self, whole: bool) -> None:
        self.parts, self.tokens, self.value = self._kept(whole)
        self.kept_parts = self.parts

    def _kept(self, whole: bool) -> tuple[int, int, Tensor | None]:
        """Parts, tokens and, where it is wanted, the sum in the file; nothing where it is not there, or damaged."""
        with suppress(OSError, SafetensorError, KeyError, ValueError):
            with safe_open(self.file, "pt") as kept:
                card = kept.metadata() or {}
                if self.identity.items() <= card.items():
                    return int(card["parts"]), int(card["tokens"]), kept.get_tensor("sum") if whole else None
        return 0, 0, torch.zeros(self.module.d_h, self.module.d_h) if whole else None

    def add(self, keys: Tensor) -> None:
        """Take in (T, D_h) keys, float32."""
        self.value = self.value.to(keys.device).addmm_(keys.T, keys)
        self.tokens += len(keys)

    def save(self) -> None:
        """Write what is new, unless another process has kept as much meanwhile.

        Raises NonFiniteError for a sum that is not finite, ModelError for a full disk.
        """
        if self.parts == self.kept_parts or self.parts <= self._kept(whole=False)[0]:
            return
        if not torch.isfinite(self.value).all():
            raise NonFiniteError(
                f"The keys of {self.module.name} overflow on the covariance text. Load the model in float32. "
                "Nothing was edited."
            )
        card = self.identity | self.about | {"parts": str(self.parts), "tokens": str(self.tokens)}
        _keep(self.file, {"sum": self.value.cpu()}, card)
        self.kept_parts = self.parts


def _keep(file: Path, tensors: dict[str, Tensor], card: dict[str, str]) -> None:
    """Write a file of the cache, whole or not at all. Raises ModelError where it cannot be written."""
    work = file.with_name(f"{file.name}.{os.getpid()}")
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        save_file(tensors, work, card)
        os.replace(work, file)
    except (OSError, SafetensorError) as error:
        raise ModelError(
            f"The covariance could not be kept in {file.parent}: {error}. Make room there, or name another "
            "folder in the environment variable AGRADE_STUDIO_CACHE."
        ) from error


def measuring(model: EditableModel, modules: Sequence[EditModule], text: Text) -> Work:
    """What `measure` runs: each token through the layers up to the last module's, one to be drawn first through all."""
    first = min(_Sum(model, module, text).parts for module in modules)
    tokens, drawn = sum(text.lengths[first * PART_ROWS :]), text.undrawn(first)
    if not tokens:
        return Work()
    last = max(module.layer for module in modules)
    rows = PART_ROWS * text.width * sum(module.d_h for module in modules)
    return Work(
        forward=tokens * (last + 1) + drawn * model.layer_count,
        steps=-(-drawn // (PART_ROWS * text.width)) * text.width,
        operations=2 * tokens * sum(module.d_h**2 for module in modules),
        bytes=FLOAT32_BYTES * (rows + sum(module.d_h**2 for module in modules)),
    )


def measure(model: EditableModel, modules: Sequence[EditModule], text: Text, progress: Progress = silent) -> None:
    """Measure C of these modules over the text, whatever of it is not in the cache yet, in one pass for all of them.

    `progress` is called in tokens and may raise Cancelled: the parts done so far are kept.
    Raises EditingError when the text is shorter than the keys are wide, for then C has no inverse; NonFiniteError
    when the model overflows, ModelError when the cache cannot be written.
    """
    wide = max(module.d_h for module in modules)
    total = sum(text.lengths)
    if total < wide:
        raise EditingError(
            f"The covariance of keys {wide} wide needs a text of at least as many tokens; this one has {total}. "
            "Raise covariance_tokens, or name a longer text."
        )
    sums = [one for module in modules if (one := _Sum(model, module, text)).parts < text.parts]
    if not sums:
        return
    for one in sums:
        one.take()
    first = min(one.parts for one in sums)
    saved = time.monotonic()
    progress(STAGE, sum(text.lengths[: first * PART_ROWS]), total)
    try:
        for number in range(first, text.parts):
            _add_part(model, [one for one in sums if one.parts == number], number, text, progress)
            if time.monotonic() - saved > SAVE_SECONDS:
                for one in sums:
                    one.save()
                saved = time.monotonic()
    finally:
        for one in sums:
            one.save()


def _add_part(model: EditableModel, sums: Sequence[_Sum], number: int, text: Text, progress: Progress) -> None:
    """All rows of the part or none: what is added last is what is counted."""
    rows = text.part(number, progress)
    prompts = [EncodedPrompt(tuple(row.tolist()), (0,)) for row in rows]
    at_once = max(1, model.placement.tokens_per_chunk // text.width)
    places = [model.lm.get_submodule(one.module.name) for one in sums]
    keys: list[list[Tensor]] = [[] for _ in sums]
    done, total = sum(text.lengths[: number * PART_ROWS]), sum(text.lengths)
    share = 1 if text.path else 2  # drawing the part was its first half
    count, seen = sum(map(len, rows)), 0
    for chunk in torch.arange(len(prompts)).split(at_once):
        batch = collate(prompts, chunk.tolist(), model.device)
        for gathered, (entered, _) in zip(keys, states_at(model, batch, places)):
            gathered.append(entered.index_select(0, batch.tokens.to(entered.device)).float())
        seen += sum(batch.lengths)
        progress(STAGE, done + (share - 1) * count // share + seen // share, total)
    for one, gathered in zip(sums, keys):
        one.add(torch.cat(gathered))
        one.parts = number + 1


def read(model: EditableModel, module: EditModule, text: Text) -> Tensor:
    """C (D_h, D_h) float64 of a module that was measured: E[kkᵀ] over the text's tokens.

    Float64, for λC + KKᵀ and C⁻¹ span more decades than a float32 factor keeps. Raises ModelError where it has gone.
    """
    kept = _Sum(model, module, text)
    kept.take()
    if kept.parts < text.parts:
        raise ModelError(f"The covariance of {module.name} is no longer whole in {text.folder}. Edit again: it is measured anew.")
    return kept.value.double() / kept.tokens
