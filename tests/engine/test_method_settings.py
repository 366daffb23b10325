"""The one table of settings: it fits the editors and the families, and what a person sets goes before it."""

from dataclasses import fields, replace

import pytest

from engine.editors import EDITORS
from engine.embedded import EMBEDDED_WEIGHTS_SHA256
from engine.layers import layers_at_depth
from engine.method_settings import ANY, TABLE, resolved
from engine.model import EMBEDDED, FAMILIES, EditableModel

LOCATING = [name for name, editor in EDITORS.items() if "subject" in editor.needs]


@pytest.mark.parametrize("row", TABLE)
def test_every_value_is_of_a_setting_that_takes_it(row):
    assert row in (ANY, EMBEDDED, *FAMILIES)
    for method, values in TABLE[row].items():
        defaults = {item.name: item.default for item in fields(EDITORS[method].Settings)}
        for name, value in values.items():
            assert not defaults[name] and type(defaults[name]) is type(value), (method, name)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("method", LOCATING)
def test_nothing_is_left_open_for_any_family(tiny_model, family, method):
    settings = resolved(EDITORS[method].Settings(), tiny_model(family), method)
    left = {item.name for item in fields(settings) if not getattr(settings, item.name)}
    assert left == {"seed", "covariance_text"}
    assert layers_at_depth(settings.layers, 4)


def test_models_row_goes_before_its_familys_and_that_before_any_models(tiny_model):
    def layers(model: EditableModel) -> str:
        return resolved(EDITORS["memit"].Settings(), model, "memit").layers

    gptj, llama = tiny_model("gptj"), tiny_model("llama")
    assert layers(gptj) == "3-8 of 28" and layers(tiny_model("mistral")) == layers(llama) == "4-8 of 32"
    named = EditableModel(llama.lm, llama.tokenizer, EMBEDDED, llama.placement)
    rate = TABLE[EMBEDDED]["ft"]["learning_rate"]
    assert resolved(EDITORS["ft"].Settings(), named, "ft").learning_rate == rate != TABLE[ANY]["ft"]["learning_rate"]
    assert resolved(EDITORS["ft"].Settings(), named, "ft").steps == TABLE[ANY]["ft"]["steps"]
    copied = EditableModel(llama.lm, llama.tokenizer, "/a/folder", llama.placement)
    copied.sha256 = EMBEDDED_WEIGHTS_SHA256
    assert resolved(EDITORS["ft"].Settings(), copied, "ft").learning_rate == rate, "its weights are the embedded model's"


def test_what_a_person_sets_goes_before_the_table(tiny_model):
    model = tiny_model("gptj")
    found = resolved(EDITORS["memit"].Settings(layers="2", target_rate=0.1, covariance_weight=7.0), model, "memit")
    assert (found.layers, found.target_rate, found.covariance_weight) == ("2", 0.1, 7.0)
    assert (found.target_clamp, found.target_steps) == (0.75, 25)
    lora = EDITORS["lora"].Settings()
    assert resolved(replace(lora, dropout=0.0), model, "lora").dropout == 0
