"""What each method is set to for each model, in one table: a setting left at 0 or empty takes its value from here.

7B values are the reference implementations'; the embedded model's were found on facts of its own. Layers are given with
the depth they were chosen for, and a model of another depth takes the same share of its own.
"""

from dataclasses import fields, replace
from typing import Any, TypeVar

from engine.embedded import EMBEDDED_WEIGHTS_SHA256
from engine.model import EMBEDDED, EditableModel

Settings = TypeVar("Settings")

ANY = "any model"

_TARGET = {"target_steps": 25, "target_rate": 0.5, "target_kl": 0.0625, "target_decay": 1e-3, "target_clamp": 4.0}
_GPTJ_TARGET = {"target_decay": 0.5, "target_clamp": 0.75}

# Model name or architecture family → method → setting → value; a family's row overrides that of any model, and a
# model's that of its family.
TABLE: dict[str, dict[str, dict[str, Any]]] = {
    ANY: {
        "ft": {"layers": "21 of 32", "learning_rate": 5e-4, "steps": 25, "batch_size": 64},
        "ft-batched": {"layers": "22 of 32", "learning_rate": 5e-4, "steps": 25, "batch_size": 100},
        "lora": {"modules": "self_attn.q_proj, self_attn.v_proj", "learning_rate": 5e-3, "steps": 70, "batch_size": 64},
        "ultraedit": {"eta": 1e-6},
        "memit": _TARGET | {"layers": "4-8 of 32", "covariance_weight": 15000.0},
        "pmet": _TARGET
        | {"layers": "4-8 of 32", "target_steps": 20, "target_decay": 0.5, "target_clamp": 1.0}
        | {"covariance_weight": 6000.0},
        "emmet": _TARGET | {"layers": "5 of 32", "ridge": 0.1},
        "alphaedit": _TARGET | {"layers": "4-8 of 32", "null_threshold": 0.02, "ridge": 10.0},
    },
    "gptj": {
        "ft": {"layers": "21 of 28"},
        "lora": {"modules": "mlp.fc_in, mlp.fc_out", "steps": 50},
        "ultraedit": {"layers": "18-26 of 28"},
        "memit": _GPTJ_TARGET | {"layers": "3-8 of 28"},
        "pmet": _GPTJ_TARGET | {"layers": "3-8 of 28", "target_steps": 30, "target_rate": 0.2, "target_kl": 1.0},
        "emmet": _GPTJ_TARGET | {"layers": "5 of 28"},
        "alphaedit": _GPTJ_TARGET | {"layers": "3-8 of 28"},
    },
    "mistral": {
        "ft-batched": {"layers": "23 of 32", "learning_rate": 5e-5},
        "ultraedit": {"layers": "29-30 of 32"},
    },
    "gpt2": {"lora": {"modules": "attn.c_attn"}},
    "gpt_neo": {"lora": {"modules": "attn.attention.q_proj, attn.attention.v_proj"}},
    "gpt_neox": {"lora": {"modules": "attention.query_key_value"}},
    "bloom": {"lora": {"modules": "self_attention.query_key_value"}},
    "falcon": {"lora": {"modules": "self_attention.query_key_value"}},
    "phi3": {"lora": {"modules": "self_attn.qkv_proj"}},
    "gpt_bigcode": {"lora": {"modules": "attn.c_attn"}},
    "mpt": {"lora": {"modules": "attn.Wqkv"}},
    EMBEDDED: {
        # Found by `app.py tune`, five minutes a method; the trials are in assets/tuning. Ties left what was there.
        "ft": {"learning_rate": 2e-3, "layers": "17 of 32"},
        "ft-batched": {"learning_rate": 1e-3, "batch_size": 8, "layers": "6 of 32"},
        "lora": {"batch_size": 8, "steps": 20, "learning_rate": 2e-4},
        "ultraedit": {"eta": 2e-3},
        # kᵀ(λC)⁻¹k is about D_h/λ: for the same share of the residual λ shrinks as D_h does, from 11008 to 1536.
        "memit": {"covariance_weight": 200.0},
        "alphaedit": {"null_threshold": 0.06, "ridge": 1.0},
        "pmet": {"covariance_weight": 2000.0, "target_clamp": 4.0},
    },
}


def resolved(settings: Settings, model: EditableModel, method: str) -> Settings:
    """`settings`, a dataclass, with the table's value for this model in every field that is 0 or empty."""
    values: dict[str, Any] = {}
    own = EMBEDDED if model.sha256 == EMBEDDED_WEIGHTS_SHA256 else model.name  # a copy of it, in a folder, is it too
    for row in (ANY, model.family, own):
        values |= TABLE.get(row, {}).get(method, {})
    left = [item.name for item in fields(settings) if not getattr(settings, item.name)]
    return replace(settings, **{name: values[name] for name in left if name in values})
