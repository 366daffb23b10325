"""What a training is called, which facts it learns from and which it is judged by, and how they are kept."""

import re
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.errors import CheckpointError, EditingError, FactError
from engine.fact_readers import read_facts
from engine.facts import Fact, FactBatch
from studio import trainings
from tests.engine.tiny import FACTS


@given(st.text())
def test_a_name_is_a_plain_folder_name(text):
    try:
        name = trainings.clean_name(text)
    except FactError:
        return
    assert re.fullmatch(r"[A-Za-z0-9_](?:[A-Za-z0-9_-]*[A-Za-z0-9])?", name) and len(name) <= trainings.LONGEST_NAME
    assert trainings.clean_name(name) == name


@pytest.mark.parametrize(
    ("text", "name"),
    [("My facts 1", "My-facts-1"), ("../../etc/passwd", "etc-passwd"), ("Zürich\\é", "Zurich-e"), ("a.b", "a-b")],
)
def test_names_keep_what_can_be_kept(text, name):
    assert trainings.clean_name(text) == name


@pytest.mark.parametrize("text", ["", "  ", "../..", "北京", "---"])
def test_a_name_of_nothing_is_refused(text):
    with pytest.raises(FactError, match="no name"):
        trainings.clean_name(text)


def test_a_taken_name_is_refused_and_a_free_one_offered(tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine-2").mkdir()
    with pytest.raises(FactError, match="already a training named mine.*mine-3 is free"):
        trainings.new_folder(tmp_path, "mine")
    assert trainings.new_folder(tmp_path, "mine-3") == tmp_path / "mine-3"


def test_sets_are_named_by_form_or_file():
    files = {"a.json": "zsre", "x y.csv": "studio", "c1.json": "counterfact", "c2.json": "counterfact"}
    batches = [FactBatch(FACTS, name, form) for name, form in files.items()]
    assert list(trainings.name_sets(batches)) == ["zsre", "x-y", "c1", "c2"]
    twins = [FactBatch(FACTS, "same.csv", "studio")] * 2
    assert list(trainings.name_sets(twins)) == ["same", "same-2"]


def test_held_out_prompts_are_not_trained_on():
    facts = [Fact(f"prompt {n // 2}", f"target {n}") for n in range(100)]
    train_part, valid = trainings.hold_out({"a": facts}, 0.2, 512, seed=1)
    assert len(valid["a"]) == 20 and sorted([*train_part["a"], *valid["a"]], key=facts.index) == facts
    assert not {fact.prompt for fact in train_part["a"]} & {fact.prompt for fact in valid["a"]}
    assert trainings.hold_out({"a": facts}, 0.2, 512, seed=1)[1] == valid
    assert trainings.hold_out({"a": facts}, 0.2, 512, seed=2)[1] != valid
    assert len(trainings.hold_out({"a": facts}, 0.5, 3, seed=1)[1]["a"]) == 6  # 3 prompts


def test_too_few_facts_to_hold_out():
    with pytest.raises(FactError, match="alone: 1 fact is too few"):
        trainings.hold_out({"alone": FACTS[:1]}, 0.1, 10, 0)


def test_kept_data_come_back_as_they_were(tmp_path):
    contradicting = (*FACTS, Fact(FACTS[0].prompt, "Madrid"), Fact("Two || bars", "a [b]", ("[1]", "c || d")))
    sets = {"a-b": contradicting, "zsre": FACTS}
    trainings.keep_data(tmp_path, sets, {"zsre": FACTS[:1]})
    train_part, valid = trainings.kept_data(tmp_path)
    strip = lambda part: {name: [replace(fact, row=0) for fact in facts] for name, facts in part.items()}  # noqa: E731
    assert list(train_part) == ["a-b", "zsre"] and strip(train_part) == strip(sets)
    assert strip(valid) == strip({"zsre": FACTS[:1]})
    assert len(read_facts(tmp_path / "data" / "train" / "1-a-b.json").require()) == len(contradicting)
    (tmp_path / "data" / "train" / "1-a-b.json").write_text("[{")
    with pytest.raises(CheckpointError, match="cannot be read"):
        trainings.kept_data(tmp_path)


def test_another_trainings_data_are_left_alone(tmp_path):
    trainings.keep_data(tmp_path / "one", {"zsre": FACTS}, {})
    with pytest.raises(EditingError, match="exists"):
        trainings.keep_data(tmp_path / "one", {"zsre": FACTS[:1]}, {})
    assert len(trainings.kept_data(tmp_path / "one")[0]["zsre"]) == len(FACTS)
