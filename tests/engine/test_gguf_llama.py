"""The conversion of a GGUF llama: the weights and the tokenizer that transformers' own reader gives, or better ones."""

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from engine import gguf_llama
from engine.fingerprint import weights_sha256
from tests.engine.small_wheel import TOKENS, sha256, write_gguf


def test_weights_are_those_of_transformers_own_reader(small):
    ours = AutoModelForCausalLM.from_pretrained(small.folder, local_files_only=True)
    theirs = AutoModelForCausalLM.from_pretrained(
        small.gguf.parent, gguf_file=small.gguf.name, dtype=torch.float32, local_files_only=True
    )
    expected = theirs.state_dict()
    assert ours.state_dict().keys() == expected.keys()
    for name, tensor in ours.state_dict().items():
        assert torch.equal(tensor, expected[name]), name
    ids = torch.arange(20)[None]
    with torch.no_grad():
        assert torch.equal(ours(ids).logits, theirs(ids).logits)
    assert small.weights == weights_sha256(ours.state_dict())


def test_converting_again_gives_the_same_weights(small, tmp_path):
    assert gguf_llama.convert(small.gguf, tmp_path) == small.weights
    assert sha256(tmp_path / "model.safetensors") == sha256(small.folder / "model.safetensors")


def test_tokenizer_keeps_digits_apart_and_names_the_end_of_text(small):
    tokenizer = AutoTokenizer.from_pretrained(small.folder, local_files_only=True)
    assert tokenizer.tokenize("in  12") == ["in", "ĠĠ", "1", "2"]
    assert tokenizer.tokenize("in<|im_end|>") == ["in", "<|im_end|>"]
    assert (tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id) == (1, 2, 2)
    assert tokenizer("in").input_ids == [TOKENS.index("in")]  # no token is added in front


def test_another_kind_of_tokenizer_is_refused(tmp_path):
    with pytest.raises(ValueError, match="llama-bpe"):
        gguf_llama.convert(write_gguf(tmp_path / "other.gguf", pre="llama-bpe"), tmp_path)
