"""The form of a settings dataclass: a control that fits each field, and answers read back as the field's type."""

from dataclasses import dataclass, field, fields

import gradio as gr
import pytest

from engine.editors import EDITORS
from engine.errors import EditingError
from engine.train_settings import TrainSettings
from studio.components.settings_form import SettingsForm, control, title, value, whole


@dataclass(frozen=True)
class Settings:
    switch: bool = field(default=True, metadata={"help": "on or off"})
    steps: int = field(default=12, metadata={"help": "how often"})
    step_scale: float = field(default=1.5, metadata={"help": "how far", "bounds": (0.0, 9.0)})
    reading: str = field(default="b", metadata={"help": "which one", "choices": ("a", "b")})
    layers: str = field(default="", metadata={"help": "which layers"})
    file: str = field(default="", metadata={"help": "a file here", "file": True})


ITEMS = {item.name: item for item in fields(Settings)}
KINDS = {
    "switch": gr.Checkbox,
    "steps": gr.Number,
    "step_scale": gr.Number,
    "reading": gr.Dropdown,
    "layers": gr.Textbox,
    "file": gr.Textbox,
}


@pytest.mark.parametrize("name", ITEMS)
def test_each_kind_of_field_has_its_control_with_default_label_help_and_id(name):
    made = control(ITEMS[name], "mine")
    assert type(made) is KINDS[name]
    assert made.value == ITEMS[name].default
    assert made.info == ITEMS[name].metadata["help"]
    assert made.elem_id == f"mine-{name}"


def test_a_label_is_a_sentence_in_small_letters():
    assert title("step_scale") == "Step scale"


def test_choices_are_offered():
    assert [value for _, value in control(ITEMS["reading"], "x").choices] == ["a", "b"]


def test_a_fraction_arrives_as_it_was_typed_and_the_browser_calls_it_invalid_only_where_it_is():
    made = {name: control(ITEMS[name], "x") for name in ("steps", "step_scale")}
    assert [one.preprocess(2.5) for one in made.values()] == [2.5, 2.5]
    assert (made["steps"].step, made["step_scale"].step) == (1, "any")


def test_a_count_is_a_whole_number_from_0_on_or_named():
    assert [whole("Facts", answer) for answer in (0, 3.0, 10**6)] == [0, 3, 10**6]
    for answer, typed in ((-4, ", not -4"), (2.5, ", not 2.5"), (None, ""), (float("inf"), ", not inf")):
        with pytest.raises(EditingError, match=f"^Facts: a whole number from 0 on is needed{typed}.$"):
            whole("Facts", answer)


def test_a_number_is_told_its_bounds_and_what_is_beyond_them_stays_as_it_was_typed():
    made = control(ITEMS["step_scale"], "x", own={"step_scale": 12.5})
    assert (made.minimum, made.maximum, made.value) == (0.0, 9.0, 12.5)
    assert value(ITEMS["step_scale"], 12.5) == 12.5, "the method refuses it, with a sentence"
    assert control(ITEMS["steps"], "x").minimum is None


@pytest.mark.parametrize(
    ("name", "answer", "read"),
    [
        ("switch", False, False),
        ("steps", 3.0, 3),
        ("step_scale", 2, 2.0),
        ("reading", "a", "a"),
        ("layers", None, ""),
        ("layers", "12-17", "12-17"),
    ],
)
def test_an_answer_becomes_the_fields_own_type(name, answer, read):
    found = value(ITEMS[name], answer)
    assert found == read and type(found) is type(read)


@pytest.mark.parametrize(
    ("name", "answer"),
    [
        ("steps", None),
        ("steps", 2.5),
        ("steps", True),
        ("step_scale", float("nan")),
        ("step_scale", "2"),
        ("reading", "c"),
    ],
)
def test_an_answer_that_does_not_fit_is_refused_by_the_fields_name(name, answer):
    with pytest.raises(EditingError, match=title(name)):
        value(ITEMS[name], answer)


@pytest.mark.parametrize("cls", [*(editor.Settings for editor in EDITORS.values()), TrainSettings])
def test_every_settings_class_of_the_engine_makes_a_form_that_reads_its_own_defaults(cls):
    with gr.Blocks(analytics_enabled=False):
        form = SettingsForm(cls, "x")
    assert cls(**form.read(form.defaults)) == cls()
    assert all(made.info for made in form.components), "a field without help"


def test_a_field_left_open_says_what_it_then_is():
    with gr.Blocks(analytics_enabled=False):
        form = SettingsForm(Settings, "x")
    told = form.tell({"layers": "4-8", "steps": 9, "switch": True})
    shown = {made.elem_id: update.info for made, update in told.items()}
    wanted = {"x-layers": "which layers (4-8)", "x-file": "a file here"}
    assert shown == wanted, "the others have a default of their own"


def test_files_of_this_computer_are_asked_for_only_of_those_who_sit_at_it():
    with gr.Blocks(analytics_enabled=False):
        forms = [SettingsForm(Settings, "x", local) for local in (True, False)]
    hidden = [[made.elem_id for made in form.components if not made.visible] for form in forms]
    assert hidden == [[], ["x-file"]]


def test_an_answer_for_each_field_is_needed():
    with gr.Blocks(analytics_enabled=False):
        form = SettingsForm(Settings, "x")
    with pytest.raises(EditingError, match="Steps: a number is needed"):
        form.read({"switch": True})


def test_labels_are_words():
    assert [title(name) for name in ("step_scale", "cache_gb", "target_kl", "lam")] == [
        "Step scale", "Cache GB", "Target KL", "Lambda"
    ]  # fmt: skip
