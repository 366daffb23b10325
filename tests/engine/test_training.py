"""One training step: the outer loss and its weight gradients are those of plain autograd on the edited model."""

from dataclasses import replace

import pytest
import torch
from torch.nn.functional import cross_entropy, kl_div

from engine.delta import WeightDelta
from engine.errors import EditingError, FactError, NonFiniteError
from engine.facts import Fact
from engine.model import EditableModel
from engine.prompts import encode
from engine.row_cache import RowCache
from engine.trace import trace
from engine.training import Reading, gather_rows, hypernet_gradient, outer_loss, solve_rows
from engine.training_data import TrainingData
from tests.engine import tiny
from tests.engine.test_model import assert_untouched, random_delta, weights

LAYERS = [1, 3]


def slow_outer_loss(model: EditableModel, delta: WeightDelta, facts: list[Fact], outer_prompts: str, kappa: float):
    """(L_equiv, L_unrel, weight gradients in their stored layout), every prompt alone, through the whole model."""
    places = {module.name: model.lm.get_submodule(module.name) for module in model.edit_modules_named(delta.shifts)}
    originals = {name: place.weight for name, place in places.items()}

    def encoded(pairs):
        return encode(model.tokenizer, pairs, 64, ["it"] * len(pairs))

    equivalents, unrelated = [], []
    for fact in facts:
        mine = [(prompt, fact.target) for prompt in fact.equivalent]
        if outer_prompts == "equivalent+edit" or not mine:
            mine.append((fact.prompt, fact.target))
        equivalents += mine
        unrelated += [pair for pair in fact.unrelated if pair[1]]
    with torch.no_grad():
        said = [
            model.lm(torch.tensor([item.ids])).logits[0, item.start :].log_softmax(1) for item in encoded(unrelated)
        ]
    with model.edited(delta):
        shifted = {name: place.weight.detach().requires_grad_() for name, place in places.items()}
        for name, place in places.items():
            place.weight = torch.nn.Parameter(shifted[name])
        parameters = [place.weight for place in places.values()]
        equivalent = torch.zeros(())
        for item in encoded(equivalents):
            logits = model.lm(torch.tensor([item.ids])).logits[0, item.start :]
            equivalent = equivalent + cross_entropy(logits, torch.tensor(item.answer), reduction="sum")
        divergence = torch.zeros(())
        for item, before in zip(encoded(unrelated), said):
            logits = model.lm(torch.tensor([item.ids])).logits[0, item.start :].log_softmax(1)
            divergence = divergence + kl_div(logits, before, log_target=True, reduction="sum")
        equivalent, divergence = equivalent / len(equivalents), divergence / len(unrelated)
        gradients = torch.autograd.grad(equivalent + kappa * divergence, parameters)
    assert all(places[name].weight is weight for name, weight in originals.items())
    return equivalent.item(), divergence.item(), gradients


@pytest.mark.parametrize("outer_prompts", ["equivalent", "equivalent+edit"])
@pytest.mark.parametrize("family", ["gpt2", "gptj", "llama"])
def test_outer_loss_is_that_of_each_prompt_alone(tiny_model, family, outer_prompts):
    model = tiny_model(family)
    before, delta = weights(model), random_delta(model, LAYERS, scale=0.3)
    data = TrainingData(model, tiny.FACTS, model.edit_modules(LAYERS), outer_prompts, 10**8)
    for members in ([0, 1, 2, 3, 4], [1, 2], [0, 3, 4]):  # again and in part: from the kept trunk
        found = outer_loss(model, delta, data, members, kappa=0.7)
        facts = [tiny.FACTS[index] for index in members]
        equivalent, divergence, gradients = slow_outer_loss(model, delta, facts, outer_prompts, 0.7)
        assert found.equivalent == pytest.approx(equivalent, rel=1e-4)
        assert found.unrelated == pytest.approx(divergence, rel=1e-3)
        for module, mine, theirs in zip(model.edit_modules(LAYERS), found.gradients, gradients):
            assert mine.shape == (module.d_h, module.d_g)
            torch.testing.assert_close(mine.T if module.transposed else mine, theirs, rtol=1e-3, atol=1e-5)
    assert_untouched(model, before)


@pytest.mark.parametrize("autocast", [False, True])
def test_all_that_the_unedited_model_makes_of_the_prompts_is_kept_where_there_is_room(tiny_model, autocast):
    """Under autocast hidden states are float32, whatever the products are computed in."""
    model = tiny_model("llama")
    dtype = torch.bfloat16 if autocast else torch.float32
    placement = replace(model.placement, dtype=dtype, autocast=autocast)
    model = EditableModel(model.lm, model.tokenizer, model.name, placement)
    data = TrainingData(model, tiny.FACTS, model.edit_modules(LAYERS), "equivalent", 10**8)
    outer_loss(model, random_delta(model, LAYERS), data, list(range(len(tiny.FACTS))), kappa=1.0)
    for trunk, prompts in ((data.equivalent_trunk, data.equivalents), (data.unrelated_trunk, data.unrelated)):
        assert len(trunk._first) == len(prompts)
    assert len(data._states) == len(data.unrelated)


def test_facts_without_unrelated_answers_have_no_unrelated_loss(tiny_model):
    model = tiny_model("llama")
    fact = Fact("Seen", "twice", ("Seen it",), (("Heard", ""),))
    data = TrainingData(model, [fact], model.edit_modules(LAYERS), "equivalent", 0)
    found = outer_loss(model, random_delta(model, LAYERS), data, [0], kappa=1.0)
    assert found.unrelated == 0 and found.equivalent > 0


def test_fact_without_equivalent_prompts_is_its_own(tiny_model):
    model = tiny_model("llama")
    data = TrainingData(model, [replace(tiny.FACTS[0], equivalent=())], model.edit_modules(LAYERS), "equivalent", 0)
    assert data.equivalents == data.edits and data.equivalents_of == [[0]]


def test_step_down_the_gradient_lowers_the_outer_loss(tiny_model):
    """The gradient of ⟨P, G⟩ is one of the outer loss itself: a small step along it makes the edit better."""
    model, reading = tiny_model("llama"), Reading(projection="off")
    hypernet = tiny.random_hypernet(model)
    data = TrainingData(model, tiny.FACTS, hypernet.modules_edited, "equivalent+edit", 10**8)
    members = list(range(len(tiny.FACTS)))

    def loss() -> float:
        rows = gather_rows(hypernet, data, members, reading)
        sums, solution = solve_rows(hypernet, rows, reading)
        shifts = {m.name: shift for m, shift in zip(hypernet.modules_edited, solution.shifts)}
        outer = outer_loss(model, WeightDelta(shifts, model.sha256, "malmen"), data, members, 1.0)
        hypernet.zero_grad()
        hypernet_gradient(hypernet, rows, sums, solution, outer.gradients, reading)
        return outer.equivalent + outer.unrelated

    loss()
    losses = []
    for _ in range(4):
        for normaliser in hypernet.normalisers:  # held still: the loss of one hypernetwork is asked for
            normaliser.update = lambda rows: None
        losses.append(loss())
        with torch.no_grad():
            for parameter in hypernet.parameters():
                if parameter.grad is not None:
                    parameter -= 2e-3 * parameter.grad / max(parameter.grad.norm(), 1.0)
    assert losses == sorted(losses, reverse=True) and losses[-1] < losses[0]


def test_gathered_rows_enter_the_normalisers_first(tiny_model):
    model = tiny_model("gpt2")
    hypernet = tiny.random_hypernet(model)
    data = TrainingData(model, tiny.FACTS, hypernet.modules_edited, "equivalent", 0)
    before = [float(normaliser.count) for normaliser in hypernet.normalisers]
    rows = gather_rows(hypernet, data, [0, 1], Reading())
    answers = sum(len(data.edits[index].answer) for index in (0, 1))
    assert [float(normaliser.count) for normaliser in hypernet.normalisers] == [count + answers for count in before]
    for l, module in enumerate(hypernet.modules_edited):
        assert rows.keys[l].shape == (answers, module.d_h) and rows.gradients[l].shape == (answers, module.d_g)
        wanted = hypernet.scaled_gradient(l, rows.keys[l], rows.gradients[l])
        torch.testing.assert_close(rows.scaled[l], wanted, rtol=1e-5, atol=1e-7)
        assert not rows.scaled[l].requires_grad


def test_rows_of_a_further_round_are_those_of_the_weights_before_and_no_normaliser_sees_them(tiny_model):
    model = tiny_model("gpt2")
    hypernet = tiny.random_hypernet(model)
    data = TrainingData(model, tiny.FACTS, hypernet.modules_edited, "equivalent", 10**8)
    rows = gather_rows(hypernet, data, [3, 1], Reading())
    _, solution = solve_rows(hypernet, rows, Reading())
    shifts = {module.name: shift for module, shift in zip(hypernet.modules_edited, solution.shifts)}
    before = WeightDelta(shifts, model.sha256, "agrade")
    seen = [float(normaliser.count) for normaliser in hypernet.normalisers]
    again = gather_rows(hypernet, data, [3, 1], Reading(), before)
    assert [float(normaliser.count) for normaliser in hypernet.normalisers] == seen
    with model.edited(before):
        alone = [next(trace(model, hypernet.modules_edited, data.edits, "answer", [index])) for index in (3, 1)]
    for l in range(len(shifts)):
        for mine, theirs in ((again.keys, "keys"), (again.gradients, "gradients")):
            wanted = torch.cat([getattr(chunk, theirs)[l] for chunk in alone])
            torch.testing.assert_close(mine[l], wanted, rtol=1e-4, atol=1e-6)
    assert not torch.equal(again.gradients[-1], rows.gradients[-1])


@pytest.mark.parametrize("room", [0, 20_000, 10**8])
def test_kept_rows_are_the_traced_ones_in_the_order_asked_for(tiny_model, room):
    model = tiny_model("llama")
    modules = model.edit_modules(LAYERS)
    encoded = encode(model.tokenizer, [(f.prompt, f.target) for f in tiny.FACTS], 64, ["a fact"] * len(tiny.FACTS))
    cache = RowCache(model, modules, encoded, room)
    for members, scope in (([3, 0], "all"), ([0, 4, 3, 1], "all"), ([0, 4, 3, 1], "all"), ([3, 0], "answer")):
        alone = [next(trace(model, modules, encoded, scope, [index])) for index in members]
        for l, rows in enumerate(cache(members, scope)):
            wanted = torch.cat([torch.cat((chunk.keys[l], chunk.gradients[l]), dim=1) for chunk in alone])
            torch.testing.assert_close(rows, wanted, rtol=1e-4, atol=1e-6)
        assert cache.room >= 0
    assert (cache.room == room) == (room == 0)


def test_rows_that_are_kept_are_not_traced_again(tiny_model, monkeypatch):
    model = tiny_model("llama")
    encoded = encode(model.tokenizer, [("Seen", "twice"), ("Heard", "once")], 64, ["a fact"] * 2)
    cache = RowCache(model, model.edit_modules(LAYERS), encoded, 10**8)
    first = cache([0, 1], "answer")
    monkeypatch.setattr("engine.row_cache.trace", None)
    assert all(torch.equal(mine, theirs) for mine, theirs in zip(cache([0, 1], "answer"), first))


def test_outer_loss_that_is_not_finite_is_named(tiny_tokenizer):
    model = tiny.build("llama", tiny_tokenizer)
    data = TrainingData(model, tiny.FACTS, model.edit_modules(LAYERS), "equivalent", 0)
    model.lm.get_output_embeddings().weight.data[5] = float("nan")
    before = weights(model)
    with pytest.raises(NonFiniteError, match="outer loss is not finite: lower the learning rate"):
        outer_loss(model, random_delta(model, LAYERS), data, [0], 1.0)
    assert_untouched(model, before)


def test_unusable_training_sets_are_named(tiny_model):
    model = tiny_model("llama")
    modules = model.edit_modules(LAYERS)
    with pytest.raises(FactError, match="training set holds no facts"):
        TrainingData(model, [], modules, "equivalent", 0)
    with pytest.raises(FactError, match="Training set, equivalent prompt 2: .* tokens"):
        TrainingData(model, [Fact("Seen", "it", ("Seen", "so " * 64))], modules, "equivalent", 0)
    with pytest.raises(EditingError, match="Unknown outer_prompts"):
        TrainingData(model, tiny.FACTS, modules, "all", 0)
