"""Loading a language model: the embedded one, a folder or a hub id, as one that can be edited; why it cannot be.

No code that comes with a model is run, and no weight that its files lack is made up.
"""

from __future__ import annotations

from pathlib import Path
from socket import create_connection
from typing import TYPE_CHECKING
from urllib.parse import urlsplit
from urllib.request import getproxies

import torch

from engine import embedded
from engine.errors import ModelError
from engine.model import EMBEDDED, EditableModel
from engine.placement import choose_placement
from engine.progress import Progress, silent

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

HUB_SECONDS = 10  # to be answered by the hub


def load_model(
    name: str = EMBEDDED,
    device: str = "auto",
    dtype: str = "auto",
    module_pattern: str | None = None,
    progress: Progress = silent,
) -> EditableModel:
    """Load the embedded model, a hub id or a local folder.

    `device`: auto, cpu, cuda, cuda:N, mps, or balanced (all GPUs, through accelerate's device_map).
    `dtype`: auto, float32, bfloat16 or float16. Raises ModelError with what to do.
    """
    from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES
    from transformers.utils import logging

    logging.disable_progress_bar()  # `progress` is the one that is shown
    placement = choose_placement(device, dtype)
    if name != EMBEDDED and (folder := Path(name).expanduser()).is_dir():
        name = str(folder.absolute())  # runs and their commands name it, which may be read from another folder
    elif name != EMBEDDED and (name.count("/") > 1 or name.startswith((".", "/", "~"))):
        raise ModelError(
            f"The model {name!r} could not be loaded: there is no such folder. "
            "Give one that save_pretrained wrote, a hub id of a causal language model, or 'embedded'."
        )
    source = embedded.fetch(progress) if name == EMBEDDED else name
    progress("Loading the model", 0, 1)
    local = name == EMBEDDED or Path(name).is_dir()
    try:
        there = [path.name for path in Path(source).iterdir()] if local else []
        if not local:
            _reach_hub(name)
        elif "config.json" not in there:
            raise ValueError("the folder holds no model, for there is no config.json in it.")
        files = {"local_files_only": local, "trust_remote_code": False}  # no code that comes with a model is run
        config = AutoConfig.from_pretrained(source, **files)
        if config.model_type not in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES:
            own = " Its language model, saved by itself, can be." if hasattr(config, "text_config") else ""
            raise ValueError(f"{config.model_type} is no causal language model, and only those can be edited.{own}")
        if local and not any("token" in file or file.startswith("vocab") or file.endswith(".model") for file in there):
            raise ValueError("the folder holds no tokenizer: save the model's there with tokenizer.save_pretrained.")
        tokenizer = AutoTokenizer.from_pretrained(source, **files)
        if getattr(config, "quantization_config", None) is not None:
            raise ValueError("its weights are quantised, and no weight shift can be added to those.")
        lm, found = AutoModelForCausalLM.from_pretrained(
            source,
            config=config,
            dtype=placement.weight_dtype,
            attn_implementation=placement.attention,
            device_map=placement.device_map,
            output_loading_info=True,
            ignore_mismatched_sizes=True,  # told below, with the name
            **files,
        )
        if mismatched := sorted(found["mismatched_keys"]):
            weight, stored, expected = mismatched[0]
            raise ValueError(f"{weight} has the shape {tuple(stored)}, where its config says {tuple(expected)}.")
        if beyond := _unknown_tokens(tokenizer, lm.get_input_embeddings().weight.shape[0]):
            raise ValueError(beyond)
        if missing := sorted(found["missing_keys"]):  # transformers draws them at random
            raise ValueError(f"its files lack {len(missing):,} of its weights, such as {missing[0]}.")
    except (MemoryError, torch.OutOfMemoryError):
        raise
    except Exception as error:  # files can be wrong in any way, and transformers has an error for each
        if name == EMBEDDED:
            embedded.verify(source)
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        if type(error).__name__ == "UnpicklingError":  # it would advise to run what the file says
            reason = "a file of its weights is damaged, or is not the file itself but a pointer to it."
        raise ModelError(
            f"The model {name!r} could not be loaded: {reason.rstrip('.:')}. "
            "Give a hub id of a causal language model, a folder that save_pretrained wrote, or 'embedded'."
        ) from error
    if placement.device_map is None:
        lm = lm.to(placement.device)
    progress("Loading the model", 1, 1)
    return EditableModel(lm, tokenizer, name, placement, module_pattern, device, dtype)


def _unknown_tokens(tokenizer: PreTrainedTokenizerBase, rows: int) -> str:
    """What is wrong where the tokenizer makes tokens that the model has no embedding for; "" where it does not.

    Special ones, and names in brackets such as <pad>, are let pass: ordinary text has none of them.
    """
    if len(tokenizer) <= rows:
        return ""
    special = {number for number, token in tokenizer.added_tokens_decoder.items() if token.special}
    beyond = sorted((number, token) for token, number in tokenizer.get_vocab().items() if number >= rows)
    unknown = [(number, token) for number, token in beyond if number not in special and not _is_name(token)]
    if not unknown:
        return ""
    number, token = unknown[0]
    return (
        f"its tokenizer makes {token!r} the token {number:,}, but it has embeddings for {rows:,} only. The tokenizer is "
        "another model's, or got tokens without resize_token_embeddings: call that, and save both again."
    )


def _is_name(token: str) -> bool:
    return token[:1] + token[-1:] in ("<>", "[]")


def _reach_hub(name: str) -> None:
    """Raise OSError when the model has to be fetched and the hub cannot be reached: its library would try for half a
    minute."""
    from huggingface_hub import constants, try_to_load_from_cache

    if constants.is_offline_mode() or getproxies() or try_to_load_from_cache(name, "config.json") is not None:
        return
    hub = urlsplit(constants.ENDPOINT)
    try:
        create_connection((hub.hostname, hub.port or (80 if hub.scheme == "http" else 443)), HUB_SECONDS).close()
    except OSError as error:
        raise OSError(
            f"it is neither a folder here nor in the cache, and {constants.ENDPOINT} cannot be reached "
            f"({error.strerror or error})."
        ) from error
