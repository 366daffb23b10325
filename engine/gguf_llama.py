"""A llama in a GGUF file, rewritten as a folder that transformers loads: float32 weights, config, tokenizer.

It gives the same weights, bit for bit, as `from_pretrained(gguf_file=…)` in a third of the time: that parses
the 98,000 strings of the vocabulary and merges four times, and cannot report how far it is. It also keeps
two things that route loses: the end-of-text token, and that each digit is a token.
"""

from pathlib import Path

import numpy as np
import torch
from gguf import GGUFReader, dequantize
from safetensors.torch import save_file
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from torch import Tensor
from transformers import GenerationConfig, LlamaConfig, PreTrainedTokenizerFast

from engine.fingerprint import weights_sha256
from engine.progress import Progress, silent

STAGE = "Converting the embedded model"
SPECIAL_TOKEN = 3  # the token type that llama.cpp gives to control tokens

TENSORS = {
    "token_embd.weight": "model.embed_tokens.weight",
    "output_norm.weight": "model.norm.weight",
}
LAYER_TENSORS = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}


def convert(gguf_path: Path, folder: Path, progress: Progress = silent) -> str:
    """Write the model of a GGUF file into an existing folder; return its `weights_sha256`.

    The file's model has tied embeddings, no bias, a byte-level BPE tokenizer with split digits ("smollm").
    Raises KeyError or ValueError for a file that holds something else; OSError when the disk is full.
    """
    progress(STAGE, 0, 1)
    reader = GGUFReader(gguf_path)
    config = _config(reader)
    weights = _weights(reader, config, progress)
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    (folder / "model.safetensors").chmod(0o644)  # safetensors lets only the owner read; a cache may be shared
    config.save_pretrained(folder)
    GenerationConfig.from_model_config(config).save_pretrained(folder)
    _tokenizer(reader, config).save_pretrained(folder)
    return weights_sha256(weights)


def _field(reader: GGUFReader, key: str):
    return reader.fields[key].contents()


def _config(reader: GGUFReader) -> LlamaConfig:
    return LlamaConfig(
        architectures=["LlamaForCausalLM"],
        dtype="float32",
        vocab_size=_field(reader, "llama.vocab_size"),
        hidden_size=_field(reader, "llama.embedding_length"),
        intermediate_size=_field(reader, "llama.feed_forward_length"),
        num_hidden_layers=_field(reader, "llama.block_count"),
        num_attention_heads=_field(reader, "llama.attention.head_count"),
        num_key_value_heads=_field(reader, "llama.attention.head_count_kv"),
        head_dim=_field(reader, "llama.rope.dimension_count"),
        max_position_embeddings=_field(reader, "llama.context_length"),
        rms_norm_eps=_field(reader, "llama.attention.layer_norm_rms_epsilon"),
        rope_parameters={"rope_type": "default", "rope_theta": _field(reader, "llama.rope.freq_base")},
        tie_word_embeddings=True,
        bos_token_id=_field(reader, "tokenizer.ggml.bos_token_id"),
        eos_token_id=_field(reader, "tokenizer.ggml.eos_token_id"),
        pad_token_id=_field(reader, "tokenizer.ggml.padding_token_id"),
    )


def _weights(reader: GGUFReader, config: LlamaConfig, progress: Progress) -> dict[str, Tensor]:
    """Every tensor of the file in float32, under the name transformers gives it."""
    heads = {"attn_q": config.num_attention_heads, "attn_k": config.num_key_value_heads}
    weights = {}
    for done, stored in enumerate(reader.tensors):
        progress(STAGE, done, len(reader.tensors))
        values = np.asarray(dequantize(stored.data, stored.tensor_type), dtype=np.float32)
        if stored.name in TENSORS:
            name = TENSORS[stored.name]
        else:
            _, layer, part, _ = stored.name.split(".")  # blk.7.attn_q.weight
            name = f"model.layers.{layer}.{LAYER_TENSORS[part]}.weight"
            if part in heads:
                values = _rotary_halves(values, heads[part])
        weights[name] = torch.from_numpy(np.array(values))  # a copy: a norm is a view into the file
    progress(STAGE, len(reader.tensors), len(reader.tensors))
    return weights


def _rotary_halves(weight: np.ndarray, heads: int) -> np.ndarray:
    """Rows of a query or key matrix, (heads * head_dim, hidden), from llama.cpp's order to transformers'.

    llama.cpp rotates neighbouring rows with each other, transformers the two halves of a head.
    """
    pairs = weight.reshape(heads, -1, 2, weight.shape[1])
    return pairs.swapaxes(1, 2).reshape(weight.shape)


def _tokenizer(reader: GGUFReader, config: LlamaConfig) -> PreTrainedTokenizerFast:
    kind = _field(reader, "tokenizer.ggml.model"), _field(reader, "tokenizer.ggml.pre")
    if kind != ("gpt2", "smollm"):
        raise ValueError(f"This GGUF file has a {kind} tokenizer; only ('gpt2', 'smollm') is known here.")
    tokens = _field(reader, "tokenizer.ggml.tokens")
    merges = [tuple(merge.split(" ")) for merge in _field(reader, "tokenizer.ggml.merges")]
    backend = Tokenizer(models.BPE(vocab={token: i for i, token in enumerate(tokens)}, merges=merges))
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    backend.decoder = decoders.ByteLevel()
    kinds = _field(reader, "tokenizer.ggml.token_type")
    special = [token for token, kind in zip(tokens, kinds) if kind == SPECIAL_TOKEN]
    backend.add_special_tokens([AddedToken(token, normalized=False, special=True) for token in special])
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        bos_token=tokens[config.bos_token_id],
        eos_token=tokens[config.eos_token_id],
        pad_token=tokens[config.pad_token_id],
        unk_token=tokens[_field(reader, "tokenizer.ggml.unknown_token_id")],
        chat_template=_field(reader, "tokenizer.chat_template"),
        model_max_length=config.max_position_embeddings,
        clean_up_tokenization_spaces=False,
    )
