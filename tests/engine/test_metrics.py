"""Every protocol against cases made by hand, against slow scoring one prompt at a time, and its interval."""

import math
import tracemalloc
from dataclasses import replace

import numpy as np
import pytest
import torch
from tokenizers import normalizers

from engine.errors import FactError
from engine.facts import Fact
from engine.generation import OWN_ANSWER_TOKENS
from engine.intervals import bootstrap_mean, bootstrap_score, harmonic_mean, wilson
from engine.metrics import Instance, Outcome, Output, ask, score, summarise
from engine.prompts import encode
from tests.engine import tiny
from tests.engine.test_model import assert_untouched, random_delta, weights


def instance(fact: int, kind: str, after: dict, before: dict | None = None) -> Instance:
    return Instance(fact, kind, "p", "t", Output(""), Output(""), after, before or dict.fromkeys(after, 0.0))


def by_key(metrics) -> dict:
    return {(metric.name, metric.protocol): metric for metric in metrics}


@pytest.fixture(scope="module")
def words(tiny_tokenizer) -> list[str]:
    words = tiny.single_token_words(tiny_tokenizer)
    assert len(words) >= 3
    return words


def test_every_protocol_by_hand(tiny_tokenizer, words):
    """The model says OLD after everything before the edit, and NEW after it."""
    old, new, other = words[:3]
    model = tiny.constant_model(tiny_tokenizer, old)
    facts = [
        Fact("Seen", new, ("Seen it", "Heard"), (("Who wrote it?", old), ("Ice", other), ("Water", ""))),
        Fact("Seen", f"{new} {old} {new} {new}", (f"{new} is",), (("The river", f"{old} {new}"),)),
    ]
    outcome = score(model, facts, tiny.say(model, new))
    found = [(one.fact, one.kind, one.prompt, one.success, one.success_before) for one in outcome.instances]
    yes, no = dict.fromkeys(("exact", "token", "generated"), 1.0), dict.fromkeys(("exact", "token", "generated"), 0.0)
    mostly, hardly = no | {"token": 0.75}, no | {"token": 0.25}
    assert found == [
        (0, "edit", "Seen", yes, no),
        (0, "equivalent", "Seen it", yes, no),
        (0, "equivalent", "Heard", yes, no),
        (0, "unrelated", "Who wrote it?", {"agreement": 0.0, "label": 0.0}, {"agreement": 1.0, "label": 1.0}),
        (0, "unrelated", "Ice", {"agreement": 0.0, "label": 0.0}, {"agreement": 1.0, "label": 0.0}),
        (0, "unrelated", "Water", {"agreement": 0.0, "label": None}, {"agreement": 1.0, "label": None}),
        (1, "edit", "Seen", mostly, hardly),
        (1, "equivalent", f"{new} is", mostly, hardly),
        (1, "unrelated", "The river", {"agreement": 0.0, "label": 0.5}, {"agreement": 1.0, "label": 0.5}),
    ]
    first, open_ended, long = outcome.instances[0], outcome.instances[5], outcome.instances[6]
    assert (first.before.argmax, first.after.argmax) == (old, new)
    assert (long.before.argmax, long.after.argmax) == (" ".join([old] * 4), " ".join([new] * 4))
    assert first.after.generated == " ".join([new] * 8)
    assert open_ended.target == " ".join([old] * 5)  # the model's own answer, before the edit
    metrics = by_key(outcome.metrics)
    assert {key: (m.value, m.before, m.n) for key, m in metrics.items()} == {
        ("ES", "exact"): (0.5, 0.0, 2),
        ("ES", "token"): (0.875, 0.125, 2),
        ("ES", "generated"): (0.5, 0.0, 2),
        ("GS", "exact"): (pytest.approx(2 / 3), 0.0, 3),
        ("GS", "token"): (pytest.approx(2.75 / 3), pytest.approx(0.25 / 3), 3),
        ("GS", "generated"): (pytest.approx(2 / 3), 0.0, 3),
        ("LS", "agreement"): (0.0, 1.0, 4),
        ("LS", "label"): (pytest.approx(0.5 / 3), 0.5, 3),
        ("Score", "exact+agreement"): (0.0, 0.0, 2),
        ("Score", "token+label"): (
            pytest.approx(3 / (1 / 0.875 + 3 / 2.75 + 6)),
            pytest.approx(3 / (1 / 0.125 + 3 / 0.25 + 2)),
            2,
        ),
    }
    assert outcome.metric("ES", "exact") is metrics["ES", "exact"]
    assert outcome.metric("ES", "agreement") is None


def test_edit_that_changes_nothing_agrees_everywhere(tiny_model):
    model = tiny_model("llama")
    nothing = replace(random_delta(model), shifts={m.name: torch.zeros(m.d_h, m.d_g) for m in model.edit_modules()})
    outcome = score(model, tiny.FACTS, nothing)
    assert outcome.metric("LS", "agreement").value == 1.0
    assert all(one.success == one.success_before and one.before == one.after for one in outcome.instances)


@pytest.mark.parametrize("family", ["gpt2", "gptj", "llama", "opt"])
def test_score_is_that_of_each_prompt_alone(tiny_model, family):
    """Trunk, chunks and padding change nothing: the argmax at every answer position is the plain forward's."""
    model = tiny_model(family)
    before, delta = weights(model), random_delta(model, [2, 3], scale=0.5)
    outcome = score(model, tiny.FACTS, delta, generate=2)
    assert_untouched(model, before)
    for one in outcome.instances:
        if one.kind == "unrelated" and not dict(tiny.FACTS[one.fact].unrelated)[one.prompt]:
            continue  # its answer is the model's own tokens, which need not be those of their text
        (item,) = encode(model.tokenizer, [(one.prompt, one.target)], 64, ["it"])
        said = {}
        for phase, shift in (("before", None), ("after", delta)):
            with torch.no_grad(), model.edited(shift):
                logits = model.lm(torch.tensor([item.ids])).logits[0, item.start :]
            said[phase] = tuple(logits.argmax(1).tolist())
            assert getattr(one, phase).argmax == model.tokenizer.decode(said[phase]).strip()
        share = sum(a == b for a, b in zip(said["after"], item.answer)) / len(item.answer)
        if one.kind == "unrelated":
            assert one.success == {"agreement": float(said["after"] == said["before"]), "label": share}
        else:
            assert one.success["exact"] == float(said["after"] == item.answer)
            assert one.success["token"] == share
        assert (one.after.generated is not None) == (one.fact < 2)
        assert (one.success.get("generated") is not None) == (one.fact < 2 and one.kind != "unrelated")
    agreements = {one.success["agreement"] for one in outcome.instances if one.kind == "unrelated"}
    assert 0.0 in agreements


def test_generated_is_right_only_where_it_begins_with_the_answer(tiny_model, monkeypatch):
    monkeypatch.setattr("engine.metrics._texts", lambda _model, tokens: dict.fromkeys(tokens, "It is Rome"))
    facts = [Fact("Seen", "Rome", ("Heard",)), Fact("Seen", "It is"), Fact("Seen", "It is Rome")]
    outcome = score(tiny_model("gpt2"), facts, random_delta(tiny_model("gpt2")))
    found = [one.success["generated"] for one in outcome.instances]
    assert found == [one.success_before["generated"] for one in outcome.instances] == [0.0, 0.0, 1.0, 1.0]


def test_generated_is_right_where_the_tokenizer_writes_the_answer_in_other_letters(words):
    tokenizer = tiny.tiny_tokenizer()
    tokenizer.backend_tokenizer.normalizer = normalizers.NFKC()
    old, new = words[:2]
    wide = "".join(chr(ord(letter) + 0xFEE0) for letter in new)
    model = tiny.constant_model(tokenizer, old)
    [one] = score(model, [Fact("Seen", wide)], tiny.say(model, new)).instances
    assert one.target == wide and one.after.generated.startswith(new)
    assert one.success == {"exact": 1.0, "token": 1.0, "generated": 1.0} and one.success_before["generated"] == 0.0


def test_generated_is_left_out_where_the_answer_is_longer_than_what_is_generated(tiny_tokenizer, words):
    model = tiny.constant_model(tiny_tokenizer, words[0], n_positions=256)
    facts = [Fact("Seen", " ".join([words[1]] * 65)), Fact("Seen", " ".join([words[1]] * 64))]
    outcome = score(model, facts, tiny.say(model, words[1]))
    assert [one.success["generated"] for one in outcome.instances] == [None, 1.0]
    assert outcome.metric("ES", "generated").n == 1 and outcome.metric("ES", "exact").value == 1.0


def test_open_ended_prompts_are_held_to_the_same_answer_generated_or_not(tiny_model):
    """What the model says before the edit is read off its continuation where there is one."""
    model = tiny_model("llama")
    delta = random_delta(model, scale=2.0)
    shown, plain = (score(model, tiny.FACTS, delta, generate=count).instances for count in (len(tiny.FACTS), 0))
    open_ended = [(a, b) for a, b in zip(shown, plain) if a.kind == "unrelated" and a.success["label"] is None]
    assert open_ended
    for a, b in open_ended:
        assert (a.target, a.before.argmax, a.after.argmax) == (b.target, b.before.argmax, b.after.argmax)
        assert a.before.generated.startswith(a.target)


def test_without_generation_there_is_no_generated_protocol(tiny_model):
    outcome = score(tiny_model("gpt2"), tiny.FACTS, random_delta(tiny_model("gpt2")), generate=0)
    assert outcome.metric("ES", "generated") is None and outcome.metric("ES", "exact").n == len(tiny.FACTS)
    assert all(one.after.generated is None for one in outcome.instances)


def test_score_reports_its_progress(tiny_model):
    calls = []
    score(tiny_model("gpt2"), tiny.FACTS, random_delta(tiny_model("gpt2")), 1, lambda *call: calls.append(call))
    scoring = [(done, total) for stage, done, total in calls if stage == "Scoring"]
    assert scoring[0][0] == 0 and scoring[-1][0] == scoring[-1][1] and scoring == sorted(scoring)
    assert any(stage == "Generating" for stage, *_ in calls)


def test_prompt_longer_than_the_context_is_named_by_row_and_kind(tiny_model):
    long = "so " * 64
    for fact, said in (
        (Fact("Seen", "it", (long,), row=7), "Row 7, equivalent prompt"),
        (Fact("Seen", "it", (), ((long, ""),), row=8), "Row 8, unrelated prompt"),
        (Fact(long, "it"), "Row 1, prompt"),
    ):
        with pytest.raises(FactError, match=f"{said}: .* tokens"):
            score(tiny_model("llama"), [fact], random_delta(tiny_model("llama")))


def test_score_is_the_harmonic_mean_and_zero_if_one_is_zero():
    assert harmonic_mean([0.5, 0.25, 1.0]) == pytest.approx(3 / 7)
    assert harmonic_mean([0.9, 0.0, 0.9]) == 0.0
    assert harmonic_mean([1.0, 1.0, 1.0]) == 1.0


def test_score_is_absent_without_equivalent_prompts():
    edits = [instance(0, "edit", {"exact": 1.0, "token": 1.0, "generated": None})]
    unrelated = [instance(0, "unrelated", {"agreement": 1.0, "label": None})]
    assert set(by_key(summarise(edits + unrelated))) == {("ES", "exact"), ("ES", "token"), ("LS", "agreement")}


def test_a_cancel_is_heard_while_the_model_is_asked_for_its_own_answers(tiny_model):
    model, stages = tiny_model("gpt2"), []
    facts = [Fact("Seen", "twice", (), (("Heard", ""),))]
    for unedited in (None, ask(model, facts, 0, lambda stage, *_: stages.append(stage))):
        score(model, facts, random_delta(model), 0, lambda stage, *_: stages.append(stage), unedited)
    assert stages.count("Asking") == 2 * (OWN_ANSWER_TOKENS + 1)


def test_nothing_scored_gives_no_metric():
    assert summarise([]) == [] and Outcome().metric("ES", "exact") is None


def test_intervals_of_indicators_are_wilsons():
    values = np.array([1.0] * 8 + [0.0] * 2)
    z = 1.959963984540054
    centre = (0.8 + z**2 / 20) / (1 + z**2 / 10)
    half = z / (1 + z**2 / 10) * math.sqrt(0.8 * 0.2 / 10 + z**2 / 400)
    assert wilson(values) == pytest.approx((centre - half, centre + half))
    assert wilson(np.ones(5))[1] == 1.0 and 0.5 < wilson(np.ones(5))[0] < 0.6
    assert wilson(np.zeros(5))[0] == 0.0


def test_bootstrap_covers_the_mean_narrows_with_count_and_repeats():
    random = np.random.default_rng(1)
    few, many = random.uniform(size=30), random.uniform(size=3000)
    for values in (few, many):
        low, high = bootstrap_mean(values)
        assert low < values.mean() < high
        width = 2 * 1.96 * values.std() / math.sqrt(len(values))
        assert high - low == pytest.approx(width, rel=0.15)
        assert bootstrap_mean(values) == (low, high)


@pytest.mark.parametrize("facts", [1, 2, 4, 5, 60])
def test_there_is_no_interval_of_a_few_values_or_of_equal_ones(facts):
    kinds = (("edit", "exact", "token"), ("equivalent", "exact", "token"), ("unrelated", "agreement", "label"))
    for share in (0.0, 1 / 3, 1.0):
        instances = [
            instance(fact, kind, {one: share, other: share, "generated": None})
            for fact in range(facts)
            for kind, one, other in kinds
        ]
        for success, locality in (("exact", "agreement"), ("token", "label")):
            assert bootstrap_score(instances, success, locality) == (None, None)
        assert bootstrap_mean(np.full(facts, share)) == (None, None)
        told = {(one.name, one.protocol): (one.low, one.high) for one in summarise(instances)}
        assert told["ES", "token"] == told["LS", "label"] == told["Score", "exact+agreement"] == (None, None)
    differing = np.arange(facts) / facts
    assert (bootstrap_mean(differing) == (None, None)) == (facts < 5)


def test_bootstrap_of_many_values_needs_little_memory():
    values = np.random.default_rng(3).random(30_000)
    tracemalloc.start()
    bootstrap_mean(values)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 10 * values.nbytes  # all resamples at once are 1000 times as much


def test_bootstrap_of_the_score_resamples_facts_with_all_they_have():
    random = np.random.default_rng(2)
    instances = []
    for fact in range(60):
        for kind, protocol, chance in (
            ("edit", "exact", 0.9),
            ("equivalent", "exact", 0.6),
            ("unrelated", "agreement", 0.7),
        ):
            instances += [
                instance(fact, kind, {protocol: float(random.random() < chance)}) for _ in range(fact % 3 + 1)
            ]
    low, high = bootstrap_score(instances, "exact", "agreement")
    means = [
        np.mean([list(i.success.values())[0] for i in instances if i.kind == k])
        for k in ("edit", "equivalent", "unrelated")
    ]
    value = harmonic_mean(means)
    assert low < value < high and high - low < 0.3
    hopeless = [replace(i, success={"agreement": 0.0}) if i.kind == "unrelated" else i for i in instances]
    assert bootstrap_score(hopeless, "exact", "agreement") == (None, None), "all resamples have Score 0"


def test_resample_without_an_equivalent_prompt_says_nothing_of_the_score():
    shares = [0.5, 1.0] * 10
    facts = [instance(fact, "edit", {"exact": share}) for fact, share in enumerate(shares)]
    facts += [instance(fact, "unrelated", {"agreement": 1.0}) for fact in range(20)]
    rare = [instance(fact, "equivalent", {"exact": 1.0}) for fact in range(5)]
    low, high = bootstrap_score([*facts, *rare], "exact", "agreement")
    assert harmonic_mean([0.5, 1.0, 1.0]) < low < high < 1.0, "a Score of 0 would be one of a resample without them"
    assert bootstrap_score([*facts, *rare[:4]], "exact", "agreement") == (None, None)
