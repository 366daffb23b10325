"""What an edit is: a weight shift for each edited module, kept apart from the model.

It knows nothing of how the shift was computed; `EditableModel.edited` puts it to use.
"""

import json
import math
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from engine.errors import CheckpointError, NonFiniteError

FORMAT = "agrade-studio delta 1"


@dataclass(frozen=True)
class WeightDelta:
    """Δθ of every edited module, (D_h, D_g) float32 on the CPU or the model's device, by module name.

    `model_sha256` binds it to the weights it shifts; `info` is what a reader of the file wants to know.
    Raises NonFiniteError when a shift holds NaN or infinity, or its norm exceeds float32.
    """

    shifts: dict[str, Tensor]
    model_sha256: str
    method: str
    info: dict = field(default_factory=dict)

    def __post_init__(self):
        for name, norm in self.norms.items():
            if not math.isfinite(norm):
                raise NonFiniteError(
                    f"The weight shift of {name} is not finite, so nothing was edited. "
                    "Try a smaller step size or fewer facts."
                )

    @cached_property
    def norms(self) -> dict[str, float]:
        """‖Δθ‖, the Frobenius norm, of each module."""
        return {name: float(torch.linalg.vector_norm(shift)) for name, shift in self.shifts.items()}

    @property
    def norm(self) -> float:
        """‖Δθ‖ over all modules together."""
        return math.hypot(*self.norms.values())

    def plus(self, shifts: Mapping[str, Tensor]) -> "WeightDelta":
        """This delta with further shifts (D_h, D_g) of the same modules added."""
        return replace(self, shifts={name: shift + shifts[name] for name, shift in self.shifts.items()})

    def save(self, stem: Path) -> tuple[Path, Path]:
        """Write `stem`.safetensors and the card `stem`.json; returns both paths."""
        tensors, card = stem.with_name(stem.name + ".safetensors"), stem.with_name(stem.name + ".json")
        save_file({name: shift.cpu().contiguous() for name, shift in self.shifts.items()}, tensors)
        body = {
            "format": FORMAT,
            "layout": "each tensor is (D_h, D_g): add its transpose to an nn.Linear weight, itself to a Conv1D weight",
            "method": self.method,
            "model_sha256": self.model_sha256,
            "norms": self.norms,
            "info": self.info,
        }
        card.write_text(json.dumps(body, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
        shutil.copymode(card, tensors)  # safetensors makes it its owner's alone to read
        return tensors, card

    @classmethod
    def load(cls, stem: Path) -> "WeightDelta":
        """Read what `save` wrote; `stem` may also be either file. Raises CheckpointError."""
        if stem.suffix in (".safetensors", ".json"):
            stem = stem.with_suffix("")
        tensors, card = stem.with_name(stem.name + ".safetensors"), stem.with_name(stem.name + ".json")
        try:
            body = json.loads(card.read_text(encoding="utf-8"))
            if not isinstance(body, dict) or body.get("format") != FORMAT:
                raise CheckpointError(f"{card} is not the card of a delta that this version can read.")
            shifts, names = load_file(tensors), (body["model_sha256"], body["method"], body["info"])
        except (OSError, UnicodeDecodeError, json.JSONDecodeError, KeyError, SafetensorError) as error:
            raise CheckpointError(f"{stem} is not a delta that this studio wrote: {error}") from error
        return cls(shifts, *names)
