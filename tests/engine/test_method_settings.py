"""The one table of settings: it fits the editors, and what a person sets goes before it."""

from dataclasses import fields

import pytest

from engine.editors import EDITORS
from engine.layers import layers_at_depth
from engine.method_settings import METHOD_SETTINGS, with_table
from engine.model import FAMILIES, EditableModel

LOCATING = [name for name, editor in EDITORS.items() if "subject" in editor.needs]


@pytest.mark.parametrize("row", METHOD_SETTINGS)
def test_every_value_is_of_a_setting_that_takes_it(row):
    for method, values in METHOD_SETTINGS[row].items():
        defaults = {item.name: item.default for item in fields(EDITORS[method].Settings)}
        for name, value in values.items():
            assert defaults[name] in (0, "", "auto") and type(defaults[name]) is type(value), (method, name)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("method", LOCATING)
def test_nothing_is_left_open_for_any_family(tiny_model, family, method):
    settings = with_table(tiny_model(family), method, EDITORS[method].Settings())
    left = {item.name for item in fields(settings) if getattr(settings, item.name) in (0, "auto")}
    assert left == {"seed"}
    assert layers_at_depth(settings.layers, 4)


def test_rows_are_found_by_name_then_family_and_unknown_families_take_llamas(tiny_model):
    def layers(model: EditableModel) -> str:
        return with_table(model, "memit", EDITORS["memit"].Settings()).layers

    gptj, llama = tiny_model("gptj"), tiny_model("llama")
    assert layers(gptj) == "3-8 of 28" and layers(tiny_model("mistral")) == layers(llama) == "4-8 of 32"
    assert layers(tiny_model("opt")) == layers(llama)
    named = EditableModel(gptj.lm, gptj.tokenizer, "embedded", gptj.placement)
    assert layers(named) == METHOD_SETTINGS["embedded"]["memit"]["layers"]


def test_what_a_person_sets_goes_before_the_table(tiny_model):
    settings = EDITORS["memit"].Settings(layers="2", target_rate=0.1, covariance_weight=7.0)
    found = with_table(tiny_model("gptj"), "memit", settings)
    assert (found.layers, found.target_rate, found.covariance_weight) == ("2", 0.1, 7.0)
    assert (found.target_clamp, found.target_steps) == (0.75, 25)
