"""The sidebar's model, as a person changes it: another one, one that is not there, and the embedded one again."""

import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import expect

from tests.browser.person import ORIGINAL, PATIENCE, Person
from tests.engine import tiny

pytestmark = pytest.mark.browser


@pytest.fixture(scope="module")
def tiny_folder(tiny_model, tmp_path_factory) -> Path:
    return tiny.save(tiny_model("gpt2"), tmp_path_factory.mktemp("tiny-gpt2"))


@pytest.fixture
def changer(person) -> Iterator[Person]:
    """A person who leaves the embedded model behind, whatever they loaded: the model is everybody's."""
    person.at("model-choice").get_by_role("button", name="Load another model").click()
    yield person
    load(person, "embedded")
    expect(person.at("model")).to_contain_text("30 layers", timeout=PATIENCE)


def load(person: Person, name: str) -> None:
    person.at("model-name").locator("input, textarea").fill(name)
    person.at("model-load").click()


def test_another_model_takes_the_edits_away_and_a_missing_one_changes_nothing(changer, facts_file, tiny_folder):
    person = changer
    person.upload(facts_file)
    expect(person.at("facts-status")).to_contain_text("2 facts")
    person.generate(0)
    person.apply()
    person.badge("edited: 2 facts by AGRADE")

    load(person, "/no/such/model")
    expect(person.at("model-problem")).to_contain_text(re.compile("The model was not loaded.*/no/such/model", re.DOTALL))
    expect(person.at("model")).to_contain_text("30 layers")
    person.badge("edited: 2 facts by AGRADE")

    load(person, str(tiny_folder))
    expect(person.at("model")).to_contain_text("gpt2, 4 layers", timeout=PATIENCE)
    person.badge(ORIGINAL)
    expect(person.at("undo")).to_be_disabled()
    expect(person.at("redo")).to_be_disabled()
    expect(person.at("hypernet-missing")).to_contain_text("AGRADE needs a hypernetwork trained for")
    person.at("apply").click()
    expect(person.at("edit-problem")).to_contain_text("AGRADE needs a hypernetwork trained for", timeout=PATIENCE)
    person.probe("The capital of France is")
    expect(person.side("before").locator("td:last-child")).to_have_count(5)
