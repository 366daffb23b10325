"""What every registered editor keeps to, on tiny models, whatever its method is."""

import json
from dataclasses import MISSING, fields, replace

import pytest
import torch
from torch.nn.functional import cross_entropy

from engine.checkpoint import Checkpoint
from engine.editors import EDITORS, Edit, Editor
from engine.errors import Cancelled, CheckpointError, EditingError, FactError, ModelError, NonFiniteError
from engine.facts import Fact
from engine.hypernet import HyperNet
from engine.model import EditableModel, EditModule
from tests.engine import reference, tiny
from tests.engine.reference import Equations
from tests.engine.test_model import assert_untouched, weights
from tests.engine.test_trace import encode, slow

FAMILIES = ("llama", "gpt2")
LEARNED = [name for name, editor in EDITORS.items() if "hypernetwork" in editor.needs]
SOLVED = [name for name in LEARNED if "coefficient" in EDITORS[name].Settings.__dataclass_fields__]
FACTS = tiny.FACTS
# So few that a tiny model's small weights are not outgrown.
QUICK = {name: {"steps": 10} for name in ("ft", "ft-batched", "lora")}
# A random model's attention carries little from a subject to a later word: here the subject is where the answer begins.
AT_THE_ANSWER = tuple(
    replace(fact, subject=fact.prompt.split()[-1], target=target)
    for fact, target in zip(FACTS, ("Denmark", "Ulm", "France", "Seen", "capital"))
)
# What suits tiny models: few steps, little text, and old keys that hold little against five facts.
SMALL = {
    "covariance_tokens": 512,
    "covariance_weight": 1.0,
    "null_threshold": 0.8,
    "ridge": 1.0,
    "target_clamp": 0.25,
    "target_decay": 0.01,
    "target_steps": 6,
}


@pytest.fixture(scope="module", autouse=True)
def cache(tmp_path_factory):
    """Covariances of tiny models: measured once for all tests here, and away from the person's own."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AGRADE_STUDIO_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


def make(name: str, model: EditableModel, checkpoint: Checkpoint | None = None, **settings) -> Editor:
    """The editor `name` for `model`; one that needs a hypernetwork gets a random one, a covariance little text."""
    cls = EDITORS[name]
    settings = QUICK.get(name, {}) | settings
    if "covariance" in cls.needs:
        settings = {item.name: SMALL[item.name] for item in fields(cls.Settings) if item.name in SMALL} | settings
    if "hypernetwork" not in cls.needs:
        return cls(cls.Settings(**settings))
    return cls(cls.Settings(**settings), checkpoint or tiny.random_checkpoint(model, name))


def chunked(model: EditableModel, tokens: int) -> EditableModel:
    """The same model, so many tokens at once."""
    placement = replace(model.placement, tokens_per_chunk=tokens)
    return EditableModel(model.lm, model.tokenizer, model.name, placement)


def log_probabilities(model: EditableModel, facts: tuple[Fact, ...], edit: Edit | None) -> list[float]:
    """Of each target after its prompt, in nats, by the model's own forward."""
    found = []
    with torch.no_grad(), model.edited(edit and edit.delta):
        for item in encode(model.tokenizer, [(f.prompt, f.target) for f in facts], 64, [""] * len(facts)):
            logits = model.lm(torch.tensor([item.ids])).logits[0, item.start :]
            found.append(-cross_entropy(logits, torch.tensor(item.answer), reduction="sum").item())
    return found


def assert_same(one: Edit, other: Edit, tolerance: float = 0.0) -> None:
    assert one.delta.shifts.keys() == other.delta.shifts.keys()
    for name, shift in one.delta.shifts.items():
        error = torch.linalg.vector_norm(shift - other.delta.shifts[name]) / torch.linalg.vector_norm(shift)
        assert error <= tolerance, f"{name}: {float(error):.1e}"


@pytest.fixture(params=FAMILIES)
def model(request, tiny_model) -> EditableModel:
    return tiny_model(request.param)


@pytest.fixture(params=EDITORS)
def method(request) -> str:
    return request.param


def test_only_declared_modules_change_and_all_is_restored(model, method):
    before = weights(model)
    edit = make(method, model).edit(model, FACTS)
    assert_untouched(model, before)
    declared = {module.name: module for module in model.edit_modules_named(edit.delta.shifts)}
    for name, shift in edit.delta.shifts.items():
        assert shift.shape == (declared[name].d_h, declared[name].d_g) and shift.dtype is torch.float32
        assert shift.norm() > 0
    with model.edited(edit.delta):
        after = model.lm.state_dict()
        changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed == {f"{name}.weight" for name in declared}
    assert_untouched(model, before)
    assert not any(module._forward_hooks for module in model.lm.modules())
    assert not any(parameter.requires_grad for parameter in model.lm.parameters())
    assert not any(shift.requires_grad for shift in edit.delta.shifts.values())


def test_same_seed_gives_the_same_shift(model, method):
    assert_same(make(method, model).edit(model, FACTS), make(method, model).edit(model, FACTS))


def test_batch_of_one_is_that_fact_by_itself(model, method):
    """Nothing is left over from the batch before."""
    editor = make(method, model)
    editor.edit(model, FACTS)
    assert_same(editor.edit(model, FACTS[2:3]), make(method, model).edit(model, [FACTS[2]]))


def facts_for(method: str) -> tuple[Fact, ...]:
    return AT_THE_ANSWER if "subject" in EDITORS[method].needs else FACTS


def test_target_becomes_likelier(model, method):
    facts = facts_for(method)
    before = log_probabilities(model, facts, None)
    after = log_probabilities(model, facts, make(method, model).edit(model, facts))
    assert all(b < a for b, a in zip(before, after))


def test_streamed_in_chunks_is_all_at_once(model, method):
    still = {"dropout": 0.0} if method == "lora" else {}  # what is left out is drawn for each chunk
    one = make(method, model, **still).edit(chunked(model, 10**6), FACTS)
    assert_same(one, make(method, model, **still).edit(chunked(model, 1), FACTS), 1e-4)
    assert_same(one, make(method, model, **still).edit(chunked(model, 1), FACTS[::-1]), 1e-4)


def test_edit_tells_what_it_did(model, method):
    calls = []
    edit = make(method, model).edit(model, FACTS, lambda *call: calls.append(call))
    assert edit.delta.method == method and edit.delta.model_sha256 == model.sha256
    assert edit.seconds > 0 and edit.tokens > 0
    assert calls[-1][1] == calls[-1][2] and len(calls) > 1
    assert [figures["module"] for figures in edit.per_module] == list(edit.delta.shifts)
    for figures in edit.per_module:
        assert figures["norm"] == pytest.approx(edit.delta.shifts[figures["module"]].norm().item())
        assert 0 < figures["relative_norm"] < 1
    json.dumps([edit.per_module, edit.notes, edit.delta.info], allow_nan=False)


def test_cancelled_edit_leaves_the_model_as_it_was(model, method):
    before = weights(model)

    def cancel(_stage, done, _total):
        if done:
            raise Cancelled

    with pytest.raises(Cancelled):
        make(method, model).edit(model, FACTS, cancel)
    assert_untouched(model, before)
    assert not any(module._forward_hooks for module in model.lm.modules())


def test_edit_after_one_cancelled_at_any_stage_is_the_same(tiny_model, method, tmp_path, monkeypatch):
    """Whatever the cancelled one kept, a part of a covariance say, is what an unbroken one would have kept."""
    model, stages = tiny_model("llama"), {}
    monkeypatch.setenv("AGRADE_STUDIO_CACHE", str(tmp_path / "whole"))
    whole = make(method, model).edit(model, FACTS[:2], lambda stage, *_: stages.setdefault(stage))
    for stage in stages:
        monkeypatch.setenv("AGRADE_STUDIO_CACHE", str(tmp_path / stage))
        before = weights(model)

        def cancel(now, done, _total, stage=stage):
            if now == stage and done:
                raise Cancelled

        with pytest.raises(Cancelled):
            make(method, model).edit(model, FACTS[:2], cancel)
        assert_untouched(model, before)
        assert not any(module._forward_hooks for module in model.lm.modules())
        assert_same(whole, make(method, model).edit(model, FACTS[:2]))


def test_empty_batch_is_named(model, method):
    with pytest.raises(FactError, match="no fact to edit"):
        make(method, model).edit(model, [])


def test_fact_longer_than_the_context_is_named_by_its_row(model, method):
    long = Fact("so " * tiny.CONTEXT, "it is", row=41)
    with pytest.raises(FactError, match=r"Row 41, prompt: \d+ tokens, but the model's context holds 64"):
        make(method, model).edit(model, [FACTS[0], long])


def test_loss_that_is_not_finite_is_named(tiny_tokenizer, method):
    broken = tiny.build("llama", tiny_tokenizer)
    editor = make(method, broken)
    broken.lm.get_output_embeddings().weight.data[5] = float("nan")
    before = weights(broken)
    with pytest.raises(NonFiniteError, match="Nothing was edited|nothing was edited"):
        editor.edit(broken, FACTS)
    assert_untouched(broken, before)


def test_every_setting_is_explained(method):
    for item in fields(EDITORS[method].Settings):
        assert item.default is not MISSING
        assert len(item.metadata["help"]) > 10
        assert item.default in item.metadata.get("choices", [item.default])


@pytest.mark.parametrize("name", LEARNED)
def test_edit_is_the_literal_one(model, name):
    """The whole way, tokens to Δθ, against slow rows of each prompt alone and the literal equations."""
    editor = make(name, model)
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
    parameters = reference.Parameters(tensors, shapes, [part.double() for part in seen])
    wanted = reference.weight_shifts(parameters, H, dG, Equations(editor.reading(), least_squares=name != "mend"))
    found = editor.edit(model, FACTS).delta.shifts
    for module, shift in zip(modules, wanted):
        error = torch.linalg.vector_norm(found[module.name].double() - shift) / torch.linalg.vector_norm(shift)
        assert error <= 1e-3, f"{module.name}: {float(error):.1e}"


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
            assert kept == [1.0 if reading == "off" else None] * 3
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


def test_bfloat16_model_is_edited_by_a_float32_editor(tiny_tokenizer, method):
    model = tiny.build("gpt2", tiny_tokenizer, dtype=torch.bfloat16)
    before = weights(model)
    facts = facts_for(method)
    edit = make(method, model).edit(model, facts)
    assert all(shift.dtype is torch.float32 for shift in edit.delta.shifts.values())
    assert_untouched(model, before)
    assert sum(log_probabilities(model, facts, edit)) > sum(log_probabilities(model, facts, None))


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
    assert thrice.tokens == 2 * once.tokens, "one more pass, which found nothing to do"
    facts[1] = replace(facts[1], target=other)
    assert make("agrade", model, rounds=3, step_scale=1e-6).edit(model, facts).tokens == 3 * once.tokens


def test_fewer_rounds_than_none_are_refused(tiny_model):
    with pytest.raises(EditingError, match="rounds is -1: give 1 or more"):
        make("agrade", tiny_model("llama"), rounds=-1).edit(tiny_model("llama"), FACTS)


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
def test_hypernetwork_that_overflows_is_named(tiny_model, name):
    model = tiny_model("llama")
    checkpoint = tiny.random_checkpoint(model, name)
    checkpoint.hypernet.log_eta.data.fill_(300.0)
    before = weights(model)
    with pytest.raises(NonFiniteError, match="weight shift of model.layers.1.mlp.down_proj is not finite"):
        make(name, model, checkpoint).edit(model, FACTS)
    assert_untouched(model, before)
