"""A comparison: each method as if it ran alone, the unedited model asked once, a failure kept as its reason."""

import gc
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from engine import checkpoint as checkpoints
from engine import comparison as comparisons
from engine.comparison import ABLATIONS, Comparison, Entry, Step, pareto_front, relative_norm
from engine.editing import run_edit
from engine.editors import EDITORS, Editor
from engine.errors import Cancelled, EditingError, FactError
from engine.metrics import ask, score
from tests.engine import tiny
from tests.engine.test_editors import AT_THE_ANSWER, QUICK, SMALL
from tests.engine.test_memory import tensor_bytes
from tests.engine.test_model import assert_untouched, weights

FACTS = tiny.FACTS
FT = Entry("ft", settings=QUICK["ft"])
ULTRA = Entry("ultraedit", settings={"layers": "1-3"})
TIMES = ("seconds", "score_seconds", "prepare_seconds", "peak_memory_bytes", "base_memory_bytes")


@pytest.fixture
def model(tiny_model):
    return tiny_model("llama")


@pytest.fixture
def folders(model, tmp_path, monkeypatch) -> tuple[Path]:
    """A hypernetwork for AGRADE, MALMEN and MEND; none is shipped, and covariances lie away from the person's own."""
    monkeypatch.setattr(checkpoints, "SHIPPED", tmp_path / "none")
    monkeypatch.setenv("AGRADE_STUDIO_CACHE", str(tmp_path / "cache"))
    for method in ("agrade", "malmen", "mend"):
        tiny.random_checkpoint(model, method).save(tmp_path / "hypernets" / method)
    return (tmp_path / "hypernets",)


@dataclass(frozen=True)
class Room:
    room: int = 2


def greedy(room: int) -> type[Editor]:
    """An editor for which so many facts fit; for more it asks the allocator for more than there can be."""

    class Greedy(Editor):
        title, Settings = "Greedy", Room

        def __init__(self, settings):
            self.settings = settings

        def edit(self, model, facts, progress=comparisons.silent):
            if len(facts) > room:
                torch.empty(1 << 60, dtype=torch.uint8)
            return EDITORS["ultraedit"](EDITORS["ultraedit"].Settings(layers="1-3")).edit(model, facts, progress)

    return Greedy


class Broken(Editor):
    title, Settings = "Broken", Room

    def __init__(self, settings):
        self.settings = settings

    def edit(self, model, facts, progress=comparisons.silent):
        raise ZeroDivisionError("no luck")


def plain(run) -> dict:
    """An EditRun without what differs from run to run."""
    return {name: value for name, value in vars(run).items() if name not in (*TIMES, "delta")}


def test_every_entry_is_what_it_is_alone(model, folders):
    before = weights(model)
    entries = [Entry("agrade"), Entry("malmen", settings={"step_scale": 0.5}), FT]
    results = list(Comparison(model, FACTS, entries, generate=1, folders=folders).results())
    assert_untouched(model, before)
    assert [one.step.name for one in results] == ["Unedited model", "AGRADE", "MALMEN", "FT"]
    for entry, result in zip(entries, results[1:]):
        alone = run_edit(model, FACTS, entry.method, entry.settings, folders=folders, generate=1)
        assert plain(result.run) == plain(alone) and not result.error
        assert result.outcome is result.run.outcome
        assert result.run.seconds > 0 and result.run.prepare_seconds >= 0
        assert result.relative_norm == pytest.approx(relative_norm(model, alone.delta))


def test_the_unedited_model_is_a_row_of_its_own(model, folders):
    unedited, edited = Comparison(model, FACTS, [FT], generate=1, folders=folders).results()
    assert unedited.run is None and unedited.step.entry is None
    assert {(m.name, m.protocol): m.value for m in unedited.outcome.metrics} == {
        (m.name, m.protocol): m.before for m in edited.outcome.metrics
    }
    assert unedited.outcome.metric("LS", "agreement").value == 1
    assert all(one.before == one.after and one.success == one.success_before for one in unedited.outcome.instances)


def test_the_unedited_model_is_asked_once(model, folders, monkeypatch):
    asked = []
    monkeypatch.setattr(comparisons, "ask", lambda *given: asked.append(given) or ask(*given))
    list(Comparison(model, FACTS, [FT, ULTRA], sizes=[1, 2], folders=folders).results())
    assert len(asked) == 1


def test_scores_against_the_answers_asked_before_are_the_same(model):
    delta = run_edit(model, FACTS, "ft", QUICK["ft"], generate=0).delta
    unedited = ask(model, FACTS, 2)
    assert score(model, FACTS, delta, unedited=unedited) == score(model, FACTS, delta, 2)
    assert score(model, FACTS[:3], delta, unedited=unedited.first(3)) == score(model, FACTS[:3], delta, 2)


def test_sizes_are_the_first_facts_and_come_after_the_whole_batch(model, folders):
    comparison = Comparison(model, FACTS, [FT, ULTRA], sizes=[2, 1, 99, 2, len(FACTS)], generate=1, folders=folders)
    assert [(one.name, one.n_facts) for one in comparison.steps] == [
        (name, size) for size in (5, 1, 2) for name in ("Unedited model", "FT", "UltraEdit")
    ]
    stages = set()
    results = list(comparison.results(lambda stage, *_: stages.add(stage)))
    assert {"FT · Scoring", "FT, 1 fact · Scoring", "FT, 2 facts · Scoring"} <= stages
    alone = run_edit(model, FACTS[:2], "ft", QUICK["ft"], generate=1)
    assert plain(results[7].run) == plain(alone)
    assert results[6].outcome.metrics == ask(model, FACTS[:2], 1).outcome(model).metrics


def test_a_method_that_fails_is_a_row_with_its_reason(model, folders, monkeypatch):
    monkeypatch.setitem(EDITORS, "broken", Broken)
    elsewhere = Entry("agrade", hypernet=folders[0] / "nowhere")
    results = list(Comparison(model, FACTS, [Entry("broken"), elsewhere, FT], folders=folders).results())
    assert [bool(one.outcome) for one in results] == [True, False, False, True]
    assert results[1].error == "Unexpected error: ZeroDivisionError: no luck"
    assert "card.json" in results[2].error
    assert all(one.run is None and one.relative_norm is None for one in results[1:3])


@pytest.mark.parametrize(("room", "fits", "said"), [(2, 2, "2 of the 5 facts did fit"), (0, 0, "not even one")])
def test_out_of_memory_says_what_would_fit(model, folders, monkeypatch, room, fits, said):
    monkeypatch.setitem(EDITORS, "greedy", greedy(room))
    before = weights(model)
    _, starved, edited = Comparison(model, FACTS, [Entry("greedy"), FT], folders=folders).results()
    assert starved.fits == fits and "ran out of memory" in starved.error and said in starved.error
    assert edited.outcome is not None
    assert_untouched(model, before)


def test_out_of_memory_stays_the_reason_when_fewer_facts_fail_otherwise(model, folders, monkeypatch):
    class Moody(greedy(2)):
        def edit(self, model, facts, progress=comparisons.silent):
            if len(facts) == 2:
                raise EditingError("Two is no batch.")
            return super().edit(model, facts, progress)

    monkeypatch.setitem(EDITORS, "moody", Moody)
    _, starved, edited = Comparison(model, FACTS, [Entry("moody"), FT], folders=folders).results()
    assert "ran out of memory" in starved.error and "Two is no batch" not in starved.error and starved.fits is None
    assert edited.outcome is not None


def test_cancel_keeps_what_is_finished(model, folders):
    reports = []

    def progress(stage, done, total):
        reports.append(stage)
        if stage.startswith("UltraEdit"):
            raise Cancelled

    before, results = weights(model), []
    with pytest.raises(Cancelled):
        for result in Comparison(model, FACTS, [FT, ULTRA], folders=folders).results(progress):
            results.append(result)
    assert [one.step.name for one in results] == ["Unedited model", "FT"]
    assert reports[-1] == "UltraEdit · Editing" and {"FT · Editing", "FT · Scoring"} <= set(reports)
    assert_untouched(model, before)
    assert model.lock.acquire(blocking=False)
    model.lock.release()


def test_preparation_is_told_apart_from_the_edit(model, folders):
    settings = {"covariance_tokens": 64, "target_steps": 2, "layers": "1"}
    comparison = Comparison(model, AT_THE_ANSWER, [Entry("memit", settings=settings)], [4], 0, folders)
    first, again = (one for one in comparison.results() if one.run)
    assert first.run.prepare_seconds > again.run.prepare_seconds >= 0, "C was measured once, and then was there"
    assert again.run.seconds > 0


def test_ablations_leave_out_what_they_say(model, folders):
    entries = [Entry("agrade"), *(Entry("agrade", key) for key in ABLATIONS)]
    results = list(Comparison(model, FACTS, entries, generate=0, folders=folders).results())[1:]
    names = ["AGRADE", *(f"AGRADE w/o {part}" for part in ("adjustment c", "regularization", "weights projection"))]
    assert [one.step.name for one in results] == [*names, "AGRADE w/o gradient projection"]
    whole, *others, trained = results
    switches = ({"coefficient": False}, {"regularisation": False}, {"projection": "off"})
    for switch, result in zip(switches, others):
        assert switch.items() <= result.run.settings.items()
        assert result.run.delta.norms != whole.run.delta.norms
        assert "Left out of the edit only" in result.run.notes[0]
    assert trained.run is None and "needs a hypernetwork trained so" in trained.error


def test_an_ablation_takes_a_hypernetwork_that_was_trained_so(model, folders):
    off = tiny.random_checkpoint(model, gradient_projection=False)
    off.save(folders[0] / "no-eq6")
    tiny.random_checkpoint(model, gradient_projection=False, coefficient=False).save(folders[0] / "less")
    ablation, note = Entry("agrade", "no-gradient-projection").resolved(model, folders)
    assert ablation.hypernet == folders[0] / "no-eq6" and ablation.ablation == ""
    assert note == ["The hypernetwork no-eq6 was trained so."]
    tiny.random_checkpoint(model, projection="off").save(folders[0] / "no-eq4")
    ablation, _ = Entry("agrade", "no-weights-projection", {"projection": "scaled"}).resolved(model, folders)
    assert ablation.hypernet == folders[0] / "no-eq4"
    assert ablation.settings == {"projection": "off"}, "a setting of AGRADE's does not bring the ablated part back"


@pytest.mark.parametrize(
    ("entries", "sizes", "said"),
    [
        ([], (), "No method was chosen"),
        ([Entry("magic")], (), "Unknown method 'magic'"),
        ([Entry("ft", "no-c")], (), "no ablation 'ft:no-c': choose agrade:no-c"),
        ([Entry("agrade", "no-luck")], (), "no ablation 'agrade:no-luck'"),
        ([Entry("ft", settings={"eta": 1.0})], (), "FT has no setting eta; it has batch_size"),
        ([FT, ULTRA, FT], (), "ft was chosen twice"),
        ([FT], (8, 0), "below one fact"),
    ],
)
def test_what_cannot_be_meant_is_refused_before_any_work(model, entries, sizes, said):
    with pytest.raises(EditingError, match=said):
        Comparison(model, FACTS, entries, sizes)


def test_no_facts_and_facts_that_do_not_fit_are_refused(model):
    with pytest.raises(FactError, match="no fact to edit"):
        Comparison(model, [], [FT])
    long = replace(FACTS[0], prompt="word " * 200)
    with pytest.raises(FactError, match="context holds"):
        next(Comparison(model, [long], [FT]).results())


@pytest.mark.parametrize("method", EDITORS)
def test_no_method_keeps_anything_after_its_run(model, folders, method):
    names = EDITORS[method].Settings.__dataclass_fields__
    settings = QUICK.get(method, {}) | {name: value for name, value in SMALL.items() if name in names}
    entries = [Entry(method, settings=settings | ({"covariance_tokens": 64} if "covariance_tokens" in names else {}))]
    comparison = Comparison(model, AT_THE_ANSWER[:2], entries, generate=0, folders=folders)
    assert comparison.run(Step(None, 2)).outcome
    for _ in range(2):  # the first run may load what the library keeps for good
        gc.collect()
        held = tensor_bytes()
        assert not comparison.run(comparison.steps[1]).error
    gc.collect()
    assert tensor_bytes() == held


@given(st.lists(st.tuples(st.integers(0, 9), st.integers(0, 9)), max_size=12))
def test_the_pareto_front_is_what_nothing_beats(points):
    front = pareto_front(points)
    best = [points[index] for index in front]
    assert best == sorted(best) and len(set(best)) == len(best)
    for cost, worth in points:
        beaten = any(c <= cost and w >= worth and (c, w) != (cost, worth) for c, w in points)
        assert ((cost, worth) in best) == (not beaten)
