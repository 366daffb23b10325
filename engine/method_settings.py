"""What each method is set to for each model, in one table: a setting left at 0 or empty takes the value from here.

The values are those of the reference implementations; the embedded model's were found on facts of its own.
"""

from dataclasses import fields, replace
from typing import Any, TypeVar

from engine.model import EditableModel

Settings = TypeVar("Settings")

ANY = "any model"

# Model name or architecture family → method → setting → value; a family's row overrides that of any model, and a
# model's that of its family. `layers` are (first, last, of so many): a model of another depth takes the same share.
TABLE: dict[str, dict[str, dict[str, Any]]] = {
    ANY: {
        "ft": {"layers": (21, 21, 32), "learning_rate": 5e-4, "steps": 25, "batch_size": 64},
        "ft-batched": {"layers": (22, 22, 32), "learning_rate": 5e-4, "steps": 25, "batch_size": 100},
        "lora": {"modules": "self_attn.q_proj, self_attn.v_proj", "learning_rate": 5e-3, "steps": 70, "batch_size": 64},
        "ultraedit": {"eta": 1e-6},
    },
    "gptj": {
        "ft": {"layers": (21, 21, 28)},
        "lora": {"modules": "mlp.fc_in, mlp.fc_out", "steps": 50},
        "ultraedit": {"layers": (18, 26, 28)},
    },
    "mistral": {
        "ft-batched": {"layers": (23, 23, 32), "learning_rate": 5e-5},
        "ultraedit": {"layers": (29, 30, 32)},
    },
    "gpt2": {"lora": {"modules": "attn.c_attn"}},
    "gpt_neo": {"lora": {"modules": "attn.attention.q_proj, attn.attention.v_proj"}},
    "gpt_neox": {"lora": {"modules": "attention.query_key_value"}},
    "bloom": {"lora": {"modules": "self_attention.query_key_value"}},
    "falcon": {"lora": {"modules": "self_attention.query_key_value"}},
    "phi3": {"lora": {"modules": "self_attn.qkv_proj"}},
    "embedded": {
        "ft": {"learning_rate": 2e-3},
        "ft-batched": {"learning_rate": 1e-3, "batch_size": 8},
        "lora": {"batch_size": 8, "steps": 20},
        "ultraedit": {"eta": 2e-3},
    },
}


def resolved(settings: Settings, model: EditableModel, method: str) -> Settings:
    """`settings` with the table's value for this model in every field that is 0 or empty."""
    values: dict[str, Any] = {}
    for row in (ANY, model.family, model.name):
        values |= TABLE.get(row, {}).get(method, {})
    if "layers" in values:
        values["layers"] = _at_depth(*values["layers"], model.layer_count)
    left = [item.name for item in fields(settings) if not getattr(settings, item.name)]
    return replace(settings, **{name: values[name] for name in left if name in values})


def _at_depth(first: int, last: int, of: int, count: int) -> str:
    """Layers first to last of a model of `of` layers as those of one of `count`, in the way people write them."""
    begin, end = (min(round(layer * count / of), count - 1) for layer in (first, last))
    return str(begin) if begin == end else f"{begin}-{end}"
