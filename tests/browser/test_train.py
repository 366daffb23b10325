"""The Train tab, as a person uses it: a small training with live losses, aborted, found again, resumed, and used."""

import json
import re
from pathlib import Path

import pytest
from playwright.sync_api import expect

from studio.components.fact_sheet import SAMPLES
from tests.browser.person import PATIENCE, Person

pytestmark = pytest.mark.browser
NAME = "small"
STEP = re.compile(r"Training step · (\d+) of")


@pytest.fixture
def training_file(tmp_path) -> Path:
    """Twelve facts with equivalent and unrelated prompts."""
    path = tmp_path / "twelve.json"
    path.write_text(json.dumps(json.loads((SAMPLES / "counterfactuals.json").read_text(encoding="utf-8"))[:12]))
    return path


def choose(person: Person, **values: object) -> None:
    """Fill in settings of the form."""
    for name, value in values.items():
        person.at(f"train-{name}").locator("input, textarea").fill(str(value))


def losses(person: Person) -> list[float]:
    """The training loss of every step, as the plot holds it."""
    return person.at("train-plot").locator(".js-plotly-plot").evaluate(
        "plot => { const y = plot.data[0].y; return Array.from(y._inputArray ?? y); }"
    )


def test_a_training_shows_its_losses_is_aborted_found_again_resumed_and_used(person, training_file):
    second = Person(person.page.context.new_page(), person.studio)
    second.open()
    second.tab("Train")
    person.page.bring_to_front()
    person.tab("Train")
    person.at("train-files").locator("input[type=file]").set_input_files(training_file)
    expect(person.at("train-data")).to_contain_text("12 facts to learn from")
    choose(person, steps=500, layers="29", rank=4, validate_every=1, name=NAME)
    person.at("train-start").click()
    started = re.compile(r"Training step · ([2-9]|\d\d+) of 500")
    expect(person.at("train-state")).to_contain_text(started, timeout=PATIENCE)
    expect(person.at("train-start")).to_be_disabled()
    expect(person.at("train-table").locator("tbody tr").nth(1)).to_be_visible()
    assert len(losses(person)) >= 2 and all(0 < loss < 100 for loss in losses(person))
    expect(second.at("train-start")).to_be_enabled()
    second.come_back()
    expect(second.at("train-state")).to_contain_text(STEP)
    expect(second.at("train-start")).to_be_disabled()
    second.page.close()

    person.reload()  # the tab is the same
    expect(person.at("train-state")).to_contain_text(STEP)
    expect(person.at("train-start")).to_be_disabled()
    person.at("train-abort").click()
    expect(person.at("train-state")).to_contain_text(f"{NAME} was aborted at step", timeout=PATIENCE)
    expect(person.at("train-abort")).to_be_disabled()
    stopped = int(re.search(r"at step (\d+)", person.at("train-state").inner_text())[1])

    person.at("train-resume-section").get_by_role("button", name="Resume a training").click()
    person.at("train-resume-choice").locator("input").click()
    person.page.get_by_role("option", name=re.compile(f"^{NAME}: step")).click()
    expect(person.at("train-resume-steps").locator("input")).to_have_value("500")
    person.at("train-resume-steps").locator("input").fill(str(stopped + 2))
    person.at("train-resume").click()
    expect(person.at("train-state")).to_contain_text(f"{NAME} is trained", timeout=PATIENCE)
    expect(person.at("train-card")).to_contain_text(f"{stopped + 2} of {stopped + 2} steps")
    assert len(losses(person)) == stopped + 2

    person.tab("Edit")
    person.at("hypernet").locator("input").click()
    person.page.get_by_role("option", name=NAME).click()
    expect(person.at("hypernet").locator("input")).to_have_value(NAME)
    person.type_into(0, 0, "The capital of France is")
    person.type_into(0, 1, "Rome")
    expect(person.at("facts-status")).to_contain_text("1 fact ")
    person.apply()
    expect(person.at("result-headline")).to_contain_text(f"1 fact by AGRADE with hypernetwork {NAME}")


def test_beginning_with_a_trained_hypernetwork_takes_its_structure(person):
    person.tab("Train")
    layers = person.at("train-layers").locator("input, textarea")
    expect(layers).to_have_value("")
    person.at("train-begin").locator("input").click()
    person.page.get_by_role("option", name="malmen", exact=True).click()
    expect(layers).to_have_value("12,15,18,21,24,27")
    expect(person.at("train-method").get_by_role("radio", name="MALMEN")).to_be_checked()
    expect(person.at("train-begin").locator("input")).to_have_value("malmen")


def test_what_cannot_be_trained_on_is_said(person, training_file, tmp_path):
    person.tab("Train")
    problem, paths = person.at("train-problem"), person.at("train-paths").locator("textarea, input")
    bad, one = tmp_path / "bad.csv", tmp_path / "one.csv"
    bad.write_text("prompt,target\nSeen,twice\nHeard,\n", encoding="utf-8")
    one.write_text("prompt,target\nSeen,twice\n", encoding="utf-8")
    said = {
        "": "There are no training facts",
        "/no/such/file.json": "file.json",
        str(bad): re.compile(r"bad\.csv: .*Row 2 .*target is blank", re.DOTALL),
        str(one): "too few to hold some out",
    }
    for path, words in said.items():
        paths.fill(path)
        person.at("train-start").click()
        expect(problem).to_contain_text(words)
    paths.fill(str(training_file))
    choose(person, layers="99")
    person.at("train-start").click()
    expect(problem).to_contain_text("99")
    choose(person, layers="29")
    expect(problem).to_have_text("")
    expect(person.at("train-start")).to_be_enabled()
    expect(person.at("train-abort")).to_be_disabled()
