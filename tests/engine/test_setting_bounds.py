"""Every setting of every editor says what it may be, and anything else is refused in a sentence before any work."""

from dataclasses import fields

import pytest

from engine.comparison import Comparison, Entry
from engine.editing import make_editor
from engine.editors import EDITORS
from engine.errors import EditingError
from engine.grid_search import GridSearch
from engine.method_settings import TABLE
from engine.setting_bounds import check_settings
from tests.engine.tiny import FACTS

ITEMS = [(method, item) for method, editor in EDITORS.items() for item in fields(editor.Settings)]
NUMBERS = [(method, item) for method, item in ITEMS if type(item.default) in (int, float)]
# What an edit never ends with, does nothing with, or fails with.
WRONG = [
    ("memit", "target_steps", -1),
    ("memit", "target_clamp", -1.0),
    ("memit", "seed", 2**62),
    ("memit", "covariance_tokens", 0),
    ("emmet", "ridge", -1.0),
    ("ultraedit", "eta", -1.0),
    ("ft", "batch_size", -5),
    ("ft", "steps", -1),
    ("ft", "learning_rate", -1e-3),
    ("lora", "rank", 0),
    ("lora", "alpha", 0.0),
    ("lora", "dropout", 1.5),
    ("lora", "dropout", 1.0),
    ("lora", "seed", 2**70),
    ("agrade", "rounds", -1),
    ("agrade", "projection", "sideways"),
]


def named(pair) -> str:
    return f"{pair[0]}-{pair[1].name}"


def check(method: str, **settings) -> None:
    check_settings(EDITORS[method].title, EDITORS[method].Settings, settings)


@pytest.mark.parametrize(("method", "item"), NUMBERS, ids=map(named, NUMBERS))
def test_every_number_has_bounds_and_what_is_beyond_them_is_refused(method, item):
    low, high = item.metadata["bounds"]
    assert type(low) is type(high) is type(item.default)
    check(method, **{item.name: low})
    check(method, **{item.name: high})
    below, above = (low - 1, high + 1) if type(low) is int else (low - 1e-3, high * 1.001)
    for value in (below, above, float("nan"), float("inf"), -float("inf"), 10**400):
        with pytest.raises(EditingError) as raised:
            check(method, **{item.name: value})
        told = str(raised.value)
        assert told.startswith(f"{EDITORS[method].title} cannot take {item.name}={value!r}: give a ")
        assert f"number from {low:,} to {high:,}." in told or f"number from {low:g} to {high:g}." in told


@pytest.mark.parametrize(("method", "item"), ITEMS, ids=map(named, ITEMS))
def test_a_value_of_another_type_is_refused(method, item):
    other = {bool: 1, str: 1, int: 1.5, float: "1"}[type(item.default)]
    for value in (None, [], other):
        with pytest.raises(EditingError, match="cannot take"):
            check(method, **{item.name: value})
    if type(item.default) is float:
        check(method, **{item.name: 1 if item.name != "dropout" else 0})
    if type(item.default) in (int, float):
        with pytest.raises(EditingError, match="cannot take"):
            check(method, **{item.name: True})


@pytest.mark.parametrize("method", EDITORS)
def test_defaults_the_tables_values_and_those_tuned_over_are_allowed(method):
    editor = EDITORS[method]
    check(method, **{item.name: item.default for item in fields(editor.Settings)})
    for row in TABLE.values():
        check(method, **row.get(method, {}))
    for name, values in editor.grid.items():
        for value in values:
            check(method, **{name: value})


@pytest.mark.parametrize(("method", "name", "value"), WRONG)
def test_no_editor_is_made_compared_or_tuned_with_what_it_cannot_take(tiny_model, method, name, value):
    model, refused = tiny_model("llama"), rf"{EDITORS[method].title} cannot take {name}="
    with pytest.raises(EditingError, match=refused):
        make_editor(model, method, {name: value})
    with pytest.raises(EditingError, match=refused):
        Comparison(model, FACTS, [Entry("ft"), Entry(method, settings={name: value})])
    with pytest.raises(EditingError, match=refused):
        GridSearch(model, {"facts": FACTS}, method, fixed={name: value})


def test_a_grid_with_a_value_that_cannot_be_is_refused_before_the_first_trial(tiny_model):
    with pytest.raises(EditingError, match="FT cannot take steps=-1: give a whole number from 0 to 100,000."):
        GridSearch(tiny_model("llama"), {"facts": FACTS}, "ft", {"steps": (5, -1)})
