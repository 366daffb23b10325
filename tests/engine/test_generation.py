"""What is generated is what each prompt alone would be answered, one greedy token after another."""

import math
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

from engine.delta import WeightDelta
from engine.errors import Cancelled, FactError
from engine.generation import (
    OWN_ANSWER_TOKENS,
    SHOWN_TOKENS,
    continuations,
    decoding_batches,
    own_answers,
    probe,
    said,
)
from engine.model import FAMILIES, EditableModel
from engine.prompts import encode, prompt_ids
from tests.engine import tiny
from tests.engine.test_model import assert_untouched, random_delta, weights

PROMPTS = ["Seen", "The capital of France is", "Who wrote the old play about Denmark?"]


def one_by_one(model: EditableModel, prompt: str, new: int) -> list[int]:
    """Greedy tokens without padding, cache or generate(), ended before the end token."""
    ids, said = model.tokenizer(prompt)["input_ids"], []
    with torch.no_grad():
        for _ in range(new):
            token = int(model.lm(torch.tensor([ids + said])).logits[0, -1].argmax())
            if token == model.tokenizer.eos_token_id:
                break
            said.append(token)
    return said


def text(model: EditableModel, tokens: list[int]) -> str:
    return model.tokenizer.decode(tokens, skip_special_tokens=True).strip()


def unchanged(model: EditableModel) -> WeightDelta:
    delta = random_delta(model)
    return replace(delta, shifts={name: torch.zeros_like(shift) for name, shift in delta.shifts.items()})


def continued(model: EditableModel, prompts, lengths, delta=None, *progress) -> list[str]:
    (rows,) = continuations(model, prompts, lengths, (delta,), *progress)
    return [said(model, tokens) for tokens in rows]


@pytest.mark.parametrize("family", FAMILIES)
def test_continuations_in_a_padded_batch_are_those_of_each_prompt_alone(tiny_model, family):
    model = tiny_model(family)
    wanted = [text(model, one_by_one(model, prompt, SHOWN_TOKENS)) for prompt in PROMPTS]
    assert continued(model, PROMPTS, [1, 1, 1]) == wanted


def test_a_model_that_does_not_mask_padding_decodes_each_prompt_alone(tiny_tokenizer):
    """The recurrence of RecurrentGemma reads what is masked out."""
    shape = {"lru_width": 16, "attention_window_size": 64, "head_dim": 8, "num_key_value_heads": 1}
    model = tiny.build("recurrent_gemma", tiny_tokenizer, pattern="model.layers.{}.mlp_block.down_proj", **shape)
    assert not model.first_pass.masks_padding
    wanted = [text(model, one_by_one(model, prompt, SHOWN_TOKENS)) for prompt in PROMPTS]
    assert continued(model, PROMPTS, [1, 1, 1]) == wanted


@pytest.mark.parametrize("family", FAMILIES)
def test_both_sides_decoded_together_are_those_of_each_set_of_weights(tiny_model, family):
    model = tiny_model(family)
    kept, delta = weights(model), random_delta(model, scale=2.0)
    end = [model.tokenizer.eos_token_id]  # all there is, where a model ends at once
    before = [one_by_one(model, prompt, 12) or end for prompt in PROMPTS]
    with model.edited(delta):
        after = [one_by_one(model, prompt, 12) or end for prompt in PROMPTS]
    assert continuations(model, PROMPTS, [12, 12, 12], (None, delta)) == [before, after]
    assert before != after
    assert continued(model, PROMPTS, [12, 12, 12], delta) == [text(model, tokens) for tokens in after]
    assert_untouched(model, kept)
    assert not any("forward" in module.__dict__ for module in model.lm.modules())


def test_longer_answers_get_more_tokens_up_to_a_limit(tiny_tokenizer):
    word = tiny.single_token_words(tiny_tokenizer)[0]
    model = tiny.constant_model(tiny_tokenizer, word)
    counts = [len(text.split()) for text in continued(model, ["Seen"] * 3, [1, 20, 500])]
    assert counts[1:] == [64, 64] and counts[0] == 64  # one batch, the longest answer decides
    assert [len(continued(model, ["Seen"], [n])[0].split()) for n in (1, 20, 500)] == [SHOWN_TOKENS, 20, 64]


@pytest.mark.parametrize(
    "own",
    [
        {"min_new_tokens": 20},
        {"no_repeat_ngram_size": 1},
        {"repetition_penalty": 1.7},
        {"suppress_tokens": list(range(60, 200))},
        {"guidance_scale": 1.5},
        {"stop_strings": ["e"]},
        {"return_dict_in_generate": True},
        {"num_beams": 2, "num_return_sequences": 2},
        {"penalty_alpha": 0.6, "top_k": 4},
    ],
    ids=lambda own: next(iter(own)),
)
def test_a_models_own_generation_settings_change_nothing_and_are_kept(tiny_tokenizer, own):
    for model in (tiny.build("llama", tiny_tokenizer), tiny.constant_model(tiny_tokenizer, tiny.END)):
        end = [model.tokenizer.eos_token_id]  # all there is, where a model ends at once
        wanted = [one_by_one(model, prompt, SHOWN_TOKENS) or end for prompt in PROMPTS]
        settings = model.lm.generation_config
        settings.update(**own)
        kept = settings.to_dict()
        assert continuations(model, PROMPTS, [1, 1, 1], (None, unchanged(model))) == [wanted, wanted]
        assert model.lm.generation_config is settings and settings.to_dict() == kept


@pytest.mark.parametrize("family", ["gpt2", "opt", "llama"])
def test_generation_ends_with_the_context(tiny_model, family):
    """Learned positions run out: a prompt that fills the context still gets its one next token."""
    model = tiny_model(family)
    digits = "0123456789" * 7  # a token each
    prompts = [digits[:n] for n in (tiny.CONTEXT, tiny.CONTEXT - 3, 5)]
    assert [len(model.tokenizer(prompt)["input_ids"]) for prompt in prompts] == [64, 61, 5]
    tokens = [one_by_one(model, prompt, n) for prompt, n in zip(prompts, (1, 4, 8))]
    wanted = [text(model, row) for row in tokens]
    assert continued(model, prompts, [1, 1, 1]) == wanted
    assert continuations(model, prompts, [1, 1, 1], (None, unchanged(model)))[1] == tokens
    assert probe(model, prompts[1], None).before.text.strip() == wanted[1]


def test_a_long_prompt_pads_no_short_ones_and_everything_comes_back_in_its_place(tiny_model, monkeypatch):
    model = tiny_model("llama")
    prompts, shapes = [*PROMPTS, "1234567890" * 5, *PROMPTS, "0987654321" * 4], []
    generate = model.lm.generate
    monkeypatch.setattr(model.lm, "generate", lambda **own: shapes.append(own["input_ids"].shape) or generate(**own))
    rows = continuations(model, prompts, [1, 3, 9, 1, 9, 3, 1, 9], (None, unchanged(model)))
    assert shapes == [(12, max(len(ids) for ids in prompt_ids(model.tokenizer, PROMPTS))), (4, 50)]
    for side in rows:
        for prompt, tokens in zip(prompts, side):
            wanted = one_by_one(model, prompt, 9)
            assert tokens == wanted[: len(tokens)] and (len(tokens) >= SHOWN_TOKENS or tokens == wanted)


def test_prompts_are_decoded_together_as_far_as_their_padded_size_allows(tiny_model):
    known = tiny_model("llama")
    model = SimpleNamespace(placement=known.placement, context=2048, first_pass=known.first_pass)
    lengths, answers = [12] * 70 + [340, 20] * 3 + [1500, 1000, 2048], [1, 5] * 38 + [1, 1, 9]
    batches = decoding_batches(model, lengths, answers[: len(lengths)], 2)
    assert sorted(index for members in batches for index in members) == list(range(len(lengths)))
    found = [[lengths[index] for index in members] for members in batches]
    assert [len(own) for own in found] == [32, 32, 9, 3, 1, 1, 1]
    assert sum(2 * len(own) * max(own) for own in found) < 1.2 * 2 * sum(lengths)


@pytest.mark.parametrize("heard", [1, 4])
def test_cancelled_generation_leaves_the_model_as_it_was(tiny_model, heard):
    """It is heard before a batch and at each of its steps."""
    model = tiny_model("gpt2")
    before, config = weights(model), model.lm.generation_config
    wanted = continuations(model, PROMPTS, [1, 1, 1], (None,))
    for sides in ((random_delta(model),), (None, random_delta(model))):
        told = []

        def cancel(*given):
            told.append(given)
            if len(told) == heard:
                raise Cancelled

        with pytest.raises(Cancelled):
            continuations(model, PROMPTS, [1, 1, 1], sides, cancel)
        assert told == [("Generating", 3 * step // SHOWN_TOKENS, 3) for step in range(heard)]
    assert_untouched(model, before)
    assert not any("forward" in module.__dict__ or module._forward_pre_hooks for module in model.lm.modules())
    assert model.lm.generation_config is config and continuations(model, PROMPTS, [1, 1, 1], (None,)) == wanted


def test_a_cancel_is_heard_while_the_model_is_asked_for_its_own_answers(tiny_model):
    model, told = tiny_model("llama"), []
    encoded = encode(model.tokenizer, [(prompt, "?") for prompt in PROMPTS], 64, PROMPTS)
    own_answers(model, encoded, [None] * 3, lambda *given: told.append(given))
    assert told == [("Asking", 0, 3)] * (OWN_ANSWER_TOKENS + 1)


def test_own_answers_are_the_models_first_words(tiny_model):
    model = tiny_model("llama")
    encoded = encode(model.tokenizer, [(prompt, "? ? ?") for prompt in PROMPTS], 64, PROMPTS)
    known = [None, one_by_one(model, PROMPTS[1], OWN_ANSWER_TOKENS + 3), None]
    for prompt, item in zip(PROMPTS, own_answers(model, encoded, known)):
        words = one_by_one(model, prompt, OWN_ANSWER_TOKENS)
        assert list(item.answer) == words and len(words) == OWN_ANSWER_TOKENS
        assert list(item.ids) == model.tokenizer(prompt)["input_ids"] + words[:-1]


def test_model_that_only_ends_answers_with_the_end(tiny_tokenizer):
    model = tiny.constant_model(tiny_tokenizer, tiny.END)
    assert continued(model, ["Seen"], [3]) == [""]
    (item,) = own_answers(model, encode(tiny_tokenizer, [("Seen", "?")], 64, ["Seen"]), [None])
    assert item.answer == (tiny_tokenizer.eos_token_id,)


@pytest.mark.parametrize("family", FAMILIES)
def test_probe_shows_the_likeliest_next_tokens(tiny_model, family):
    model = tiny_model(family)
    found = probe(model, PROMPTS[1] + "  ", None, new_tokens=6)
    with torch.no_grad():
        chances = model.lm(torch.tensor([model.tokenizer(PROMPTS[1])["input_ids"]])).logits[0, -1].float().softmax(0)
    wanted = chances.topk(5)
    assert [token for token, _ in found.before.top] == [model.tokenizer.decode([t]) for t in wanted.indices]
    assert [chance for _, chance in found.before.top] == pytest.approx(wanted.values.tolist(), rel=1e-4)
    assert found.before.text.strip() == text(model, one_by_one(model, PROMPTS[1], 6))
    assert found.after is None


def test_probe_shows_both_sides_of_an_edit(tiny_tokenizer):
    old, new = tiny.single_token_words(tiny_tokenizer)[:2]
    model = tiny.constant_model(tiny_tokenizer, old)
    found = probe(model, "Seen", tiny.say(model, new), new_tokens=3, top=2)
    assert (found.before.text, found.after.text) == (f" {old}" * 3, f" {new}" * 3)
    assert [token for token, _ in found.after.top] == [f" {new}", f" {old}"]
    first, second = (chance for _, chance in found.after.top)
    assert math.log(first / second) == pytest.approx(5, abs=1e-3)


@pytest.mark.parametrize("prompt", ["", "   ", "\n"])
def test_empty_prompt_is_named(tiny_model, prompt):
    with pytest.raises(FactError, match="prompt is empty"):
        probe(tiny_model("llama"), prompt, None)


def test_prompt_longer_than_the_context_is_named(tiny_model):
    with pytest.raises(FactError, match=r"The prompt has \d+ tokens; the model's context holds 64. Shorten it"):
        probe(tiny_model("llama"), "so " * 64, None)
