"""MEMIT, PMET, EMMET and AlphaEdit agree with a literal reading: one fact at a time, whole model, plain autograd.

z* within 1e-3 relative (both sides float32: 6 steps of Adam), Δθ within 2e-3 (float32 states, float64 solves).
"""

from dataclasses import replace

import pytest
import torch

from engine.contexts import make_contexts, make_prefixes
from engine.covariance import Text
from engine.delta import WeightDelta
from engine.editors import EDITORS
from engine.editors.pmet import attention_output
from engine.errors import EditingError, ModelError, NonFiniteError
from engine.facts import Fact
from engine.model import FAMILIES
from engine.subjects import find_subjects
from engine.targets import TargetRule, find_targets
from tests.engine import locate, tiny
from tests.engine.test_editors import AT_THE_ANSWER, FACTS, chunked

LAYERS = (1, 2)
RULE = locate.Rule(steps=6, rate=0.3, decay=0.5, kl=0.5, clamp=0.75)
METHODS = ("memit", "pmet", "emmet", "alphaedit")
SETTINGS = {
    "layers": "1-2",
    "target_steps": RULE.steps,
    "target_rate": RULE.rate,
    "target_decay": RULE.decay,
    "target_kl": RULE.kl,
    "target_clamp": RULE.clamp,
    "covariance_tokens": 128,
}
OWN = {
    "memit": {"covariance_weight": 3.0},
    "pmet": {"covariance_weight": 3.0},
    "emmet": {"ridge": 0.5},
    "alphaedit": {"ridge": 0.5, "null_threshold": 0.5},
}
# What each method does with keys K, residuals R and C, and which share of the residual a layer takes.
SOLVES = {
    "memit": lambda K, R, C: locate.memit_solve(K, R, C, 3.0),
    "pmet": lambda K, R, C: locate.memit_solve(K, R, C, 3.0),
    "emmet": lambda K, R, C: locate.emmet_solve(K, R, C, 0.5),
    "alphaedit": lambda K, R, C: locate.alphaedit_solve(K, R, C, 0.5, 0.5),
}


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("AGRADE_STUDIO_CACHE", str(tmp_path))


def near(found: torch.Tensor, wanted: torch.Tensor, tolerance: float) -> None:
    error = torch.linalg.vector_norm(found.double() - wanted.double()) / torch.linalg.vector_norm(wanted.double())
    assert error <= tolerance, f"off by {float(error):.1e}"


def asked(model, fact, prefixes) -> tuple[list[locate.Asked], locate.Asked]:
    prompts = [prefix + fact.prompt for prefix in ("", *prefixes)]
    essence = locate.ask(model, f"{fact.subject} is a", fact.target, fact.subject)
    return [locate.ask(model, prompt, fact.target, fact.subject) for prompt in prompts], essence


def places_of(model, method: str, layer: int) -> list[torch.nn.Module]:
    if method != "pmet":
        return [model.layers[layer]]
    return [attention_output(model, layer), model.lm.get_submodule(model.edit_modules([layer])[0].name)]


@pytest.mark.parametrize("method", ["memit", "pmet"])
@pytest.mark.parametrize("family", ["llama", "gpt2", "gptj"])
def test_target_is_the_literal_one_however_the_facts_are_batched(tiny_model, family, method, monkeypatch):
    """The stopping loss is set where some facts reach it and some do not."""
    model, prefixes = tiny_model(family), ["So it is. ", "It was said by him. "]
    rule = replace(RULE, pmet=method == "pmet", stop=6.4)
    monkeypatch.setattr("engine.targets.STOP_LOSS", rule.stop)
    contexts = make_contexts(model, FACTS, find_subjects(FACTS)[0], prefixes)
    places = places_of(model, method, 1)
    own = TargetRule(rule.steps, rule.rate, rule.decay, rule.kl, rule.clamp, until_certain=rule.pmet)
    wanted = [locate.target(model, *asked(model, fact, prefixes), places, tiny.WIDTH, rule) for fact in FACTS]
    for tokens in (1, 250, 10**6):
        found = find_targets(chunked(model, tokens), contexts, places, 1, own)
        stopped = sum(loss < rule.stop for loss in found.losses)
        assert 0 < stopped < len(FACTS)
        for fact, values in enumerate(wanted):
            for place, value in enumerate(values):
                near(found.values[fact, place], value, 1e-3)


def test_an_answer_that_is_certain_counts_less_while_its_kl_is_large(tiny_model, monkeypatch):
    """PMET's rule, by facts whose answer becomes the likeliest and one whose does not."""
    model, prefixes = tiny_model("gpt2"), ["So it is. ", "It was said by him. "]
    facts = AT_THE_ANSWER[1:]  # the first one's subject, “is”, would stand twice in “is is a”
    rule = locate.Rule(steps=8, rate=1.0, decay=0.5, kl=0.5, clamp=8.0, pmet=True)
    contexts = make_contexts(model, facts, find_subjects(facts)[0], prefixes)
    places = places_of(model, "pmet", 1)
    own = TargetRule(rule.steps, rule.rate, rule.decay, rule.kl, rule.clamp, until_certain=True)
    found = find_targets(model, contexts, places, 1, own).values
    for values, fact in zip(found, facts, strict=True):
        for value, wanted in zip(values, locate.target(model, *asked(model, fact, prefixes), places, tiny.WIDTH, rule)):
            near(value, wanted, 1e-3)
    monkeypatch.setattr("engine.targets.CERTAIN_SHARE", 1.0)
    plain = find_targets(model, contexts, places, 1, own).values
    apart = (plain - found).flatten(1).norm(dim=1) / found.flatten(1).norm(dim=1)
    assert [bool(one > 0.05) for one in apart] == [True, True, False, True], "the share matters here"


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_edit_is_the_literal_one(tiny_model, family, method):
    """The whole way: each layer's keys and states are those of the model with the layers before it edited."""
    model = tiny_model(family)
    facts = FACTS[:3]
    cls = EDITORS[method]
    edit = cls(cls.Settings(**SETTINGS | OWN[method])).edit(model, facts)

    rule = replace(RULE, pmet=method == "pmet")
    prefixes = make_prefixes(model, 0)
    prompts = [asked(model, fact, prefixes) for fact in facts]
    text = Text(model, "", SETTINGS["covariance_tokens"], 0)
    rows = [row.tolist() for part in range(text.parts) for row in text.part(part)]
    places = places_of(model, method, LAYERS[-1])
    values = [locate.target(model, *one, places, tiny.WIDTH, rule)[-1] for one in prompts]
    shifts: dict[str, torch.Tensor] = {}
    modules = model.edit_modules(LAYERS)
    for at, module in enumerate(modules):
        linear = model.lm.get_submodule(module.name)
        C = locate.covariance(model, rows, linear)
        with model.edited(WeightDelta(shifts, model.sha256, "slow")):
            K = torch.stack([locate.key(model, one, linear) for one, _ in prompts], dim=1).double()
            states = [locate.seen(model, one[0], places[-1])[1] for one, _ in prompts]
        remaining = len(modules) - at
        R = torch.stack([value - state for value, state in zip(values, states)], dim=1).double()
        R = R / (remaining**0.5 if method == "pmet" else remaining)
        shifts[module.name] = SOLVES[method](K, R, C).T.float().contiguous()
    assert list(edit.delta.shifts) == list(shifts)
    for name, wanted in shifts.items():
        near(edit.delta.shifts[name], wanted, 2e-3)


def test_nothing_is_left_of_the_residual_where_nothing_holds_against_it(tiny_model):
    """With λ → 0 and one fact the last layer takes the whole residual of the keys it was solved for."""
    model = tiny_model("llama")
    cls, facts = EDITORS["memit"], FACTS[3:4]
    weak = cls(cls.Settings(**SETTINGS | {"covariance_weight": 1e-9})).edit(model, facts)
    strong = cls(cls.Settings(**SETTINGS | {"covariance_weight": 1e6})).edit(model, facts)
    assert strong.delta.norm < 1e-3 * weak.delta.norm
    assert strong.per_module[1]["residual"] == pytest.approx(strong.per_module[0]["residual"], rel=1e-2)


@pytest.mark.parametrize("family", ["gemma2", "olmo2"])
def test_a_norm_behind_the_edited_module_is_refused_where_the_layers_state_is_written(tiny_model, family):
    model = tiny_model(family)
    for method in METHODS:
        editor = EDITORS[method](EDITORS[method].Settings(**SETTINGS | OWN[method]))
        if method == "pmet":
            assert editor.edit(model, FACTS[:1]).delta.norm > 0
        else:
            with pytest.raises(ModelError, match="normalises what model.layers.2.mlp.down_proj gives.*Choose PMET"):
                editor.edit(model, FACTS[:1])


@pytest.mark.parametrize("layers", ["2", "1-2"])
@pytest.mark.parametrize("method", METHODS)
def test_edit_reaches_its_target_states_where_a_layer_adds_only_a_share_of_what_the_module_gives(
    tiny_tokenizer, method, layers, monkeypatch
):
    """Granite's residual_multiplier: with no old keys in the way, the bare prompt's state is z* either way."""
    monkeypatch.setattr("engine.editors.memit.mean_keys", lambda keys: keys[:, 0])
    facts, reached = FACTS[:3], {}
    for multiplier in (1.0, 0.22):
        model = tiny.build("granite", tiny_tokenizer, residual_multiplier=multiplier)
        weak = {"memit": {"covariance_weight": 1e-9}, "pmet": {"covariance_weight": 1e-9}}
        weak |= {"emmet": {"ridge": 1e-9}, "alphaedit": {"ridge": 1e-9, "null_threshold": 1e9}}
        editor = EDITORS[method](EDITORS[method].Settings(**SETTINGS | weak[method] | {"layers": layers}))
        found = {}
        editor.keep(found)
        edit = editor.edit(model, facts)
        [(targets, _)] = found.values()
        wanted, place = targets.values[:, -1], places_of(model, method, 2)[-1]
        bare = [asked(model, fact, ())[0][0] for fact in facts]
        before = torch.stack([locate.seen(model, one, place)[1] for one in bare])
        with model.edited(edit.delta):
            after = torch.stack([locate.seen(model, one, place)[1] for one in bare])
        reached[multiplier] = float((wanted - after).norm() / (wanted - before).norm())
    assert max(reached.values()) < 0.02, reached


def test_only_a_method_that_would_work_is_advised(tiny_tokenizer):
    """PMET has its two places beside a gate, and only one where what the attention gives is itself edited."""
    shape = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 8}
    shape |= {"shared_expert_intermediate_size": 24}
    pattern = "model.layers.{}.mlp.shared_expert.down_proj"
    gated = tiny.build("qwen2_moe", tiny_tokenizer, pattern=pattern, **shape)
    attention = tiny.build("llama", tiny_tokenizer, pattern="model.layers.{}.self_attn.o_proj")
    memit, pmet = (EDITORS[name](EDITORS[name].Settings(**SETTINGS | OWN[name])) for name in ("memit", "pmet"))
    with pytest.raises(ModelError, match="before it is added there. Choose PMET, or a method that needs no"):
        memit.edit(gated, FACTS[:1])
    assert pmet.edit(gated, FACTS[:1]).delta.norm > 0
    with pytest.raises(ModelError, match="before it is added there. Choose a method that needs no target states"):
        memit.edit(attention, FACTS[:1])


@pytest.mark.parametrize("family", ["gpt2", "gpt_neo", "opt"])
def test_prompts_near_the_contexts_end_are_not_padded_beyond_it(tiny_tokenizer, family):
    """A long past and a long rest, of two prompts that fit, would make one that does not."""
    model = chunked(tiny.build(family, tiny_tokenizer), 16384)
    filler = " the capital of" * 8
    facts = [Fact(f"The capital is{filler} France", "Rome", subject="France")]
    facts.append(Fact(f"France has the capital is{filler}", "Rome", subject="France"))
    editor = EDITORS["memit"](EDITORS["memit"].Settings(**SETTINGS | OWN["memit"]))
    assert editor.edit(model, facts).delta.norm > 0


def test_alphaedit_leaves_old_keys_alone(tiny_model):
    """Δθ maps nothing that lies outside the null space: kᵀΔθ is as small as the threshold makes it."""
    model = tiny_model("gpt2")
    cls = EDITORS["alphaedit"]
    edit = cls(cls.Settings(**SETTINGS | OWN["alphaedit"])).edit(model, FACTS)
    text = Text(model, "", SETTINGS["covariance_tokens"], 0)
    rows = [row.tolist() for part in range(text.parts) for row in text.part(part)]
    for name, shift in edit.delta.shifts.items():
        C = locate.covariance(model, rows, model.lm.get_submodule(name))
        kept = (shift.T.double() @ C @ shift.double()).trace()  # E‖kᵀΔθ‖² over the text
        assert kept <= 0.5 * shift.double().square().sum()
        assert kept < 0.1 * torch.linalg.eigvalsh(C)[-1] * shift.double().square().sum()


def test_null_space_that_is_empty_is_named(tiny_model):
    cls = EDITORS["alphaedit"]
    editor = cls(cls.Settings(**SETTINGS | OWN["alphaedit"] | {"null_threshold": 1e-30}))
    with pytest.raises(EditingError, match="has no eigenvalue under 1e-30.*Raise null_threshold: the smallest"):
        editor.edit(tiny_model("llama"), FACTS)


def test_covariance_that_cannot_be_inverted_is_named(tiny_model, tmp_path):
    text = tmp_path / "same.txt"
    text.write_text("a" * 400)
    cls = EDITORS["emmet"]
    editor = cls(cls.Settings(**SETTINGS | OWN["emmet"] | {"covariance_text": str(text), "layers": "0"}))
    with pytest.raises(NonFiniteError, match="cannot be inverted, so nothing was edited. Raise covariance_tokens"):
        editor.edit(tiny_model("gptj"), FACTS)


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_has_one_attention_output(tiny_model, family):
    model = tiny_model(family)
    for layer in range(tiny.LAYERS):
        module = attention_output(model, layer)
        shape = module.weight.shape
        assert tiny.WIDTH in shape and module is not model.lm.get_submodule(model.edit_modules([layer])[0].name)


def test_attention_output_of_an_unknown_name_is_named(tiny_tokenizer):
    model = tiny.build("llama", tiny_tokenizer)
    model.layers[1].self_attn.last = model.layers[1].self_attn.o_proj
    del model.layers[1].self_attn.o_proj
    with pytest.raises(ModelError, match="layer 1 of tiny llama has 0 named .*o_proj.*Choose another method"):
        attention_output(model, 1)


def test_missing_subjects_are_noted_and_states_that_fall_short_are_said(tiny_model):
    cls = EDITORS["memit"]
    facts = [replace(FACTS[0], subject=""), FACTS[3]]
    edit = cls(cls.Settings(**SETTINGS | OWN["memit"])).edit(tiny_model("llama"), facts)
    assert edit.notes[0] == "Subjects that were missing were found in the prompt: row 1 “France”."
    assert "The target states of 2 of 2 facts stopped at a loss over 0.05" in edit.notes[1]
