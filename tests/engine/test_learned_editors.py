"""What the editors with a hypernetwork keep to: the literal equations, their settings, their rounds, a checkpoint that fits."""

from dataclasses import replace

import pytest
import torch

from engine import old_keys
from engine.checkpoint import Checkpoint
from engine.editors import EDITORS
from engine.errors import Cancelled, CheckpointError, FactError, ModelError, NonFiniteError
from engine.facts import Fact, with_equivalents
from engine.generation import own_answers
from engine.hypernet import HyperNet
from engine.model import EditableModel, EditModule
from engine.recorder import Recorder
from tests.engine import reference, tiny
from tests.engine.reference import Equations
from tests.engine.test_editors import FACTS, FAMILIES, LEARNED, assert_same, make
from tests.engine.test_model import assert_untouched, weights
from tests.engine.test_trace import encode, slow

SOLVED = [name for name in LEARNED if "coefficient" in EDITORS[name].Settings.__dataclass_fields__]


@pytest.fixture(params=FAMILIES)
def model(request, tiny_model) -> EditableModel:
    return tiny_model(request.param)


def with_old_keys(model: EditableModel, name: str) -> Checkpoint:
    """A checkpoint whose training had old keys in M."""
    checkpoint = tiny.random_checkpoint(model, name)
    return replace(checkpoint, hypernet=tiny.random_hypernet(model, directions=6).requires_grad_(False))


@pytest.mark.parametrize("trained_so", (False, True), ids=("", "old keys"))
@pytest.mark.parametrize("name", LEARNED)
def test_edit_is_the_literal_one(model, name, trained_so):
    """The whole way, tokens to Δθ, against slow rows of each prompt alone and the literal equations."""
    editor = make(name, model, *([with_old_keys(model, name)] if trained_so else []))
    hypernet = editor.checkpoint.hypernet
    modules = list(hypernet.modules_edited)
    encoded = encode(model.tokenizer, [(f.prompt, f.target) for f in FACTS], 64, [""] * len(FACTS))
    rows = [slow(model, modules, item) for item in encoded]
    seen = [torch.cat([torch.cat((keys[l], gradients[l]), 1) for keys, gradients in rows]) for l in range(len(modules))]
    answers = [slice(item.start, None) for item in encoded]
    H = [torch.cat([keys[l][part] for (keys, _), part in zip(rows, answers)]).double() for l in range(len(modules))]
    dG = [torch.cat([grads[l][part] for (_, grads), part in zip(rows, answers)]).double() for l in range(len(modules))]
    tensors = {key: tensor.double() for key, tensor in hypernet.state_dict().items()}
    shapes = [(module.d_h, module.d_g) for module in modules]
    old = tuple(keys.double() for keys in hypernet.old_keys)
    parameters = reference.Parameters(tensors, shapes, [part.double() for part in seen], old)
    wanted = reference.weight_shifts(parameters, H, dG, Equations(editor.reading(), least_squares=name != "mend"))
    found = editor.edit(model, FACTS).delta.shifts
    for module, shift in zip(modules, wanted):
        error = torch.linalg.vector_norm(found[module.name].double() - shift) / torch.linalg.vector_norm(shift)
        assert error <= 1e-3, f"{module.name}: {float(error):.1e}"


@pytest.mark.parametrize("name", LEARNED)
def test_old_keys_stand_in_m_unless_they_are_left_out(model, name):
    plain, trained = tiny.random_checkpoint(model, name), with_old_keys(model, name)
    without = make(name, model, plain).edit(model, FACTS)
    if name == "mend":  # it has no M
        assert_same(make(name, model, trained).edit(model, FACTS), without)
        return
    assert make(name, model, trained).edit(model, FACTS).delta.norm < 0.99 * without.delta.norm
    assert_same(make(name, model, trained, old_keys=False).edit(model, FACTS), without)


@pytest.mark.parametrize("name", SOLVED)
@pytest.mark.parametrize("weight", [0.5, 10.0], ids=("few rows", "more rows than a key is wide"))
def test_the_facts_own_unrelated_prompts_stand_in_m(model, name, weight, monkeypatch):
    """As old keys do: each prompt alone, at the positions that predict its answer."""
    monkeypatch.setattr(old_keys, "KEPT_WEIGHT", weight)
    facts = [replace(fact, unrelated=tuple(pair for pair in fact.unrelated if pair[1])) for fact in FACTS]
    modules = list(tiny.random_checkpoint(model, name).hypernet.modules_edited)
    pairs = [pair for fact in facts for pair in fact.unrelated]
    encoded = encode(model.tokenizer, pairs, 64, [""] * len(pairs))
    rows = [slow(model, modules, item)[0] for item in encoded]
    count = sum(len(item.answer) for item in encoded)
    checkpoint = replace(
        tiny.random_checkpoint(model, name), hypernet=tiny.random_hypernet(model, directions=count).requires_grad_(False)
    )
    for l, keys in enumerate(checkpoint.hypernet.old_keys):
        share = min(weight, modules[l].d_h / count)
        assert (share < weight) == (weight == 10.0)
        keys.copy_(share**0.5 * torch.cat([own[l][item.start :] for own, item in zip(rows, encoded)]))
    wanted = make(name, model, checkpoint).edit(model, facts)
    found = make(name, model, checkpoint, old_keys=False, keep_unrelated=True).edit(model, facts)
    assert_same(found, wanted, 1e-4)
    plain = make(name, model, checkpoint, old_keys=False).edit(model, facts)
    assert found.delta.norm != pytest.approx(plain.delta.norm, rel=1e-3)
    [told] = set(found.notes) - set(plain.notes)
    assert "told of the unrelated prompts" in told
    assert found.tokens == plain.tokens + sum(len(item.ids) for item in encoded)
    looks: list[int] = []
    make(name, model, checkpoint, keep_unrelated=True).edit(model, facts, lambda _stage, done, _total: looks.append(done))
    assert looks == sorted(looks) and looks[-1] == found.tokens and plain.tokens < looks[-1]
    assert looks.count(plain.tokens) >= 2, "no look between the kept prompts, at which a cancel would be heard"


@pytest.mark.parametrize("name", SOLVED)
def test_an_unrelated_prompt_without_answer_is_kept_to_what_the_model_says(tiny_model, name):
    model = tiny_model("llama")
    prompt = "The old river in"
    (bare,) = encode(model.tokenizer, [(prompt, "?")], 64, [""])
    (own,) = own_answers(model, [bare], [None])
    open_ended = [replace(FACTS[0], unrelated=((prompt, ""),))]
    [found] = old_keys.unrelated_prompts(model, open_ended)
    assert found == own
    edit = make(name, model, keep_unrelated=True)
    plain = make(name, model).edit(model, open_ended)
    assert edit.edit(model, open_ended).delta.norm != pytest.approx(plain.delta.norm, rel=1e-3)
    none = [replace(FACTS[0], unrelated=())]
    assert_same(edit.edit(model, none), make(name, model).edit(model, none))
    assert edit.edit(model, none).notes == []

    def stop(stage: str, _done: int, _total: int) -> None:
        if stage == "Asking":
            raise Cancelled

    with pytest.raises(Cancelled):
        edit.edit(model, open_ended, stop)
    assert edit.work(model, open_ended).forward > edit.work(model, none).forward
    assert edit.work(model, open_ended).backward == edit.work(model, none).backward
    assert edit.work(model, open_ended).steps > edit.work(model, none).steps == 0


def test_agrade_reads_eq4_as_trained_unless_told_otherwise(model):
    trained = {reading: tiny.random_checkpoint(model, projection=reading) for reading in reference.READINGS}
    shifts = {reading: make("agrade", model, trained[reading]).edit(model, FACTS) for reading in trained}
    for reading, edit in shifts.items():
        asked = make("agrade", model, trained["scaled"], projection=reading).edit(model, FACTS)
        assert_same(edit, asked)
        assert edit.delta.info["projection"] == reading
        kept = [figures["kept_by_eq4"] for figures in edit.per_module]
        if reading in ("scaled", "projected"):
            assert kept[0] == 1.0 and 0 < kept[1] < 1 and 0 < kept[2] < 1
        else:
            assert kept == [1.0] + [1.0 if reading == "off" else None] * 2, "of the first one nothing is taken away"
    last = list(shifts["off"].delta.shifts)[-1]
    distinct = {tuple(edit.delta.shifts[last].flatten().tolist()) for edit in shifts.values()}
    assert len(distinct) == len(reference.READINGS)


def test_malmen_is_agrade_without_eq4(model):
    checkpoint = tiny.random_checkpoint(model)
    malmen = make("malmen", model, checkpoint).edit(model, FACTS)
    assert_same(malmen, make("agrade", model, checkpoint, projection="off").edit(model, FACTS))


@pytest.mark.parametrize("name", SOLVED)
@pytest.mark.parametrize("switch", ["coefficient", "regularisation"])
def test_ablation_trained_in_holds_at_the_edit(tiny_model, name, switch):
    model = tiny_model("llama")
    plain = make(name, model).edit(model, FACTS)
    asked = make(name, model, **{switch: False}).edit(model, FACTS)
    trained = make(name, model, tiny.random_checkpoint(model, name, **{switch: False})).edit(model, FACTS)
    assert_same(asked, trained)
    with pytest.raises(AssertionError):
        assert_same(plain, asked, 1e-2)


@pytest.mark.parametrize("name", [*LEARNED, "ultraedit"])
@pytest.mark.parametrize("scope", ["subject", "subject+answer"])
def test_rows_at_subjects_do_without_an_unclear_one_and_say_so(tiny_model, name, scope):
    model = tiny_model("llama")
    clear = make(name, model, scope=scope)
    assert not clear.notes(FACTS) and not clear.edit(model, FACTS).notes
    facts = [*FACTS, Fact("the old river", "flows", row=9)]
    [note] = clear.notes(facts)
    assert "in row 9" in note and note in clear.edit(model, facts).notes
    assert not make(name, model, scope="all").notes(facts)


@pytest.mark.parametrize("name", LEARNED)
def test_step_scale_and_scope_do_what_they_say(tiny_model, name):
    model = tiny_model("gpt2")
    plain = make(name, model).edit(model, FACTS)
    half = make(name, model, step_scale=0.5).edit(model, FACTS)
    assert half.delta.norm == pytest.approx(plain.delta.norm / 2)
    every = make(name, model, scope="all").edit(model, FACTS)
    trained = make(name, model, tiny.random_checkpoint(model, name, scope="all")).edit(model, FACTS)
    assert_same(every, trained)
    assert every.delta.info["scope"] == "all" and plain.delta.info["scope"] == "answer"
    assert every.delta.norm != pytest.approx(plain.delta.norm, rel=1e-2)


@pytest.mark.parametrize("name", LEARNED)
def test_of_few_facts_the_step_is_as_long_as_the_card_says_unless_it_is_set(tiny_model, name):
    model, checkpoint = tiny_model("gpt2"), tiny.random_checkpoint(tiny_model("gpt2"), name)
    plain = make(name, model, checkpoint).edit(model, FACTS[:1])
    checkpoint.card["step_scales"] = [[1, 3.0], [2, 1.0]]
    few = make(name, model, checkpoint).edit(model, FACTS[:1])
    assert few.delta.norm == pytest.approx(3 * plain.delta.norm) and few.delta.info["step_scale"] == 3.0
    assert_same(make(name, model, checkpoint, step_scale=1.0).edit(model, FACTS[:1]), plain)
    assert make(name, model, checkpoint).edit(model, FACTS[:2]).delta.info["step_scale"] == 1.0


@pytest.mark.parametrize("name", LEARNED)
def test_equivalent_prompts_can_be_taught_and_the_record_is_of_the_facts_alone(tiny_model, name, tmp_path):
    model, shown = tiny_model("llama"), with_equivalents(FACTS)
    assert len(shown) > len(FACTS)
    plain, teaching = (make(name, model, teach_equivalent=teach) for teach in (False, True))
    taught = teaching.edit(model, FACTS)
    assert_same(taught, plain.edit(model, shown))
    assert teaching.work(model, FACTS) == plain.work(model, shown)
    assert "shown the equivalent prompts" in " ".join(taught.notes)
    without = [replace(fact, equivalent=()) for fact in FACTS]
    assert_same(teaching.edit(model, without), plain.edit(model, FACTS))
    assert not teaching.edit(model, without).notes
    long = [replace(FACTS[0], equivalent=("word " * 9999,), row=7)]
    with pytest.raises(FactError, match="Row 7, equivalent prompt: .* context holds"):
        teaching.edit(model, long)
    if teaching.records:
        recorder = Recorder(tmp_path / "record.safetensors")
        teaching.edit(model, FACTS, recorder=recorder)
        card = recorder.write(model).card
        assert card.fact_count == len(FACTS) and max(card.facts) < len(FACTS)


@pytest.mark.parametrize("name", LEARNED)
def test_a_further_round_edits_the_weights_that_the_one_before_left(model, name):
    whole = make(name, model, rounds=2, step_scale=0.5).edit(model, FACTS)
    once = make(name, model, rounds=1, step_scale=0.5)
    first = once.edit(model, FACTS)
    with model.edited(first.delta):
        second = once.edit(model, FACTS)
    for module, shift in whole.delta.shifts.items():
        wanted = first.delta.shifts[module] + second.delta.shifts[module]
        torch.testing.assert_close(shift, wanted, rtol=1e-5, atol=1e-7)
    assert whole.tokens == 2 * first.tokens and whole.delta.norm != pytest.approx(first.delta.norm, rel=1e-3)
    trained = make(name, model, tiny.random_checkpoint(model, name, rounds=2), step_scale=0.5)
    assert_same(trained.edit(model, FACTS), whole)
    assert_same(make(name, model, step_scale=0.5).edit(model, FACTS), first)


def test_no_round_follows_once_every_answer_is_the_likeliest(tiny_tokenizer):
    word, other, *_ = tiny.single_token_words(tiny_tokenizer)
    model = tiny.constant_model(tiny_tokenizer, word)
    facts = [Fact(fact.prompt, word) for fact in FACTS]
    once = make("agrade", model, rounds=1, step_scale=1e-6).edit(model, facts)
    thrice = make("agrade", model, rounds=3, step_scale=1e-6).edit(model, facts)
    assert_same(thrice, once)
    assert thrice.tokens == once.tokens, "a look forward, which found nothing to do"
    facts[1] = replace(facts[1], target=other)
    assert make("agrade", model, rounds=3, step_scale=1e-6).edit(model, facts).tokens == 3 * once.tokens


@pytest.mark.parametrize("name", [name for name, editor in EDITORS.items() if hasattr(editor.Settings, "scope")])
def test_unclear_subject_is_told_where_it_counts(tiny_model, name):
    model, facts = tiny_model("gpt2"), (Fact("the old river", "x", row=7), *FACTS)
    for scope in ("subject", "subject+answer"):
        assert any("in row 7" in note for note in make(name, model, scope=scope).edit(model, facts).notes)
    assert not any("subject" in note for note in make(name, model, scope="answer").edit(model, facts).notes)


@pytest.mark.parametrize("name", LEARNED)
def test_hypernetwork_for_another_model_is_refused(tiny_model, name):
    checkpoint = tiny.random_checkpoint(tiny_model("mistral"), name)
    checkpoint.card["model_sha256"] = "0" * 64
    with pytest.raises(CheckpointError, match="random was trained for tiny mistral, not for tiny llama.*Train tab"):
        make(name, tiny_model("llama"), checkpoint).edit(tiny_model("llama"), FACTS)


@pytest.mark.parametrize("name", LEARNED)
@pytest.mark.parametrize(
    ("change", "error", "said"),
    [
        ({"name": "model.layers.7.mlp.down_proj", "layer": 7}, ModelError, "no module 'model.layers.7.mlp.down_proj'"),
        ({"d_h": 20}, CheckpointError, "modules of the hypernetwork random are not those of tiny llama"),
    ],
)
def test_hypernetwork_with_unknown_modules_is_refused(tiny_model, name, change, error, said):
    model = tiny_model("llama")
    checkpoint = tiny.random_checkpoint(model, name)
    modules: list[EditModule] = [replace(module, **change) for module in model.edit_modules([3])]
    checkpoint.hypernet = HyperNet(modules, rank=4)
    with pytest.raises(error, match=said):
        make(name, model, checkpoint).edit(model, FACTS)


@pytest.mark.parametrize("name", LEARNED)
def test_a_module_pattern_that_names_other_modules_than_the_hypernetworks_is_told(tiny_model, name, monkeypatch):
    model = tiny_model("llama")
    for pattern, told in (("model.layers.{}.mlp.down_proj", 0), ("model.layers.{}.mlp.up_proj", 1)):
        monkeypatch.setattr(model, "asked", {"module_pattern": pattern})
        notes = make(name, model).edit(model, FACTS).notes
        assert [f"The module pattern {pattern} is not used: the hypernetwork" in note for note in notes].count(True) == told


@pytest.mark.parametrize("name", LEARNED)
def test_hypernetwork_that_overflows_is_named(tiny_model, name):
    model = tiny_model("llama")
    checkpoint = tiny.random_checkpoint(model, name)
    checkpoint.hypernet.log_eta.data.fill_(300.0)
    before = weights(model)
    with pytest.raises(NonFiniteError, match="weight shift of model.layers.1.mlp.down_proj is not finite"):
        make(name, model, checkpoint).edit(model, FACTS)
    assert_untouched(model, before)
