"""Prompts with answers become the tokens the method asks for, and unusable ones are named."""

import pytest
from tokenizers.processors import TemplateProcessing
from transformers import PreTrainedTokenizerFast

from engine.errors import FactError
from engine.prompts import collate, encode
from tests.engine import tiny


def test_answer_is_a_space_and_the_answer_predicted_one_position_before(tiny_tokenizer):
    (item,) = encode(tiny_tokenizer, [("The capital of France is", "Rome is far")], 64, ["row 1"])
    answer = tiny_tokenizer(" Rome is far")["input_ids"]
    prompt = tiny_tokenizer("The capital of France is")["input_ids"]
    assert item.answer == tuple(answer) and len(answer) > 1
    assert item.ids == (*prompt, *answer[:-1])
    assert item.start == len(prompt) - 1
    batch = collate([item], [0], "cpu")
    text = tiny_tokenizer.decode(batch.ids[0, : batch.positions[0] + 1])
    assert text == "The capital of France is"
    assert tiny_tokenizer.decode(batch.labels) == " Rome is far"


def test_space_after_a_prompt_is_no_token_of_it(tiny_tokenizer):
    spaced, plain = encode(tiny_tokenizer, [("Seen ", "it"), ("Seen", "it")], 64, ["a", "b"])
    assert spaced == plain


def test_tokenizer_that_frames_every_text_keeps_its_start_and_loses_its_end():
    backend = tiny.tiny_tokenizer().backend_tokenizer
    backend.add_special_tokens(["<|start|>"])
    start, end = backend.token_to_id("<|start|>"), backend.token_to_id(tiny.END)
    backend.post_processor = TemplateProcessing(
        single=f"<|start|> $A {tiny.END}", special_tokens=[("<|start|>", start), (tiny.END, end)]
    )
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, bos_token="<|start|>", eos_token=tiny.END)
    (item,) = encode(tokenizer, [("Seen", "it")], 64, ["row 1"])
    assert item.ids[0] == start
    assert end not in item.ids + item.answer and start not in item.ids[1:] + item.answer


def test_longest_prompt_that_fits_passes_and_the_next_is_named(tiny_tokenizer):
    prompt, answer = "Seen", "twice"
    tokens = len(tiny_tokenizer(prompt)["input_ids"]) + len(tiny_tokenizer(" " + answer)["input_ids"])
    (item,) = encode(tiny_tokenizer, [(prompt, answer)], tokens - 1, ["Row 7, prompt"])
    assert len(item.ids) == tokens - 1
    with pytest.raises(FactError, match=rf"Row 7, prompt: {tokens} tokens.* holds {tokens - 2}\. Shorten it"):
        encode(tiny_tokenizer, [(prompt, answer)], tokens - 2, ["Row 7, prompt"])


def test_prompt_without_a_token_is_named(tiny_tokenizer):
    with pytest.raises(FactError, match="Row 3, prompt: the tokenizer makes no token"):
        encode(tiny_tokenizer, [("Seen", "it"), ("  ", "it")], 64, ["Row 2, prompt", "Row 3, prompt"])


def test_nothing_to_encode_is_nothing(tiny_tokenizer):
    assert encode(tiny_tokenizer, [], 64, []) == []
