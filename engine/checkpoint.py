"""A trained hypernetwork on disk: `hypernet.safetensors` and its `card.json` in one folder.

The card says for which weights it was trained (model hash), the modules, data, settings, steps, scores, time.
Files are read as data only: safetensors and JSON, never pickle.
"""

import itertools
import json
import math
import shutil
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file

from engine.errors import CheckpointError
from engine.hypernet import HyperNet
from engine.model import EditModule

FORMAT = "agrade-studio hypernetwork 1"
CHECKPOINT_FILES = ("hypernet.safetensors", "card.json")
CARD_FIELDS = ("model", "model_sha256", "modules", "settings")
SETTINGS = ("method", "projection", "scope")  # those without which an edit cannot follow the training
SHIPPED = Path(__file__).resolve().parent.parent / "assets" / "hypernets"


@dataclass
class Checkpoint:
    """A hypernetwork with its card. `name` is its folder's name."""

    name: str
    hypernet: HyperNet
    card: dict = field(default_factory=dict)

    def step_scale(self, facts: int) -> float:
        """How long the step of an edit of so many facts should be, in lengths of the trained one: the card's
        `step_scales`, [[facts, scale], …] as they were found on validation facts, and straight between them in the
        logarithm of the facts.

        A hypernetwork learns its step from the batches of its training; of fewer facts, each needs more of it.
        """
        sizes, scales = zip(*self.card.get("step_scales") or [(1, 1.0)])
        return float(np.interp(np.log(facts), np.log(sizes), scales))

    def save(self, folder: Path, dtype: torch.dtype = torch.bfloat16) -> Path:
        """Write the folder; what lay there stays whole until all of it is written. Large matrices are stored in `dtype`,
        vectors in float32 (they are few and fragile)."""
        folder.mkdir(parents=True, exist_ok=True)
        state = {
            name: (tensor.to(dtype) if tensor.ndim == 2 and min(tensor.shape) >= 32 else tensor).cpu().contiguous()
            for name, tensor in self.hypernet.state_dict().items()
        }
        card = {
            "format": FORMAT,
            **self.card,
            "modules": [asdict(module) for module in self.hypernet.modules_edited],
        }
        weights, told = parts = [folder / (name + ".part") for name in CHECKPOINT_FILES]
        try:
            save_file(state, weights)
            told.write_text(json.dumps(card, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
            shutil.copymode(told, weights)  # else its owner's alone to read
            for part, name in zip(parts, CHECKPOINT_FILES):
                part.replace(folder / name)
        finally:
            for part in parts:
                part.unlink(missing_ok=True)
        return folder


def read_card(folder: Path) -> dict:
    """The card alone. Raises CheckpointError when it is missing, damaged or not one of ours."""
    try:
        card = json.loads((folder / "card.json").read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        why = getattr(error, "strerror", None) or error
        raise CheckpointError(
            f"{folder} holds no readable card.json of a hypernetwork: {why}. Name a folder that `train` wrote, such as "
            "its best/."
        ) from error
    if not isinstance(card, dict) or card.get("format") != FORMAT:
        raise CheckpointError(f"{folder / 'card.json'} is not the card of a hypernetwork this version can read.")
    missing = [name for name in CARD_FIELDS if name not in card]
    if missing:
        raise CheckpointError(f"{folder / 'card.json'} is damaged: it lacks {', '.join(missing)}.")
    settings = card["settings"]
    missing = [name for name in SETTINGS if not isinstance(settings, dict) or name not in settings]
    if missing:
        raise CheckpointError(f"{folder / 'card.json'} is damaged: its settings lack {', '.join(missing)}.")
    if not _are_step_scales(card.get("step_scales", [])):
        raise CheckpointError(
            f"{folder / 'card.json'} is damaged: step_scales has to be [[facts, scale], …], the facts from 1 on and rising."
        )
    return card


def _are_step_scales(pairs: Any) -> bool:
    try:
        sizes = [0, *(size for size, _ in pairs)]
        return all(a < b for a, b in itertools.pairwise(sizes)) and all(0 < scale < math.inf for _, scale in pairs)
    except (TypeError, ValueError):
        return False


def load_checkpoint(folder: Path | str, device: torch.device | str = "cpu") -> Checkpoint:
    """The checkpoint in `folder`, in float32 on `device`. Raises CheckpointError."""
    folder = Path(folder)
    card = read_card(folder)
    try:
        modules = [EditModule(**module) for module in card["modules"]]
        state = load_file(folder / "hypernet.safetensors")
        rank = next(tensor.shape[1] for name, tensor in state.items() if name.endswith(".A"))
        hypernet = HyperNet(modules, rank, directions=len(state.get("old_keys_0", ())))
        hypernet.load_state_dict({name: tensor.float() for name, tensor in state.items()})
    except (OSError, ValueError, KeyError, TypeError, StopIteration, RuntimeError, SafetensorError) as error:
        raise CheckpointError(f"The hypernetwork in {folder} is damaged: {error}") from error
    return Checkpoint(folder.name, hypernet.eval().requires_grad_(False).to(device), card)


def outline(folder: Path | str) -> Checkpoint:
    """The checkpoint without its weights: the hypernetwork, with its modules and as many directions of old keys, is on
    the meta device. Raises CheckpointError for the card; what is wrong with the weights is said when they are loaded."""
    folder = Path(folder)
    card, directions = read_card(folder), 0
    with suppress(OSError, SafetensorError), safe_open(folder / "hypernet.safetensors", "pt") as weights:
        directions = weights.get_slice("old_keys_0").get_shape()[0] if "old_keys_0" in weights.keys() else 0
    try:
        with torch.device("meta"):
            modules = [EditModule(**module) for module in card["modules"]]
            hypernet = HyperNet(modules, rank=1, directions=directions)
    except (TypeError, ValueError) as error:
        raise CheckpointError(f"{folder / 'card.json'} is damaged: {error}") from error
    return Checkpoint(folder.name, hypernet, card)


def find_checkpoints(model_sha256: str | None = None, folders: tuple[Path, ...] = ()) -> list[tuple[Path, dict]]:
    """(folder, card) of the shipped checkpoints and of those in `folders`, for one model if its hash is given.

    A folder that cannot be read is left out: one damaged card must not hide the others.
    """
    found = []
    for root in (SHIPPED, *folders):
        for path in sorted(root.glob("*/card.json")):
            try:
                card = read_card(path.parent)
            except CheckpointError:
                continue
            if model_sha256 in (None, card["model_sha256"]):
                found.append((path.parent, card))
    return found
