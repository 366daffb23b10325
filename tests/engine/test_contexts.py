"""The prompts of a fact, and the token that ends its subject in each of them."""

import pytest
import torch

from engine.contexts import OPENINGS, PREFIX_TOKENS, make_contexts, make_prefixes, subject_states
from engine.errors import FactError, ModelError, NonFiniteError
from engine.facts import Fact
from engine.sampling import sample
from engine.subjects import find_subjects
from engine.trunk import TrunkCache
from tests.engine import locate, tiny

PREFIXES = ["So it is. ", "It was said, by him. "]


def test_subject_ends_at_its_last_token_in_every_context(tiny_model):
    model = tiny_model("llama")
    contexts = make_contexts(model, tiny.FACTS, find_subjects(tiny.FACTS)[0], PREFIXES)
    assert contexts.asking == 3 and len(contexts.encoded) == len(contexts.subjects) == 4 * len(tiny.FACTS)
    for number, fact in enumerate(tiny.FACTS):
        *asking, essence = contexts.members(number)
        for prefix, index in zip(["", *PREFIXES], asking):
            item, slow = contexts.encoded[index], locate.ask(model, prefix + fact.prompt, fact.target, fact.subject)
            assert (list(item.ids), list(item.answer)) == (slow.ids, slow.answer)
            assert contexts.subjects[index] == slow.subject
            said = model.tokenizer.decode(item.ids[: contexts.subjects[index] + 1])
            assert said.startswith(prefix) and said.endswith(fact.subject)
        assert model.tokenizer.decode(contexts.encoded[essence].ids) == fact.subject
        assert contexts.encoded[essence].start == contexts.subjects[essence]


def test_context_that_is_too_long_is_named_with_its_prefix(tiny_model):
    fact = Fact("Ulm " * 45, "it is", subject="Ulm", row=3)
    with pytest.raises(FactError, match="Row 3, prompt behind the prefix “So so.*”: .* context holds 64. Shorten it"):
        make_contexts(tiny_model("llama"), [fact], find_subjects([fact])[0], ["So so so so so so. " * 2])


def test_tokenizer_without_letters_is_named(tiny_model, monkeypatch):
    model = tiny_model("llama")
    monkeypatch.setattr(type(model.tokenizer), "is_fast", False)
    with pytest.raises(ModelError, match="Load the model with its fast tokenizer"):
        make_contexts(model, tiny.FACTS, find_subjects(tiny.FACTS)[0], PREFIXES)


def test_prefixes_are_the_models_own_and_the_seeds(tiny_model):
    model = tiny_model("gpt2")
    prefixes = make_prefixes(model, 0)
    assert prefixes == make_prefixes(model, 0) != make_prefixes(model, 1)
    for opening, prefix in zip(OPENINGS, prefixes, strict=True):
        assert prefix.startswith(opening) and prefix.endswith(". ") and prefix.isprintable()
        assert len(prefix) >= len(opening) + 2
    assert PREFIX_TOKENS == 10


def test_sampled_text_follows_the_models_own_distribution(tiny_model):
    """Over many draws, the share of each next token is its probability; `top` leaves the likeliest only."""
    model = tiny_model("gptj")
    ids = torch.tensor([[5, 9, 3]]).repeat(4000, 1)
    drawn = sample(model, ids, 1, torch.Generator().manual_seed(0))
    assert drawn.shape == (4000, 4) and torch.equal(drawn[:, :3], ids)
    with torch.no_grad():
        wanted = model.lm(ids[:1]).logits[0, -1].softmax(0)
    found = torch.bincount(drawn[:, 3], minlength=len(wanted)) / len(ids)
    assert (found - wanted).abs().max() < 4 * (0.25 / len(ids)) ** 0.5
    top = sample(model, ids, 1, torch.Generator().manual_seed(0), top=3)[:, 3]
    assert set(top.tolist()) == set(wanted.topk(3).indices.tolist())


def test_sampled_tokens_continue_what_was_drawn_before(tiny_model):
    """The kept keys and values give the logits of the whole text: greedy by top=1 is the argmax at every place."""
    model = tiny_model("llama")
    calls = []
    drawn = sample(model, torch.tensor([[5, 9], [7, 1]]), 6, torch.Generator(), top=1, each=calls.append)
    with torch.no_grad():
        assert torch.equal(model.lm(drawn).logits[:, 1:-1].argmax(-1), drawn[:, 2:])
    assert calls == [3, 4, 5, 6, 7, 8]


def test_model_that_overflows_when_sampled_is_named(tiny_tokenizer):
    model = tiny.build("llama", tiny_tokenizer)
    model.lm.get_output_embeddings().weight.data[5] = float("nan")
    with pytest.raises(NonFiniteError, match="overflows in torch.float32 when it writes text.*Nothing was edited"):
        make_prefixes(model, 0)


def test_states_come_in_the_order_asked_for(tiny_model):
    model = tiny_model("llama")
    contexts = make_contexts(model, tiny.FACTS, find_subjects(tiny.FACTS)[0], PREFIXES)
    module = model.lm.get_submodule(model.edit_modules([2])[0].name)
    members = [5, 0, 13, 2]
    trunk = TrunkCache(model, 1, contexts.encoded, 10**6)
    entered, left = subject_states(model, contexts, members, module, trunk)
    for row, index in enumerate(members):
        one = locate.Asked(list(contexts.encoded[index].ids), [], contexts.subjects[index])
        wanted = locate.seen(model, one, module)
        torch.testing.assert_close(entered[row], wanted[0], rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(left[row], wanted[1], rtol=1e-4, atol=1e-5)
