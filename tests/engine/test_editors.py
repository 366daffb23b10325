"""What every registered editor keeps to, on tiny models, whatever its method is."""

import json
from dataclasses import MISSING, fields, replace

import pytest
import torch
from torch.nn.functional import cross_entropy

from engine.checkpoint import Checkpoint
from engine.editors import EDITORS, Edit, Editor
from engine.errors import Cancelled, FactError, NonFiniteError
from engine.facts import Fact
from engine.model import EditableModel
from engine.prompts import encode
from tests.engine import tiny
from tests.engine.test_model import assert_untouched, weights

FAMILIES = ("llama", "gpt2")
LEARNED = [name for name, editor in EDITORS.items() if "hypernetwork" in editor.needs]
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


def test_bfloat16_model_is_edited_by_a_float32_editor(tiny_tokenizer, method):
    model = tiny.build("gpt2", tiny_tokenizer, dtype=torch.bfloat16)
    before = weights(model)
    facts = facts_for(method)
    edit = make(method, model).edit(model, facts)
    assert all(shift.dtype is torch.float32 for shift in edit.delta.shifts.values())
    assert_untouched(model, before)
    assert sum(log_probabilities(model, facts, edit)) > sum(log_probabilities(model, facts, None))
