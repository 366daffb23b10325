"""An editable language model: where it runs, which modules can be edited, and the only way to changed weights.

It knows nothing of facts, editors or metrics. The loaded weights are shared and always the original ones;
an edit is a `WeightDelta` that `edited` swaps in for the length of one operation.
"""

from __future__ import annotations

import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from engine import embedded
from engine.delta import WeightDelta
from engine.errors import CheckpointError, ModelError
from engine.fingerprint import weights_sha256
from engine.first_pass import first_pass
from engine.layers import layer_ranges
from engine.memory import free_bytes
from engine.placement import Placement

if TYPE_CHECKING:  # importing transformers takes seconds, which only loading a model (engine.loading) should cost
    from transformers import PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

EMBEDDED = "embedded"
MOST_NAMED = 12  # modules in a message
ACTIVATIONS = 20  # hidden states' widths that a layer keeps of a token for its backward pass

LLAMA = "model.layers.{}.mlp.down_proj"
WITHIN_ANOTHER = "model.language_model.layers.{}.mlp.down_proj"  # of a model that also sees or hears

# The second feed-forward matrix of each architecture family; {} is the layer's number.
FAMILIES: dict[str, str] = {
    **dict.fromkeys(
        (
            *("llama", "mistral", "qwen2", "qwen3", "gemma", "gemma2", "gemma3_text", "phi3", "glm4", "nemotron"),
            *("olmo", "olmo2", "olmo3", "smollm3", "stablelm", "granite", "cohere", "cohere2"),
        ),
        LLAMA,
    ),
    "gptj": "transformer.h.{}.mlp.fc_out",
    "gpt2": "transformer.h.{}.mlp.c_proj",
    "gpt_neo": "transformer.h.{}.mlp.c_proj",
    "gpt_neox": "gpt_neox.layers.{}.mlp.dense_4h_to_h",
    "bloom": "transformer.h.{}.mlp.dense_4h_to_h",
    "falcon": "transformer.h.{}.mlp.dense_4h_to_h",
    "phi": "model.layers.{}.mlp.fc2",
    "opt": "model.decoder.layers.{}.fc2",
    "starcoder2": "model.layers.{}.mlp.c_proj",
    "gpt_bigcode": "transformer.h.{}.mlp.c_proj",
    "mpt": "transformer.blocks.{}.ffn.down_proj",
    "xglm": "model.layers.{}.fc2",
}


@dataclass(frozen=True)
class EditModule:
    """One editable weight matrix: its dotted name, its layer, and its widths.

    `d_h` is the width of the module's input (a key), `d_g` that of its output (a value gradient).
    `transposed` says that the stored weight is (d_g, d_h), as in nn.Linear; Conv1D stores (d_h, d_g).
    """

    name: str
    layer: int
    d_h: int
    d_g: int
    transposed: bool


class EditableModel:
    """A causal language model with its tokenizer, ready to be edited.

    `lm` is in eval mode and none of its parameters requires a gradient. `lock` is held around every use.
    """

    def __init__(
        self,
        lm: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        name: str,
        placement: Placement,
        module_pattern: str | None = None,
        device: str = "auto",
        dtype: str = "auto",
    ):
        self.lm = lm.eval().requires_grad_(False)
        self.tokenizer = tokenizer
        self.name = name
        self.placement = placement
        # How it was asked for, beside its name and where that was left open: to ask for it again.
        asked = {"module_pattern": module_pattern, "device": device, "dtype": dtype}
        self.asked = {option: value for option, value in asked.items() if value not in (None, "", "auto")}
        # A hash of every weight as loaded: checkpoints and deltas are bound to it.
        known = embedded.EMBEDDED_WEIGHTS_SHA256 if name == EMBEDDED else None
        self.sha256: str = known or weights_sha256(lm.state_dict())
        self.family = lm.config.model_type
        self.lock = threading.RLock()
        self._pattern = module_pattern or FAMILIES.get(self.family) or _pattern_by_names(lm)
        stem = self._pattern.split(".{}")[0]
        self.layers: nn.ModuleList = dict(lm.named_modules()).get(stem)
        if self._pattern.count("{}") != 1 or not isinstance(self.layers, nn.ModuleList):
            raise ModelError(
                f"The module pattern {self._pattern!r} does not fit {name}: it has no list of layers {stem!r}. "
                f"Write {{}} for the layer's number; its layer lists are {', '.join(_layer_lists(lm))}."
            )
        self.first_pass = first_pass(self)
        self._having = self._layers_with_module()

    @property
    def device(self) -> torch.device:
        """Where the token ids go: the device of the input embeddings."""
        return self.lm.get_input_embeddings().weight.device

    @property
    def dtype(self) -> torch.dtype:
        """The dtype the language model computes in."""
        return self.placement.dtype

    @property
    def reason(self) -> str:
        """Why this device and dtype were chosen, in a sentence."""
        return self.placement.reason

    @property
    def config(self) -> PreTrainedConfig:
        """Of the language model itself, where it is a part of one that also sees or hears."""
        return self.lm.config.get_text_config(decoder=True)

    @property
    def layer_count(self) -> int:
        return len(self.layers)

    @property
    def width(self) -> int:
        """Of the token embeddings and, in nearly all families, of the hidden states."""
        return self.lm.get_input_embeddings().weight.shape[1]

    @property
    def context(self) -> int:
        """The longest prompt with its answer, in tokens."""
        lengths = (getattr(self.config, name, None) for name in ("max_position_embeddings", "max_seq_len"))  # MPT's
        return int(next(filter(None, lengths), 2048))

    @cached_property
    def activation_room(self) -> int | None:
        """Bytes that one pass may keep for its backward pass. None: as many as `tokens_per_chunk` tokens leave.

        On CUDA a quarter of what is free when it is first asked for: by then a former model has gone.
        """
        if self.device.type != "cuda":
            return None
        places = {parameter.device for parameter in self.lm.parameters() if parameter.device.type == "cuda"}
        return free_bytes(sorted(places, key=str)) // 4

    def activation_bytes(self, layer: int) -> int:
        """What a token leaves for the backward pass through the layers from `layer` on, about: 13 to 25 of its hidden
        states a layer, by the family, as counted from what autograd saves."""
        return ACTIVATIONS * self.width * self.dtype.itemsize * (self.layer_count - layer)

    def chunk_tokens(self, layer: int) -> int:
        """How many tokens, padding included, go through at once when the layers from `layer` on are differentiated."""
        most, room = self.placement.tokens_per_chunk, self.activation_room
        return most if room is None else min(most, room // self.activation_bytes(layer))

    def edit_modules(self, layers: Sequence[int] | None = None) -> list[EditModule]:
        """The modules of these layers, shallow to deep; without layers, those of the last six (Appendix C).

        Raises ModelError when a layer does not exist or has no such module.
        """
        chosen = self._chosen(self._having[-6:] if layers is None else layers)
        if lacking := set(chosen) - set(self._having):
            raise ModelError(
                f"{self.name} has no {self._pattern} in layer {layer_ranges(lacking)}, but in layer "
                f"{layer_ranges(self._having)}: choose among these."
            )
        return [self._edit_module(self._pattern.format(layer), layer) for layer in chosen]

    def modules_within(self, names: Sequence[str], layers: Sequence[int] | None = None) -> list[EditModule]:
        """The modules of these names, such as "self_attn.q_proj", in each of the layers; without layers, in all.

        Raises ModelError when a layer or a module does not exist or it is neither Linear nor Conv1D.
        """
        stem = self._pattern.split("{}")[0]
        chosen = self._chosen(range(self.layer_count) if layers is None else layers)
        there = {name for name, module in self.layers[chosen[0]].named_modules() if _is_editable(module)}
        if unknown := [name for name in names if name not in there]:
            raise ModelError(
                f"{self.name} has no {unknown[0]} in layer {chosen[0]}. Name others in the setting “modules”; "
                f"there are {', '.join(sorted(there)[:MOST_NAMED])}."
            )
        return [self._edit_module(f"{stem}{layer}.{name}", layer) for layer in chosen for name in names]

    def _chosen(self, layers: Sequence[int]) -> list[int]:
        chosen = sorted(set(layers))
        if not chosen:
            raise ModelError("No layer was chosen to edit: name at least one.")
        if chosen[0] < 0 or chosen[-1] >= self.layer_count:
            raise ModelError(
                f"{self.name} has layers 0 to {self.layer_count - 1}; asked for {chosen}. Name layers within these."
            )
        return chosen

    def _edit_module(self, name: str, layer: int) -> EditModule:
        try:
            module = self.lm.get_submodule(name)
        except AttributeError as error:
            raise ModelError(f"{self.name} has no module {name!r}; give another module pattern.") from error
        if _is_editable(module):
            transposed = isinstance(module, nn.Linear)
            d_g, d_h = module.weight.shape if transposed else module.weight.T.shape
            return EditModule(name, layer, d_h, d_g, transposed)
        raise ModelError(f"{name} is a {type(module).__name__}; only Linear and Conv1D modules can be edited.")

    def _layers_with_module(self) -> list[int]:
        """Of a mixture of experts not every layer has it. Raises ModelError where none has."""
        having = []
        for layer in range(self.layer_count):
            try:
                self._edit_module(self._pattern.format(layer), layer)
            except ModelError:
                if layer == self.layer_count - 1 and not having:
                    raise
            else:
                having.append(layer)
        return having

    def edit_modules_named(self, names: Iterable[str]) -> list[EditModule]:
        """The modules of these names, in their order; layer 0 where a module is outside the layers.

        Raises ModelError when there is no such module, or when it is neither Linear nor Conv1D.
        """
        return [self._edit_module(name, self._layer_of(name)) for name in names]

    def first_layer(self, delta: WeightDelta) -> int:
        """The shallowest layer a delta touches; 0 when it touches something outside the layers."""
        return min(map(self._layer_of, delta.shifts), default=0)

    def _layer_of(self, name: str) -> int:
        stem = self._pattern.split("{}")[0]
        number = name.removeprefix(stem).split(".")[0]
        return int(number) if name.startswith(stem) and number.isdigit() else 0

    def weight(self, module: EditModule) -> Tensor:
        """The stored weight of an edit module, in its own layout."""
        return self.lm.get_submodule(module.name).weight

    def autocast(self):
        """bfloat16 autocast where the CPU has matrix units for it, else nothing (weights carry the dtype)."""
        if self.placement.autocast:
            return torch.autocast(self.device.type, dtype=self.placement.dtype)
        return nullcontext()

    @contextmanager
    def edited(self, delta: WeightDelta | None) -> Iterator[Mapping[str, nn.Parameter]]:
        """Run with `delta` added; the very same parameters are back afterwards, bit for bit.

        Yields the shifted parameters by module name, so that a caller may differentiate with respect to them.
        Raises CheckpointError when the delta was computed for another model or has another shape than a module,
        ModelError when it names a module that the model does not have.
        """
        if delta is None:
            yield {}
            return
        if delta.model_sha256 != self.sha256:
            raise CheckpointError(
                f"This delta was computed for another model ({delta.model_sha256[:12]}…) than the one loaded, "
                f"{self.name} ({self.sha256[:12]}…). Load that model first."
            )
        modules = self.edit_modules_named(delta.shifts)
        for module in modules:
            if (shape := tuple(delta.shifts[module.name].shape)) != (module.d_h, module.d_g):
                raise CheckpointError(
                    f"This delta's shift of {module.name} is {shape}, but the module takes {(module.d_h, module.d_g)}. "
                    "The delta is damaged: compute it again."
                )
        originals: dict[str, nn.Parameter] = {}
        shifted: dict[str, nn.Parameter] = {}
        try:
            for module in modules:
                weight = self.weight(module)
                shift = delta.shifts[module.name].to(weight.device)
                shift = shift.T if module.transposed else shift
                # Added in float32 and rounded once, not twice.
                parameter = nn.Parameter((weight.float() + shift).to(weight.dtype), requires_grad=False)
                originals[module.name] = weight
                shifted[module.name] = self.lm.get_submodule(module.name).weight = parameter
            yield shifted
        finally:
            for name, weight in originals.items():
                self.lm.get_submodule(name).weight = weight


def _is_editable(module: nn.Module) -> bool:
    from transformers.pytorch_utils import Conv1D

    return isinstance(module, nn.Linear | Conv1D)


def _layer_lists(lm: nn.Module) -> list[str]:
    return [name for name, module in lm.named_modules() if isinstance(module, nn.ModuleList)]


def _pattern_by_names(lm: PreTrainedModel) -> str:
    """Most families that are not in the table name their matrices as LLaMA does. Raises ModelError for the others."""
    named = dict(lm.named_modules())
    for pattern in (LLAMA, WITHIN_ANOTHER):
        layers = named.get(pattern.split(".{}")[0], ())
        if layers and all(isinstance(named.get(pattern.format(layer)), nn.Linear) for layer in range(len(layers))):
            return pattern
    linear = sorted(
        {
            ".".join("{}" if part.isdigit() else part for part in name.split("."))
            for name, module in named.items()
            if _is_editable(module) and any(part.isdigit() for part in name.split("."))
        }
    )
    experts = any(parameter.ndim == 3 for parameter in lm.parameters())
    raise ModelError(
        f"The family {lm.config.model_type!r} is not in the table of known ones, and its matrices are not named as "
        f"LLaMA's are. {'Experts that are stacked in one tensor cannot be edited. ' if experts else ''}Name the one to "
        f"edit with --module-pattern; this model has {', '.join(linear)}."
    )
