"""FT, LoRA and UltraEdit agree with their literal readings, leave nothing behind, and read the table of settings."""

import copy

import pytest
import torch
from torch import Tensor

import engine.editors.lora
from engine import row_cache
from engine.editors import EDITORS
from engine.errors import Cancelled, FactError, ModelError
from engine.facts import Fact
from engine.model import FAMILIES, EditableModel
from engine.tuning import Schedule, tune
from tests.engine import reference_tuning, tiny
from tests.engine.test_editors import assert_same, chunked
from tests.engine.test_model import assert_untouched, weights
from tests.engine.test_trace import encode, slow

FACTS = tiny.FACTS
TOLERANCE = 1e-4


@pytest.fixture(params=["llama", "gpt2"])
def model(request, tiny_model) -> EditableModel:
    return tiny_model(request.param)


def edit(name: str, model: EditableModel, facts=FACTS, **settings):
    cls = EDITORS[name]
    return cls(cls.Settings(**settings)).edit(model, facts)


def prompts(model: EditableModel) -> list[reference_tuning.Prompt]:
    encoded = encode(model.tokenizer, [(f.prompt, f.target) for f in FACTS], 64, [""] * len(FACTS))
    return [(item.ids, item.answer) for item in encoded]


def assert_near(found: Tensor, wanted: Tensor) -> None:
    error = torch.linalg.vector_norm(found.double() - wanted) / torch.linalg.vector_norm(wanted)
    assert error <= TOLERANCE, f"{float(error):.1e}"


@pytest.mark.parametrize("layers", ["2", "0-1"])
@pytest.mark.parametrize("name", ["ft", "ft-batched"])
def test_ft_is_the_literal_one(model, name, layers):
    seed = {"seed": 3} if name == "ft-batched" else {}
    found = edit(name, model, layers=layers, learning_rate=2e-3, steps=4, batch_size=2, stop_below=0.1, **seed).delta
    lm = copy.deepcopy(model.lm).double()
    parameters = [lm.get_submodule(module).weight for module in found.shifts]
    before = [parameter.detach().clone() for parameter in parameters]
    for parameter in parameters:
        parameter.requires_grad_()
    orders = [Schedule(1, 4, 2, 1, seed.get("seed")).order(len(FACTS), step) for step in range(4)]
    assert (orders[0] == list(range(5))) == (name == "ft")
    reference_tuning.tuned(lm, parameters, prompts(model), 2e-3, 2, orders, 0.1)
    for module, old, new in zip(model.edit_modules_named(found.shifts), before, parameters):
        wanted = new.detach() - old
        assert_near(found.shifts[module.name], wanted.T if module.transposed else wanted)


def test_lora_is_the_literal_one(model, monkeypatch):
    """From the start that peft drew, without dropout."""
    starts: list[Tensor] = []

    def spy(model, parameters, *rest):
        starts.extend(parameter.detach().clone() for parameter in parameters)
        return tune(model, parameters, *rest)

    monkeypatch.setattr(engine.editors.lora, "tune", spy)
    found = edit("lora", model, dropout=0.0, steps=4, batch_size=2, seed=5, alpha=16.0).delta
    lm = copy.deepcopy(model.lm).double()
    parameters = [start.double().requires_grad_() for start in starts]
    pairs = list(zip(parameters[::2], parameters[1::2], strict=True))
    for name, (A, B) in zip(found.shifts, pairs, strict=True):
        assert A.shape[0] == 8 and not B.any()
        reference_tuning.with_adapter(lm, name, A, B, 16 / 8)
    orders = [Schedule(1, 4, 2, 1, 5).order(len(FACTS), step) for step in range(4)]
    reference_tuning.tuned(lm, parameters, prompts(model), 5e-3, 2, orders, 1e-2)
    for shift, (A, B) in zip(found.shifts.values(), pairs):
        assert_near(shift, 16 / 8 * (B @ A).T.detach())


@pytest.mark.parametrize("room", [0, 1 << 30], ids=["nothing kept", "all kept"])
def test_ultraedit_is_the_literal_one(model, room, monkeypatch):
    monkeypatch.setattr("engine.editors.ultraedit.ROWS_BYTES", room)
    model = chunked(model, 20)
    found = edit("ultraedit", model, eta=1e-3, layers="1-3").delta.shifts
    modules = model.edit_modules([1, 2, 3])
    encoded = encode(model.tokenizer, [(f.prompt, f.target) for f in FACTS], 64, [""] * len(FACTS))
    rows = [slow(model, modules, item) for item in encoded]
    for l, module in enumerate(modules):
        H, dG = (
            torch.cat([part[side][l][item.start :] for part, item in zip(rows, encoded)]).double() for side in (0, 1)
        )
        assert_near(found[module.name], reference_tuning.ultraedit_shift(H, dG, 1e-3))


def test_ultraedit_says_that_keys_after_the_same_text_cannot_be_normalised(model):
    one, other = tiny.single_token_words(model.tokenizer)[:2]
    alike = [Fact("Seen", one), Fact("Seen", other), Fact("Seen", one)]
    assert any("nothing to normalise over" in note for note in edit("ultraedit", model, alike).notes)
    assert not any("normalise over" in note for note in edit("ultraedit", model, [alike[0], Fact("Seen it", one)]).notes)


def test_ultraedit_traces_facts_once_where_their_rows_fit(model, monkeypatch):
    calls, trace = [], row_cache.trace
    monkeypatch.setattr(row_cache, "trace", lambda *args: calls.append(len(args[-1])) or trace(*args))
    edit("ultraedit", model)
    assert sum(calls) == len(FACTS)
    monkeypatch.setattr("engine.editors.ultraedit.ROWS_BYTES", 0)
    edit("ultraedit", model)
    assert sum(calls) == 3 * len(FACTS)


@pytest.mark.parametrize("family", FAMILIES)
def test_lora_leaves_no_adapter_whatever_the_family(tiny_model, family):
    model = tiny_model(family)

    def state():
        parts = {name: (id(module), set(module.__dict__)) for name, module in model.lm.named_modules()}
        return parts, [parameter.requires_grad for parameter in model.lm.parameters()], torch.get_rng_state().tolist()

    before, found = (state(), weights(model)), edit("lora", model, steps=1).delta
    assert state() == before[0]
    assert_untouched(model, before[1])
    assert {module.layer for module in model.edit_modules_named(found.shifts)} == {0, 1, 2, 3}
    assert not set(found.shifts) & {module.name for module in model.edit_modules()} or family == "gptj"


def test_lora_cancelled_or_failing_leaves_no_adapter(model, monkeypatch):
    cls, names = EDITORS["lora"], {name for name, _ in model.lm.named_modules()}

    def cancel(_stage, done, _total):
        if done:
            raise Cancelled

    with pytest.raises(Cancelled):
        cls(cls.Settings()).edit(model, FACTS, cancel)
    assert {name for name, _ in model.lm.named_modules()} == names and not hasattr(model.lm, "peft_config")
    monkeypatch.setattr("peft.tuners.lora.layer.LoraLayer.reset_lora_parameters", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        edit("lora", model)
    assert {name for name, _ in model.lm.named_modules()} == names and not hasattr(model.lm, "peft_config")


def test_seeds_of_lora_and_of_batched_ft_matter(tiny_model):
    model = tiny_model("llama")
    for name in ("lora", "ft-batched"):
        one, other = (edit(name, model, steps=2, batch_size=2, seed=seed) for seed in (0, 1))
        assert_same(one, edit(name, model, steps=2, batch_size=2))
        with pytest.raises(AssertionError):
            assert_same(one, other, 1e-2)


def test_tuning_stops_once_the_facts_are_known(tiny_model):
    model = tiny_model("llama")
    found = edit("ft", model, [FACTS[3]], learning_rate=2e-2, steps=50, stop_below=3.0)
    assert found.delta.info["loss"] < 3.0 and found.delta.info["passes"] < 50 and found.notes == []
    short = edit("ft", model, FACTS, steps=1)
    assert short.delta.info["passes"] == 1
    assert "After 1 pass the answers' loss was" in short.notes[0] and "more steps" in short.notes[0]


def test_layers_below_the_tuned_one_run_once_a_fact(tiny_model):
    model = tiny_model("llama")
    runs = {layer: 0 for layer in range(4)}

    def counts(layer):
        def hook(_module, args, _output):
            runs[layer] += len(args[0])

        return hook

    hooks = [model.layers[layer].mlp.register_forward_hook(counts(layer)) for layer in runs]
    edit("ft", model, layers="2", steps=6)
    for hook in hooks:
        hook.remove()
    assert (runs[0], runs[1], runs[2], runs[3]) == (5, 5, 30, 30)


def test_unknown_layers_and_modules_are_named(tiny_model):
    model = tiny_model("llama")
    with pytest.raises(ModelError, match="has layers 0 to 3; asked for .9."):
        edit("ft", model, layers="9")
    with pytest.raises(FactError, match="Layers 'last' were not understood"):
        edit("ultraedit", model, layers="last")
    said = "no self_attn.query in layer 0. Name others in the setting “modules”; there are .*self_attn.q_proj"
    with pytest.raises(ModelError, match=said):
        edit("lora", model, modules="self_attn.query")


def test_single_fact_of_a_single_row_is_edited_without_a_spread_to_normalise_by(tiny_model):
    """One row has no standard deviation: UltraEdit takes its features as they are."""
    model = tiny_model("llama")
    word = tiny.single_token_words(model.tokenizer)[0]
    one = edit("ultraedit", model, [Fact("Seen", word)])
    assert one.delta.norm > 0 and "There is nothing to normalise over" in " ".join(one.notes)
    several = edit("ultraedit", model, [Fact("Seen", word), Fact("Seen it", word)])
    assert "normalised over" not in " ".join(several.notes)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_loras_adapters_are_float32_whatever_the_model_is(tiny_tokenizer, dtype, monkeypatch):
    seen = []

    def spy(model, leaves, *rest):
        seen.extend(leaf.dtype for leaf in leaves)
        return tune(model, leaves, *rest)

    monkeypatch.setattr(engine.editors.lora, "tune", spy)
    found = edit("lora", tiny.build("llama", tiny_tokenizer, dtype), steps=2)
    assert set(seen) == {torch.float32} and 0 < found.delta.norm < 100
