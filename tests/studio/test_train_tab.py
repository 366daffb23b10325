"""The Train tab: its form, and what the page says of a training, without a browser."""

import re
from dataclasses import asdict, replace

import gradio as gr
import pytest

from engine.errors import EditingError, FactError
from engine.fact_readers import write_csv
from engine.train_settings import TrainSettings
from studio import trainings
from studio.components.fact_sheet import FactSheet
from studio.components.sidebar import Sidebar
from studio.components.training_form import COMMON, OTHERS, read_files, read_settings
from studio.components.training_view import TrainingView
from studio.store import Store
from studio.studio import Studio
from studio.tabs import history, train
from studio.training_job import last_training
from tests.engine.tiny import FACTS
from tests.studio.small_training import SHORT, begin, wait
from tests.studio.wiring import comes_back, emptied_by


@pytest.fixture
def studio(tmp_path, tiny_model):
    """A studio over a tiny model, whose cache is the test's own folder."""
    studio = Studio(Store(tmp_path / "studio.db"))
    studio.cache, studio.model = tmp_path / "cache", tiny_model("llama")
    yield studio
    studio.close()


# The form


def test_the_form_has_every_setting_once():
    assert sorted((*COMMON, *OTHERS, "method")) == sorted(asdict(TrainSettings()))


def test_the_form_reads_its_own_defaults():
    values = asdict(TrainSettings())
    assert read_settings("malmen", [values[name] for name in (*COMMON, *OTHERS)]) == TrainSettings(method="malmen")


def test_a_blank_number_is_named():
    values = asdict(TrainSettings()) | {"rank": None}
    with pytest.raises(EditingError, match="Rank: a number is needed"):
        read_settings("agrade", [values[name] for name in (*COMMON, *OTHERS)])


def test_files_come_from_uploads_and_from_paths(tmp_path):
    for name in ("a", "b"):
        write_csv(FACTS, tmp_path / f"{name}.csv")
    batches = read_files([str(tmp_path / "a.csv")], f"\n {tmp_path / 'b.csv'} \n", "training")
    assert [batch.source for batch in batches] == ["a.csv", "b.csv"] and len(batches[1]) == len(FACTS)
    with pytest.raises(FactError, match="no validation facts: upload"):
        read_files(None, " \n", "validation")
    with pytest.raises(FactError, match="missing.csv: cannot be read"):
        read_files(None, str(tmp_path / "missing.csv"), "training")
    assert len(read_files([str(tmp_path / "a.csv")], " ", "training", local=False)) == 1
    with pytest.raises(FactError, match="open to other computers"):
        read_files([str(tmp_path / "a.csv")], str(tmp_path / "b.csv"), "training", local=False)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"rank": 0}, "rank is 0: it has to be at least 1"),
        ({"rounds": 0}, "rounds is 0: it has to be at least 1"),
        ({"steps": -1}, "steps is -1"),
        ({"eta": 0.0}, "eta is 0.0: it has to be more than 0"),
        ({"learning_rate": float("nan")}, "learning_rate is nan"),
        ({"kappa": -0.1}, "kappa is -0.1: it has to be 0 or more"),
        ({"old_keys": -5.0}, "old_keys is -5.0: it has to be 0 or more"),
        ({"old_keys": float("nan")}, "old_keys is nan"),
        ({"clip": float("inf")}, "clip is inf"),
        ({"lam": 100.0}, "lam is 100.0: it has to be from −50 to 50"),
        ({"lam": float("nan")}, "lam is nan"),
        ({"smallest_batch": 9, "largest_batch": 8}, "swap the two"),
        ({"layers": "2-9"}, "layers 0 to 3"),
        ({"layers": "last"}, "not understood"),
    ],
)
def test_settings_that_cannot_work_are_named(tiny_model, change, words):
    with pytest.raises(EditingError, match=re.escape(words)):
        trainings.check(replace(SHORT, **change), tiny_model("llama"))


# The page


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"settings": "x"}, "settings is 'x': give it as dict"),
        ({"held_out": "much"}, "held_out is 'much': give it as float"),
        ({"valid": ["facts.csv"]}, "valid is .'facts.csv'.: give it as list"),
        ({"settings": {"momentum": 1}}, "There is no setting momentum; there are method, layers"),
    ],
    ids=lambda given: "-".join(given) if isinstance(given, dict) else "",
)
def test_a_program_that_asks_for_what_is_no_training_is_told_in_a_sentence(studio, given, said):
    with pytest.raises(gr.Error, match=said):
        train.train_endpoint(studio)(None, **{"files": [], **given})


def test_a_step_that_is_no_whole_number_is_named(tab):
    (told,) = tab._resume("w", "first", 2.5)
    assert "Train until step: a whole number from 0 on is needed, not 2.5" in told[tab.problem].value


def test_the_view_follows_a_training_to_its_card(studio):
    with gr.Blocks():
        view = TrainingView()
    updates = list(view.follow(studio.jobs, begin(studio).id))
    last = updates[-1]
    assert "first is trained" in last[view.state] and "first" in last[view.card].value
    assert last[view.plot].visible and "L_equiv" in last[view.plot].value["plot"]
    assert "best" in last[view.table].value


@pytest.fixture
def tab(studio) -> train.TrainTab:
    with gr.Blocks():
        session = gr.State("w")
        sidebar = Sidebar(studio, session)
        with gr.Tab():
            return train.TrainTab(studio, session, sidebar)


def test_a_page_that_is_come_back_to_shows_the_training_of_another_one(studio, tab):
    nothing = [{tab.choice: gr.skip()}]
    (opened,) = tab._attach()
    assert list(tab._look_again(None)) == list(tab._look_again(opened[tab.seen])) == nothing
    job = begin(studio)
    first, *_, last = tab._look_again(opened[tab.seen])
    assert not first[tab.start].interactive and last[tab.start].interactive
    assert wait(job).state == "done" and list(tab._look_again(last[tab.seen])) == nothing
    again = list(tab._look_again(first[tab.seen]))
    assert again[-1][tab.seen] == last[tab.seen] and any("first is trained" in one.get(tab.view.state, "") for one in again)
    job = begin(studio, name="second")
    assert wait(job).state == "done" and list(tab._look_again(last[tab.seen])) != nothing


def test_a_page_that_follows_a_training_itself_is_left_alone(studio, tab):
    follows = tab._follow(begin(studio))
    seen = next(follows)[tab.seen]
    if not last_training(studio).ended:
        assert list(tab._look_again(seen)) == [{tab.choice: gr.skip()}]
    list(follows)


def test_a_page_is_looked_at_again_when_a_person_comes_back_to_it_or_to_the_tab(tab):
    back = {(tab.top.parent._id, "select"), (tab.sidebar.returned._id, "click")}
    assert comes_back(tab.problem, "_look_again") == back


def test_what_was_said_of_other_answers_goes_with_them_before_a_file_is_read(tab):
    form, emptied = tab.form, emptied_by(tab.problem)
    assert {(form.files._id, event) for event in ("upload", "clear", "delete")} <= emptied
    assert (form.files._id, "change") not in emptied, "its summary would come first"
    assert {(one._id, "change") for one in (form.paths, form.method, form.controls["layers"])} <= emptied


def test_the_tabs_can_be_built_and_name_everything_once(studio):
    with gr.Blocks() as page:
        session = gr.State("")
        with gr.Tab("Train"):
            train.build(studio, session, Sidebar(studio, session))
        with gr.Tab("History"):
            history.build(studio, session, FactSheet(studio, session))
    config = page.get_config_file()
    ids = [part["props"].get("elem_id") for part in config["components"] if part["props"].get("elem_id")]
    assert len(ids) == len(set(ids)) and {"train-start", "train-abort", "history-table"} <= set(ids)
    public = {one["api_name"] for one in config["dependencies"] if one["api_visibility"] == "public"}
    assert public == {"train", "history"}
