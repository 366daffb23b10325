"""The baselines' own settings of each model, in one table. A setting left at 0, "" or "auto" takes its value from here.

7B values are the reference implementations'; layers are given with the depth they were chosen for, and other models
take the same relative depth.
"""

from dataclasses import fields, replace
from typing import Any

from engine.model import EMBEDDED, EditableModel

_Z = {"target_steps": 25, "target_rate": 0.5, "target_kl": 0.0625}
_GPTJ = {"target_decay": 0.5, "target_clamp": 0.75}
_LLAMA = {"target_decay": 1e-3, "target_clamp": 4.0}

_LLAMA_ROW: dict[str, dict[str, Any]] = {
    "memit": _Z | _LLAMA | {"layers": "4-8 of 32", "covariance_weight": 15000.0},
    "pmet": {
        "layers": "4-8 of 32",
        "target_steps": 20,
        "target_rate": 0.5,
        "target_kl": 0.0625,
        "target_decay": 0.5,
        "target_clamp": 1.0,
        "covariance_weight": 6000.0,
    },
    "emmet": _Z | _LLAMA | {"layers": "5 of 32", "ridge": 0.1},
    "alphaedit": _Z | _LLAMA | {"layers": "4-8 of 32", "null_threshold": 0.02, "ridge": 10.0},
}

# A model's name or its family → method → setting → value. Families that are not here take LLaMA's.
METHOD_SETTINGS: dict[str, dict[str, dict[str, Any]]] = {
    EMBEDDED: {
        # kᵀ(λC)⁻¹k is about D_h/λ: for the same share of the residual λ shrinks as D_h does, from 11008 to 1536.
        "memit": _LLAMA_ROW["memit"] | {"covariance_weight": 2000.0},
        "pmet": _LLAMA_ROW["pmet"] | {"covariance_weight": 800.0},
        "emmet": _LLAMA_ROW["emmet"],
        "alphaedit": _LLAMA_ROW["alphaedit"],
    },
    "gptj": {
        "memit": _Z | _GPTJ | {"layers": "3-8 of 28", "covariance_weight": 15000.0},
        "pmet": _GPTJ
        | {"layers": "3-8 of 28", "target_steps": 30, "target_rate": 0.2, "target_kl": 1.0}
        | {"covariance_weight": 6000.0},
        "emmet": _Z | _GPTJ | {"layers": "5 of 28", "ridge": 0.1},
        "alphaedit": _Z | _GPTJ | {"layers": "3-8 of 28", "null_threshold": 0.02, "ridge": 10.0},
    },
    "llama": _LLAMA_ROW,
    "mistral": _LLAMA_ROW,
}


def with_table(model: EditableModel, method: str, settings):
    """`settings`, a dataclass, with 0, "" and "auto" replaced by the table's value for this model, where it has one."""
    rows = METHOD_SETTINGS.get(model.name) or METHOD_SETTINGS.get(model.family) or METHOD_SETTINGS["llama"]
    values = rows[method]
    left = {item.name for item in fields(settings) if getattr(settings, item.name) in (0, "", "auto")}
    return replace(settings, **{name: value for name, value in values.items() if name in left})
