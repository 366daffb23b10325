"""What a finished edit leaves to be looked into: sampled rows of its matrices, sampled token rows, and their numbers.

One safetensors file of bounded size, written by `engine.recorder` and read matrix by matrix. Two families, which have
no space in common: *features*, one row a hidden unit of a module (M, HᵀG, Δθ), and *tokens*, one row an answer
position of a fact (H, ∇G, G and what lies between).
"""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, Literal

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from engine.errors import CheckpointError
from engine.geometry import ModuleNumbers
from engine.model import EditModule

FORMAT = "agrade-studio record 1"
Family = Literal["features", "tokens"]


@dataclass(frozen=True)
class Kind:
    """A matrix that can be looked into. space: what its columns are. quantity: before and after Eq. 4 share one."""

    title: str
    family: Family
    space: Literal["D_h", "D_g"]
    quantity: str


KINDS: dict[str, Kind] = {
    "M": Kind("M", "features", "D_h", "M"),
    "HtG_before": Kind("HᵀG before Eq. 4", "features", "D_g", "HᵀG"),
    "HtG": Kind("HᵀG", "features", "D_g", "HᵀG"),
    "shift_before": Kind("Δθ before Eq. 4", "features", "D_g", "Δθ"),
    "shift": Kind("Δθ", "features", "D_g", "Δθ"),
    "H": Kind("H", "tokens", "D_h", "H"),
    "H_tilde": Kind("H̃", "tokens", "D_h", "H̃"),
    "grad": Kind("∇G", "tokens", "D_g", "∇G"),
    "grad_tilde": Kind("∇G̃", "tokens", "D_g", "∇G̃"),
    "G_before": Kind("G before Eq. 4", "tokens", "D_g", "G"),
    "G": Kind("G", "tokens", "D_g", "G"),
    "P": Kind("P", "tokens", "D_g", "P"),
}
# Which matrix is which other one before Eq. 4.
BEFORE = {"HtG": "HtG_before", "shift": "shift_before", "G": "G_before"}


@dataclass(frozen=True)
class RecordCard:
    """What a record says of its edit; its matrices stay in the file.

    rows: token rows of the whole edit, of which `facts` (index in the batch), `positions` (index of the token in
    the prompt with its answer), `tokens` (the token there) and `predicted` (the one after it) name the sampled ones.
    prompts: (fact, prompt, target) of the facts among them. units: the sampled hidden units of each module.
    projection: the reading of Eq. 4. unchanged: modules, by their place, that Eq. 4 left as they were: before is after.
    numbers: of the full matrices, one a module.
    """

    modules: tuple[EditModule, ...]
    method: str
    model: str
    model_sha256: str
    projection: str
    scope: str
    seed: int
    rows: int
    fact_count: int
    units: tuple[tuple[int, ...], ...]
    facts: tuple[int, ...]
    positions: tuple[int, ...]
    tokens: tuple[str, ...]
    predicted: tuple[str, ...]
    prompts: tuple[tuple[int, str, str], ...]
    unchanged: tuple[int, ...]
    numbers: tuple[ModuleNumbers, ...]
    notes: tuple[str, ...] = ()


class EditRecord:
    """A record on disk. Raises CheckpointError when the file is missing, damaged or not a record."""

    def __init__(self, path: Path):
        self.path = path
        try:
            with safe_open(path, "np") as file:
                meta, self._names = file.metadata() or {}, frozenset(file.keys())
            if meta.get("format") != FORMAT:
                raise CheckpointError(f"{path} is not a record of an edit that this version can read.")
            self.card = _read_card(json.loads(meta["card"]))
        except FileNotFoundError as error:
            raise CheckpointError(
                f"What run kept to be looked into is no longer at {path}. Apply its facts again to have it anew."
            ) from error
        except (OSError, ValueError, KeyError, TypeError, SafetensorError) as error:
            if isinstance(error, CheckpointError):
                raise
            raise CheckpointError(f"{path} is damaged: {error}. Apply the facts of its run again.") from error

    def matrix(self, kind: str, module: int) -> np.ndarray:
        """Rows (n, D_h) or (n, D_g) float32 of one matrix: the units `card.units[module]`, or the sampled tokens.

        Where Eq. 4 left the module as it was, the matrix before it is the one after. Raises CheckpointError when
        the record has no such matrix.
        """
        after = next((name for name, before in BEFORE.items() if before == kind), None)
        if after is not None and module in self.card.unchanged:
            kind = after
        name = tensor_name(kind, module)
        if name not in self._names:
            raise CheckpointError(f"{self.path} keeps no {KINDS[kind].title} of module {module + 1}.")
        try:
            with safe_open(self.path, "np") as file:
                return file.get_tensor(name)
        except (OSError, SafetensorError) as error:
            raise CheckpointError(f"{self.path} can no longer be read: {error}") from error

    def kinds(self, family: Family) -> list[str]:
        """The matrices of a family that this record has for each of its modules, in the order of KINDS.

        Before Eq. 4 only where Eq. 4 changed something.
        """
        return [name for name, kind in KINDS.items() if kind.family == family and self._has(name)]

    def _has(self, kind: str) -> bool:
        modules = range(len(self.card.modules))
        if kind in BEFORE.values():
            changed = [module for module in modules if module not in self.card.unchanged]
            return bool(changed) and all(tensor_name(kind, module) in self._names for module in changed)
        return all(tensor_name(kind, module) in self._names for module in modules)


def tensor_name(kind: str, module: int) -> str:
    """A matrix's name in the file."""
    return f"{kind}.{module}"


def write_record(path: Path, card: RecordCard, matrices: Mapping[str, np.ndarray]) -> Path:
    """Write a record, whole or not at all; `matrices` by their `tensor_name`."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(path.name + ".part")
    body = json.dumps(asdict(card), ensure_ascii=False)
    try:
        save_file(
            {name: np.ascontiguousarray(rows) for name, rows in matrices.items()},
            partial,
            {"format": FORMAT, "card": body},
        )
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)
    return path


def _read_card(body: dict[str, Any]) -> RecordCard:
    known = {item.name for item in fields(RecordCard)}
    values = {name: tuple(value) if isinstance(value, list) else value for name, value in body.items() if name in known}
    values["modules"] = tuple(EditModule(**one) for one in body["modules"])
    for name in ("units", "prompts"):
        values[name] = tuple(tuple(one) for one in body[name])
    values["numbers"] = tuple(
        ModuleNumbers(**{name: tuple(value) if isinstance(value, list) else value for name, value in one.items()})
        for one in body["numbers"]
    )
    return RecordCard(**values)
