"""What the Edit tab says of a method before a run: what it needs, what its settings are here, what it costs."""

import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import fields, replace

import gradio as gr
import pytest

from engine import checkpoint as checkpoints
from engine.editors import EDITORS
from engine.embedded import EMBEDDED_WEIGHTS_SHA256
from engine.errors import FactError
from engine.facts import FactBatch
from engine.model import EMBEDDED, EditableModel
from studio.components.changing_dropdown import ChangingDropdown
from studio.components.compare_form import CompareForm
from studio.components.edit_settings import EditSettings, estimate_html
from studio.components.method_needs import no_hypernet_html
from studio.edit_job import start_edit
from studio.estimate import Estimate, Pace
from studio.runs import EditRequest
from studio.store import Store
from studio.studio import Studio
from tests.engine import tiny
from tests.engine.test_editors import SMALL
from tests.engine.tiny import FACTS

BATCH = FactBatch(FACTS, "tiny facts.csv", "studio")


@pytest.fixture
def studio(tmp_path, tiny_model, monkeypatch):
    """A studio over a tiny model, whose cache is the test's own folder."""
    monkeypatch.setenv("AGRADE_STUDIO_CACHE", str(tmp_path / "cache"))
    studio = Studio(Store(tmp_path / "studio.db"))
    studio.model = tiny_model("llama")
    yield studio
    studio.close()


def build(studio: Studio) -> EditSettings:
    with gr.Blocks(analytics_enabled=False):
        return EditSettings(studio)


def answers(settings: EditSettings, method: str, hypernet: str | None = None, **changed) -> list:
    """What the form sends when these settings of the method were changed."""
    own = settings.method_settings.answers.value
    return [method, hypernet, 1, 0, own | {method: own[method] | changed}]


def small(method: str) -> dict:
    return {item.name: SMALL[item.name] for item in fields(EDITORS[method].Settings) if item.name in SMALL}


@pytest.mark.parametrize("method", EDITORS)
def test_every_method_is_offered_and_shows_its_own_settings_alone(studio, method):
    settings = build(studio)
    assert method in [value for _, value in settings.method.choices]
    shown = settings.show(method)
    assert [name for name, group in settings.method_settings.groups.items() if shown[group].visible] == [method]
    assert set(shown) <= set(settings.outputs)


def test_the_prompts_that_a_person_names_are_kept_unless_told_otherwise(studio):
    settings = build(studio)
    own = settings.method_settings.answers.value
    assert [method for method in EDITORS if own[method].get("keep_unrelated")] == ["agrade", "malmen"]
    assert settings.request(BATCH, *answers(settings, "agrade")).settings["keep_unrelated"] is True
    assert settings.request(BATCH, *answers(settings, "agrade", keep_unrelated=False)).settings["keep_unrelated"] is False
    control = settings.method_settings.forms["agrade"].controls["keep_unrelated"]
    assert isinstance(control, gr.Checkbox) and control.value is True


@pytest.mark.parametrize("method", [name for name, cls in EDITORS.items() if "hypernetwork" in cls.needs])
def test_without_a_hypernetwork_it_says_so_and_leads_to_the_training(studio, method, tmp_path):
    settings = build(studio)
    shown = settings.show(method)
    title = EDITORS[method].title
    assert f"{title} needs a hypernetwork trained for tiny llama; there is none yet" in shown[settings.missing]
    assert f"Train one in the Train tab: choose {title} there" in shown[settings.missing]
    assert shown[settings.train].visible and settings.forecast(BATCH, *answers(settings, method)) == ("", "")
    tiny.random_checkpoint(studio.model, method).save(studio.hypernet_folders[0] / "mine")
    shown = settings.show(method)
    assert shown[settings.missing] == "" and not shown[settings.train].visible
    needs, cost = settings.forecast(BATCH, *answers(settings, method, shown[settings.hypernet].value))
    assert needs == "" and "Estimate: about" in cost


def test_the_embedded_model_is_named_only_where_it_comes_with_such_a_hypernetwork(tiny_model, tmp_path, monkeypatch):
    model = tiny_model("llama")
    checkpoint = tiny.random_checkpoint(model, "agrade")
    checkpoint.card["model_sha256"] = EMBEDDED_WEIGHTS_SHA256
    checkpoint.save(tmp_path / "shipped" / "net")
    monkeypatch.setattr(checkpoints, "SHIPPED", tmp_path / "shipped")
    assert "load the embedded model, which comes with one" in no_hypernet_html(model, "agrade")
    assert "embedded model" not in no_hypernet_html(model, "mend")
    offered = no_hypernet_html(model, "mend")
    assert "LoRA" in offered and "UltraEdit" in offered and "MEMIT" not in offered


def test_a_covariance_that_is_missing_is_told_with_its_time_until_it_is_there(studio):
    settings = build(studio)
    asked = answers(settings, "memit", layers="1-2", **small("memit"))
    needs, cost = settings.forecast(BATCH, *asked)
    assert "covariance of the old keys at layers 1-2 is not there yet: Apply measures it first, about" in needs
    assert "512 tokens that the model writes itself" in needs
    assert "Estimate: at most about" in cost
    job = start_edit(studio, studio.workspace("w"), settings.request(BATCH, *asked))
    assert job.ended.wait(120) and job.snapshot().state == "done", job.snapshot().error
    needs, cost = settings.forecast(BATCH, *asked)
    assert needs == "" and "Estimate: at most about" in cost
    needs, _ = settings.forecast(BATCH, *answers(settings, "emmet", layers="3", **small("emmet")))
    assert "at layer 3 is" in needs


def test_while_the_model_is_at_work_the_needs_are_told_all_the_same(studio):
    settings = build(studio)
    studio.model = EditableModel(studio.model.lm, studio.model.tokenizer, "tiny llama", studio.model.placement)
    with studio.model.lock:
        found = []
        asked = answers(settings, "memit", **small("memit"))
        other = threading.Thread(target=lambda: found.append(settings.forecast(BATCH, *asked)))
        other.start()
        other.join(60)
    needs, cost = found[0]
    assert "Apply measures it first." in needs and cost == ""


def test_subjects_that_are_missing_are_found_or_asked_for(studio):
    settings = build(studio)
    asked = answers(settings, "memit", **small("memit"))
    found = FactBatch(tuple(replace(fact, subject="", row=2) for fact in FACTS[:1]), "x", "studio")
    assert "Subjects that were missing were found in the prompt: row 2 “France”" in settings.forecast(found, *asked)[0]
    unclear = FactBatch((replace(FACTS[2], prompt="water boils at", subject="", row=5),), "x", "studio")
    needs, cost = settings.forecast(unclear, *asked)
    assert "The subject is needed" in needs and "Row 5" in needs and "note warning" in needs and cost == ""
    assert settings.forecast(unclear, *answers(settings, "ft"))[0] == "", "FT needs none"
    needs, cost = settings.forecast(unclear, *answers(settings, "ultraedit", scope="subject"))
    assert "last token stands for it" in needs and "note info" in needs and "Estimate" in cost


def test_a_setting_that_cannot_be_is_told_before_the_run(studio):
    settings = build(studio)
    needs, cost = settings.forecast(BATCH, *answers(settings, "ft", layers="99"))
    assert "has layers 0 to 3" in needs and cost == ""
    assert "Steps: a number is needed" in settings.forecast(BATCH, *answers(settings, "ft", steps=None))[0]
    assert "FT cannot take steps=-1: give a whole" in settings.forecast(BATCH, *answers(settings, "ft", steps=-1))[0]
    assert settings.forecast(FactBatch((), "x", "studio"), *answers(settings, "ft")) == ("", "")


@pytest.mark.parametrize(("at", "label"), [(2, "Facts to generate for"), (3, "Rows kept for projections")])
def test_a_count_that_cannot_be_is_told_by_its_name_and_not_rounded(studio, at, label):
    settings = build(studio)
    asked, control = answers(settings, "ft"), settings.inputs[at]
    for typed in (-4, 2.5):
        asked[at] = control.preprocess(typed)
        needs, cost = settings.forecast(BATCH, *asked)
        assert f"{label}: a whole number from 0 on is needed, not {typed}." in needs and cost == ""
    assert control.change in settings.changes, "what was said of it goes when it is mended"


def test_fields_left_open_say_what_they_are_in_this_model(studio, tiny_model):
    settings = build(studio)

    def told(method: str) -> dict[str, str]:
        shown = settings.show(method)
        return {name: shown[c].info for name, c in settings.method_settings.forms[method].controls.items() if c in shown}

    assert told("ft")["learning_rate"].endswith("this model's own (0.0005)")
    assert told("ft")["layers"].endswith("(3)") and told("memit")["layers"].endswith("(0-1)")
    assert told("lora")["layers"].endswith("(0-3)")
    assert told("lora")["modules"].endswith("(self_attn.q_proj, self_attn.v_proj)")
    assert told("ultraedit")["layers"].endswith("(0-3)"), "the last six, where there are four"
    assert told("memit")["covariance_weight"].endswith("(15000)")
    named = EditableModel(studio.model.lm, studio.model.tokenizer, EMBEDDED, studio.model.placement)
    named.sha256 = "another"
    studio.model = named
    assert told("ft")["learning_rate"].endswith("(0.002)")
    studio.model = None
    assert told("ft")["learning_rate"].endswith("this model's own")


@pytest.mark.parametrize("method", [name for name, cls in EDITORS.items() if "covariance" in cls.needs])
def test_visitors_from_elsewhere_name_no_file_of_this_computer(studio, method, tmp_path):
    secret = tmp_path / "secret.txt"
    secret.write_text("The secret of this computer. " * 200, "utf-8")
    asked = {**small(method), "covariance_text": str(secret)}
    assert build(studio).forecast(BATCH, *answers(build(studio), method, **asked))[1] != ""
    studio.local = False
    settings = build(studio)
    shown = {made.elem_id: made.visible for made in settings.method_settings.forms[method].components}
    assert not shown[f"{method}-covariance_text"] and all(v for k, v in shown.items() if not k.endswith("_text"))
    needs, cost = settings.forecast(BATCH, *answers(settings, method, **asked))
    assert "open to other computers" in needs and cost == "" and "secret" not in needs
    with pytest.raises(FactError, match="open to other computers.*leave covariance_text empty"):
        start_edit(studio, studio.workspace("w"), EditRequest(BATCH, method, asked))
    assert not studio.store.runs()


def test_the_cost_says_what_it_is():
    text = estimate_html(Estimate(60, 2.0, 0.01, 10**9, 2 * 10**9, False))
    assert "Estimate: about 2.0 s to edit and 0.1 s to score" in text and "1.00 GB more memory, 2.00 GB in all" in text


def test_what_is_no_longer_offered_is_no_choice():
    offer = ChangingDropdown([("one", "a"), ("two", "b")])
    assert [offer.preprocess(sent) for sent in ("b", "gone", None)] == ["b", None, None]
    assert ChangingDropdown([]).get_block_name() == "dropdown"


def test_both_tabs_time_the_model_once_and_who_asks_meanwhile_waits(studio, monkeypatch):
    begun, timed = threading.Event(), []

    def slow(model: EditableModel) -> float:
        timed.append(model)
        begun.set()
        time.sleep(0.2)
        return 0.5

    monkeypatch.setattr("studio.estimate._timed", slow)
    settings = build(studio)
    with gr.Blocks(analytics_enabled=False):
        form = CompareForm(studio)
    asked = answers(settings, "ft", **small("ft"))
    chosen = [["ft"], [], 0, "", 0, form.method_settings.answers.value, *[None] * len(form.hypernets)]
    with ThreadPoolExecutor(1) as threads:
        with studio.model.lock:
            busy = threads.submit(settings.forecast, BATCH, *asked)
            assert busy.result()[1] == "", "an edit is running"
        first = threads.submit(settings.forecast, BATCH, *asked)
        begun.wait()
        assert "About" in form.look(BATCH, *chosen)[form.needs]
        assert "Estimate" in first.result()[1]
    assert timed == [studio.model]


def test_the_same_weights_are_timed_anew_where_they_were_loaded_otherwise(tiny_tokenizer, monkeypatch):
    took = iter([1.0, 2.0])
    monkeypatch.setattr("studio.estimate._timed", lambda _model: next(took))
    pace, model = Pace(), tiny.build("llama", tiny_tokenizer)
    other = EditableModel(model.lm, model.tokenizer, model.name, replace(model.placement, reason="on another device"))
    assert [pace.seconds_per_token(one) for one in (model, other, model)] == [1.0, 2.0, 1.0]


def test_a_model_that_also_sees_is_timed(tiny_tokenizer):
    """How many tokens its language model knows stands within its config."""
    assert Pace().seconds_per_token(tiny.seeing(tiny_tokenizer)) > 0
