"""A grid search begins with the model's own settings, betters one after another, keeps to its budget, goes on."""

import json
from dataclasses import fields

import pytest

from engine import grid_search
from engine.editing import make_editor
from engine.editors import EDITORS, memit
from engine.errors import Cancelled, EditingError
from engine.grid_search import GridSearch, Trial
from engine.method_settings import resolved
from engine.metrics import score
from engine.progress import silent
from engine.targets import find_targets
from tests.engine import tiny

FACTS = tiny.FACTS
GRID = {"learning_rate": (1e-3, 1e-2, 3e-2), "steps": (5, 20)}


@pytest.fixture
def model(tiny_model):
    return tiny_model("llama")


@pytest.mark.parametrize("method", EDITORS)
def test_every_method_has_a_grid_of_values_its_settings_take(method):
    cls = EDITORS[method]
    defaults = {item.name: item for item in fields(cls.Settings)}
    assert cls.grid
    for name, values in cls.grid.items():
        item = defaults[name]
        assert len(values) > 1 and len(set(values)) == len(values)
        assert all(type(value) is type(item.default) for value in values), name
        assert set(values) <= set(item.metadata.get("choices", values))


@pytest.mark.parametrize("method", [name for name, cls in EDITORS.items() if "layers" in cls.grid])
def test_every_range_of_layers_is_there_in_a_model_of_any_depth(tiny_model, method):
    for layers in EDITORS[method].grid["layers"]:
        cls = EDITORS[method]
        assert cls(cls.Settings(layers=layers)).modules(tiny_model("gpt2"))


def ranked(monkeypatch, rank):
    """Trials that run nothing: `rank` tells from the settings what they are worth."""

    def attempt(search, settings, sets, progress):
        value = rank(search.own | settings)
        return Trial(dict(settings), {"set": {"ES": value, "GS": value, "LS": value, "Score": value, "seconds": 1.0}})

    monkeypatch.setattr(GridSearch, "attempt", attempt)


def test_own_settings_first_then_each_setting_at_the_best_of_the_others_then_the_rest(model, monkeypatch):
    grid = {"learning_rate": (1.0, 2.0, 3.0), "steps": (4, 5, 6)}
    ranked(monkeypatch, lambda s: 0.9 - 0.1 * abs(s["learning_rate"] - 3) - 0.1 * abs(s["steps"] - 4))
    search = GridSearch(model, {"set": FACTS}, "ft", grid, {"batch_size": 2})
    tried = [trial.settings for trial in search.run(1e9)]
    rates = [{"learning_rate": rate} for rate in (1.0, 2.0, 3.0)]
    assert tried[:4] == [{}, *rates]
    assert tried[4:7] == [{"learning_rate": 3.0, "steps": steps} for steps in (4, 5, 6)]
    assert search.best.settings == {"learning_rate": 3.0, "steps": 4}
    assert tried[7:9] == [{"learning_rate": rate, "steps": 4} for rate in (1.0, 2.0)], "the second round"
    assert len(tried) == 1 + 3 + 9 and len({json.dumps(one, sort_keys=True) for one in tried}) == len(tried)


def test_the_budget_ends_it_the_first_trial_not_counted(model, monkeypatch):
    ranked(monkeypatch, lambda settings: 0.5)
    clock = iter(range(0, 10_000, 10))
    monkeypatch.setattr(grid_search.time, "perf_counter", lambda: next(clock))
    search = GridSearch(model, {"set": FACTS}, "ft", {"steps": (1, 2, 3, 4, 6, 7, 8, 9)})
    assert len(list(search.run(25))) == 4 and search.seconds == 30, "10 s each; the one begun in time is finished"
    assert len(list(GridSearch(model, {"set": FACTS}, "ft", GRID).run(0))) == 1


def test_a_trial_is_the_edit_with_its_score(model):
    search = GridSearch(model, {"all": FACTS, "two": FACTS[:2]}, "ft", GRID, {"layers": "1"})
    assert search.own["layers"] == "1" and search.own["steps"] == resolved(EDITORS["ft"].Settings(), model, "ft").steps
    trial = search.attempt({"learning_rate": 1e-2}, search.sets, lambda *_: None)
    editor = EDITORS["ft"](EDITORS["ft"].Settings(layers="1", learning_rate=1e-2))
    outcome = score(model, FACTS, editor.edit(model, FACTS).delta, 0)
    for name, protocol in (grid_search.MEASURED | {"Score": "exact+agreement"}).items():
        assert trial.figures["all"][name] == pytest.approx(outcome.metric(name, protocol).value)
    assert trial.mean("ES") == pytest.approx(sum(one["ES"] for one in trial.figures.values()) / 2)
    assert trial.figures["all"]["seconds"] > 0


def test_facts_edited_some_at_once_are_scored_together(model):
    settings = {"layers": "1", "steps": 5}
    search = GridSearch(model, {"all": FACTS}, "ft", {"learning_rate": (1e-3, 1e-2)}, settings, at_once=2)
    trial = search.attempt({}, search.sets, silent)
    editor = EDITORS["ft"](EDITORS["ft"].Settings(**settings))
    parts = [FACTS[first : first + 2] for first in range(0, len(FACTS), 2)]
    assert len(parts) > 1 and len(parts[-1]) == 1, "the last part is what is left"
    outcomes = [score(model, part, editor.edit(model, part).delta, 0) for part in parts]
    for name, protocol in grid_search.MEASURED.items():
        metrics = [one for outcome in outcomes if (one := outcome.metric(name, protocol))]
        wanted = sum(one.value * one.n for one in metrics) / sum(one.n for one in metrics)
        assert trial.figures["all"][name] == pytest.approx(wanted)
    whole = GridSearch(model, {"all": FACTS}, "ft", {"learning_rate": (1e-3, 1e-2)}, settings)
    search.trials.append(trial)
    with pytest.raises(EditingError, match="differs in its at_once"):
        whole.resume(search.report())


def test_without_equivalent_prompts_there_is_no_score_but_a_rank(model):
    [fact] = FACTS[2:3]
    assert not fact.equivalent
    trial = GridSearch(model, {"one": [fact]}, "ft", GRID).attempt({}, {"one": [fact]}, lambda *_: None)
    assert "Score" not in trial.figures["one"] and trial.mean("Score") is None
    es, ls = trial.figures["one"]["ES"], trial.figures["one"]["LS"]
    assert trial.rank[1] == pytest.approx((es + ls) / 2) and trial.rank[0] >= 0


def test_of_two_scores_of_0_the_nearer_one_is_better_and_a_failure_is_worst():
    def trial(es, gs):
        return Trial({}, {"a": {"ES": es, "GS": gs, "LS": 0.9, "Score": 0.0, "seconds": 1.0}})

    assert trial(0.0, 0.0).rank < trial(0.8, 0.0).rank < trial(0.1, 0.1).rank
    assert Trial({}, {}, "it failed").rank < trial(0.0, 0.0).rank


def test_a_trial_that_fails_is_told_and_the_others_go_on(model):
    search = GridSearch(model, {"all": FACTS}, "ft", {"layers": ("77", "1")})
    own, failed, good = search.run(1e9)
    assert "asked for [77]" in failed.error and not failed.figures
    assert not own.error and not good.error and search.best is not failed


def test_a_trial_with_a_fault_that_nobody_foresaw_fails_alone_but_a_cancel_ends_them(model, monkeypatch):
    def figures(search, settings, facts, progress):
        if settings.get("steps") == 1:
            raise ZeroDivisionError("float division by zero")
        if settings.get("steps") == 3:
            raise Cancelled
        return {"ES": 0.5, "GS": 0.5, "LS": 0.5, "Score": 0.5, "seconds": 1.0}

    monkeypatch.setattr(GridSearch, "_figures", figures)
    search = GridSearch(model, {"all": FACTS}, "ft", {"steps": (1, 2, 3)})
    with pytest.raises(Cancelled):
        list(search.run(1e9))
    own, failed, good = search.trials
    assert failed.error == "Unexpected error: ZeroDivisionError: float division by zero" and not failed.figures
    assert not own.error and not good.error and search.best is not failed


def test_hypernetworks_are_tuned_in_the_length_of_their_step(model, tmp_path):
    folder = tiny.random_checkpoint(model).save(tmp_path / "net")
    search = GridSearch(model, {"all": FACTS[:2]}, "agrade", {"step_scale": (0.5, 2.0)}, hypernet=folder)
    assert [trial.settings for trial in search.run(1e9)] == [{}, {"step_scale": 0.5}, {"step_scale": 2.0}]
    assert search.identity["hypernet"] == "net" and not any(trial.error for trial in search.trials)


def test_target_states_are_found_once_for_all_settings_that_do_not_concern_them(model, monkeypatch, tmp_path):
    monkeypatch.setenv("AGRADE_STUDIO_CACHE", str(tmp_path))
    found = []
    monkeypatch.setattr(memit, "find_targets", lambda *given: found.append(given[3:5]) or find_targets(*given))
    grid = {"covariance_weight": (1.0, 9.0), "layers": ("0", "1"), "target_clamp": (0.1, 0.25)}
    small = {"covariance_tokens": 512, "target_steps": 3}
    search = GridSearch(model, {"all": FACTS, "two": FACTS[:2]}, "memit", grid, small)
    trials = [search.attempt(settings, search.sets, silent) for settings in ({}, {"covariance_weight": 9.0})]
    assert len(found) == 2, "once for each set"
    assert trials[0].mean("seconds") > 0 and trials[1].mean("seconds") > 0
    alone = make_editor(model, "memit", small | {"covariance_weight": 9.0})[0].edit(model, FACTS).delta
    again, _ = make_editor(model, "memit", small | {"covariance_weight": 9.0})
    again.keep(search._found)
    assert again.edit(model, FACTS).delta.norms == alone.norms and len(found) == 3
    search.attempt({"layers": "0"}, search.sets, silent)
    search.attempt({"target_clamp": 0.1}, search.sets, silent)
    assert len(found) == 7


def test_a_cancelled_search_goes_on_without_repeating_a_trial(model, monkeypatch):
    ranked(monkeypatch, lambda settings: settings["learning_rate"])
    first = GridSearch(model, {"set": FACTS}, "ft", GRID)

    def cancel(_stage, done, _total):
        if done == 3:
            raise Cancelled

    with pytest.raises(Cancelled):
        list(first.run(1e9, cancel))
    kept = json.loads(json.dumps(first.report()))
    assert len(kept["trials"]) == 3 and kept["best"] == first.best.settings
    second = GridSearch(model, {"set": FACTS}, "ft", GRID)
    second.resume(kept)
    assert second.trials == first.trials
    tried = [trial.settings for trial in second.run(1e9)]
    assert len(tried) and not [one for one in tried if one in [trial.settings for trial in first.trials]]
    other = GridSearch(model, {"set": FACTS[:2]}, "ft", GRID)
    with pytest.raises(EditingError, match="differs in its facts"):
        other.resume(kept)


def test_what_cannot_be_searched_is_named(model):
    with pytest.raises(EditingError, match="FT has no setting momentum to vary; it has batch_size"):
        GridSearch(model, {"all": FACTS}, "ft", {"momentum": (1, 2)})
    with pytest.raises(EditingError, match="nothing to vary"):
        GridSearch(model, {"all": FACTS}, "ft", {"steps": (1, 2)}, {"steps": 3})
