"""Keys and value gradients are those of each prompt by itself, by plain autograd on the whole model."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy
from torch.testing import assert_close

from engine.errors import EditingError, NonFiniteError
from engine.model import FAMILIES, EditableModel, EditModule
from engine.prompts import SCOPES, EncodedPrompt, encode, encode_facts
from engine.trace import says_all, trace
from engine.trunk import TrunkCache
from tests.engine import tiny
from tests.engine.test_editors import chunked

PAIRS = [(fact.prompt, fact.target) for fact in tiny.FACTS]
LAYERS = [1, 3]


@pytest.fixture(scope="module")
def encoded(tiny_tokenizer):
    return encode(tiny_tokenizer, PAIRS, tiny.CONTEXT, ["a test"] * len(PAIRS))


def slow(model: EditableModel, modules: list[EditModule], item: EncodedPrompt) -> tuple[list[Tensor], list[Tensor]]:
    """(S, D_h) inputs and (S, D_g) gradients of one prompt: a zero is added to each output and differentiated."""
    keys, zeros, hooks = {}, {}, []

    def add_zero(module: EditModule):
        def hook(_module, args, output):
            keys[module.name] = args[0].detach().flatten(0, -2)
            zeros[module.name] = torch.zeros_like(output, requires_grad=True)
            return output + zeros[module.name]

        return hook

    for module in modules:
        hooks.append(model.lm.get_submodule(module.name).register_forward_hook(add_zero(module)))
    logits = model.lm(torch.tensor([item.ids])).logits[0]
    for hook in hooks:
        hook.remove()
    loss = cross_entropy(logits[item.start :], torch.tensor(item.answer), reduction="sum")
    gradients = torch.autograd.grad(loss, [zeros[module.name] for module in modules])
    return [keys[module.name] for module in modules], [gradient.flatten(0, -2) for gradient in gradients]


@pytest.mark.parametrize("scope", SCOPES)
@pytest.mark.parametrize("family", FAMILIES)
def test_rows_are_those_of_each_prompt_alone(tiny_model, family, scope):
    model = tiny_model(family)
    modules = model.edit_modules(LAYERS)
    encoded = encode_facts(model, tiny.FACTS, scope)
    seen, tokens = set(), 0
    for chunk in trace(model, modules, encoded, scope):
        tokens += chunk.tokens
        for index in chunk.owner.unique().tolist():
            keys, gradients = slow(model, modules, encoded[index])
            places = list(encoded[index].rows(scope))
            rows = chunk.owner == index
            seen.add(index)
            for l in range(len(modules)):
                assert chunk.keys[l].dtype is chunk.gradients[l].dtype is torch.float32
                assert_close(chunk.keys[l][rows], keys[l][places], rtol=1e-4, atol=1e-5)
                assert_close(chunk.gradients[l][rows], gradients[l][places], rtol=1e-3, atol=1e-5)
    assert seen == set(range(len(encoded)))
    assert tokens == sum(len(item.ids) for item in encoded)


def test_rows_do_not_depend_on_the_chunks(tiny_model, encoded):
    model = tiny_model("gptj")
    modules = model.edit_modules(LAYERS)
    small = EditableModel(model.lm, model.tokenizer, "x", replace(model.placement, tokens_per_chunk=1))
    large = EditableModel(model.lm, model.tokenizer, "x", replace(model.placement, tokens_per_chunk=10**6))
    several, (one,) = list(trace(small, modules, encoded, "answer")), list(trace(large, modules, encoded, "answer"))
    assert len(several) == len(encoded)
    assert torch.cat([chunk.owner for chunk in several]).tolist() == one.owner.tolist()
    assert sum(chunk.loss for chunk in several) == pytest.approx(one.loss, rel=1e-5)
    for l in range(len(modules)):
        assert_close(torch.cat([chunk.keys[l] for chunk in several]), one.keys[l], rtol=1e-4, atol=1e-5)
        assert_close(torch.cat([chunk.gradients[l] for chunk in several]), one.gradients[l], rtol=1e-3, atol=1e-5)


def test_chunks_fit_what_a_backward_pass_may_keep(tiny_model, encoded):
    model = tiny_model("llama")
    modules = model.edit_modules(LAYERS)
    small = EditableModel(model.lm, model.tokenizer, "x", replace(model.placement, tokens_per_chunk=10**6))
    assert len(list(trace(small, modules, encoded, "answer"))) == 1  # a CPU's memory sets no bound
    longest = max(len(item.ids) for item in encoded)
    small.activation_room = longest * small.activation_bytes(LAYERS[0])
    assert small.chunk_tokens(LAYERS[0]) == longest < small.chunk_tokens(model.layer_count - 1)
    chunks = list(trace(small, modules, encoded, "answer"))
    assert len(chunks) > 1 and sum(len(chunk.owner.unique()) for chunk in chunks) == len(encoded)
    small.activation_room = 0  # no room at all: still a prompt at a time, and torch says what is missing
    assert len(list(trace(small, modules, encoded, "answer"))) == len(encoded)


@pytest.mark.parametrize("family", ["gpt2", "gptj", "llama", "falcon"])
def test_kept_trunk_gives_the_same_rows(tiny_model, encoded, family):
    model = tiny_model(family)
    modules = model.edit_modules(LAYERS)
    cache = TrunkCache(model, LAYERS[0], encoded, 10**9)
    for members in ([4, 0, 2], [2, 1]):
        plain = list(trace(model, modules, encoded, "all", members))
        kept = list(trace(model, modules, encoded, "all", members, cache))
        assert [set(chunk.owner.tolist()) for chunk in plain] == [set(chunk.owner.tolist()) for chunk in kept]
        for one, other in zip(plain, kept):
            for l in range(len(modules)):
                assert_close(one.keys[l], other.keys[l], rtol=1e-4, atol=1e-5)
                assert_close(one.gradients[l], other.gradients[l], rtol=1e-3, atol=1e-5)


def test_tracing_leaves_no_hook_and_no_gradient_behind(tiny_model, encoded):
    model = tiny_model("llama")
    for _ in trace(model, model.edit_modules(LAYERS), encoded, "answer"):
        pass
    assert not any(module._forward_hooks for module in model.lm.modules())
    assert all(parameter.grad is None for parameter in model.lm.parameters())


def test_loss_that_is_not_finite_is_named_and_leaves_no_hook(tiny_tokenizer, encoded):
    model = tiny.build("llama", tiny_tokenizer)
    model.lm.get_output_embeddings().weight.data[3] = float("inf")
    with pytest.raises(NonFiniteError, match="cross-entropy is (nan|inf).*Nothing was edited"):
        list(trace(model, model.edit_modules(LAYERS), encoded, "answer"))
    assert not any(module._forward_hooks for module in model.lm.modules())


def test_unknown_scope_is_named(tiny_model, encoded):
    with pytest.raises(EditingError, match="Unknown scope 'some': choose answer, all, subject, subject\\+answer"):
        list(trace(tiny_model("llama"), tiny_model("llama").edit_modules(LAYERS), encoded, "some"))


def test_a_model_says_all_answers_or_one_is_missed(tiny_tokenizer):
    word, other, *_ = tiny.single_token_words(tiny_tokenizer)
    model = chunked(tiny.constant_model(tiny_tokenizer, word), 12)
    prompts = [fact.prompt for fact in tiny.FACTS]

    def says(answers: list[str]) -> tuple[bool, int]:
        encoded = encode(tiny_tokenizer, list(zip(prompts, answers)), tiny.CONTEXT, ["a test"] * len(answers))
        trunk = TrunkCache(model, 1, encoded, 0)
        seen = []
        return says_all(model, 1, encoded, lambda batch: seen.append(batch) or trunk(batch)), len(seen)

    known, chunks = says([word] * len(prompts))
    assert known and chunks > 1
    for missed in range(len(prompts)):
        known, looked = says([other if index == missed else word for index in range(len(prompts))])
        assert not known and looked <= chunks
    assert says([other] * len(prompts)) == (False, 1)
