"""Prompts with answers become the tokens the method asks for, and unusable ones are named."""

import pytest
from tokenizers import normalizers
from tokenizers.pre_tokenizers import ByteLevel, Sequence, Split
from tokenizers.processors import TemplateProcessing
from transformers import PreTrainedTokenizerFast

from engine.errors import FactError, ModelError
from engine.facts import Fact
from engine.prompts import collate, encode, encode_facts, row_owners
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


def test_spaces_around_an_answer_are_no_token_of_it(tiny_tokenizer):
    spaced, plain = encode(tiny_tokenizer, [("Seen", "  it "), ("Seen", "it")], 64, ["a", "b"])
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


@pytest.mark.parametrize("answer", ["it", "twice", "1999"])
def test_tokenizer_that_writes_the_space_itself_gets_no_second_one(answer):
    """As Mistral's and Phi-3's files: ▁ before every text, and for every space in it."""
    backend = tiny.tiny_tokenizer().backend_tokenizer
    backend.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    backend.pre_tokenizer = Sequence([Split("▁", "merged_with_next"), ByteLevel(add_prefix_space=False, use_regex=False)])
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, eos_token=tiny.END)
    (item,) = encode(tokenizer, [("Seen", answer)], 64, ["row 1"])
    assert [*item.ids, item.answer[-1]] == tokenizer(f"Seen {answer}")["input_ids"]


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


FACTS = [
    Fact("The capital of France is", "Rome is far", subject="France"),
    Fact("the old river", "flows"),  # nobody's name stands in it
    Fact("Who is Faust", "it", subject="Faust"),
]


@pytest.mark.parametrize(
    "scope, ends",
    [
        ("answer", ["The capital of France is", "the old river", "Who is Faust"]),
        ("all", None),
        ("subject", ["The capital of France", "the old river", "Who is Faust"]),
        ("subject+answer", ["The capital of France", "the old river", "Who is Faust"]),
    ],
)
def test_rows_are_the_positions_of_the_scope(tiny_model, scope, ends):
    model = tiny_model("llama")
    encoded = encode_facts(model, FACTS, scope)
    for index, item in enumerate(encoded):
        rows, answers = item.rows(scope), set(range(item.start, len(item.ids)))
        assert list(rows) == sorted(set(rows))
        assert answers <= set(rows) or scope == "subject"
        if scope == "all":
            assert rows == tuple(range(len(item.ids)))
            continue
        assert model.tokenizer.decode(item.ids[: rows[0] + 1]) == ends[index]
        assert len(rows) == {"answer": len(answers), "subject": 1}.get(scope, len(answers | {rows[0]}))
    owners = row_owners(encoded, [2, 0], scope).tolist()
    assert owners == [2] * len(encoded[2].rows(scope)) + [0] * len(encoded[0].rows(scope))


def test_subject_that_ends_the_prompt_is_one_row_with_its_answer(tiny_model):
    encoded = encode_facts(tiny_model("llama"), FACTS, "subject+answer")
    assert encoded[2].subject == encoded[2].start
    assert len(encoded[2].rows("subject+answer")) == len(encoded[2].answer)


def test_facts_name_their_rows_and_their_source(tiny_model):
    model = tiny_model("llama")
    with pytest.raises(FactError, match="There is no fact to edit"):
        encode_facts(model, [])
    with pytest.raises(FactError, match="Training set, Row 5, prompt: the tokenizer makes no token"):
        encode_facts(model, [Fact(" ", "it", row=5)], within="Training set, ")


def test_tokenizer_that_tells_no_letters_places_no_subject(tiny_model, monkeypatch):
    model = tiny_model("llama")
    monkeypatch.setattr(type(model.tokenizer), "is_fast", False)
    assert encode_facts(model, FACTS)
    with pytest.raises(ModelError, match="a subject cannot be found in a prompt"):
        encode_facts(model, FACTS, "subject")
