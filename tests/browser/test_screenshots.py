"""The README's pictures: the studio as a person sees it after an applied sample. They are taken only when asked for.

    AGRADE_STUDIO_SCREENSHOTS=assets/screenshots pytest tests/browser/test_screenshots.py
"""

import os
import re
from collections.abc import Callable
from pathlib import Path

import pytest
from playwright.sync_api import expect

from studio.components.fact_sheet import SAMPLES
from tests.browser.person import PATIENCE, Person
from tests.browser.test_compare import choose
from tests.browser.test_projections import drawn

pytestmark = pytest.mark.browser
# Large steps, so that the curves show something in a minute. The picture is taken while the training goes on.
SETTINGS = {"steps": 40, "layers": "28,29", "rank": 64, "validate_every": 4, "eta": 0.02, "learning_rate": 0.001}
SHOWN_STEP = 25
SETTLED_MS = 1000


def picture(person: Person, name: str) -> None:
    """The window from the top of the page, without a cursor or a button under it."""
    person.page.mouse.move(0, 0)
    # Smooth scrolling to the result may still be under way, and what has not been painted again yet is blank.
    for _ in range(2):
        person.page.evaluate("() => { document.activeElement.blur(); window.scrollTo({top: 0, behavior: 'instant'}); }")
        person.page.wait_for_timeout(SETTLED_MS)
    folder = Path(os.environ["AGRADE_STUDIO_SCREENSHOTS"])
    folder.mkdir(parents=True, exist_ok=True)
    person.page.screenshot(path=folder / f"{name}.png", animations="disabled")


def with_facts(enter: Callable[..., Person]) -> Person:
    """A person in front of a high window, with a sample in the sheet."""
    person = enter(height=1500)
    person.at("sample-counterfactuals").click()
    expect(person.at("facts-status")).to_contain_text("54 facts")
    return person


def with_edit(enter: Callable[..., Person]) -> Person:
    """The same after the sample was applied."""
    person = with_facts(enter)
    person.apply()
    person.badge("edited: 54 facts by AGRADE")
    return person


def test_picture_of_a_comparison(enter):
    person = with_facts(enter)
    person.tab("Compare")
    choose(person, "AGRADE", "MALMEN", "UltraEdit")
    person.at("compare").click()
    expect(person.at("compare-head")).to_contain_text(re.compile("3 methods.*done", re.DOTALL), timeout=5 * PATIENCE)
    person.at("compare-grid").locator("tbody tr").nth(0).click()
    expect(person.at("compare-detail").locator("tbody tr").nth(0)).to_be_visible()
    picture(person, "compare")


def test_pictures_for_the_readme(enter):
    person = with_edit(enter)
    picture(person, "edit")
    person.page.emulate_media(color_scheme="dark")
    person.reload()
    expect(person.at("result-cards")).to_be_visible()
    picture(person, "edit-dark")
    person.page.emulate_media(color_scheme="light")

    person.reload()
    person.page.set_viewport_size({"width": 1440, "height": 1200})
    person.tab("Train")
    person.at("train-files").locator("input[type=file]").set_input_files(SAMPLES / "counterfactuals.json")
    expect(person.at("train-data")).to_contain_text("54 facts to learn from")
    person.at("train-more").get_by_role("button", name="All settings").click()
    for name, value in SETTINGS.items():
        person.at(f"train-{name}").locator("input, textarea").fill(str(value))
    person.at("train-more").get_by_role("button", name="All settings").click()
    person.at("train-start").click()
    enough = re.compile(rf"Training step · {SHOWN_STEP} of")
    expect(person.at("train-state")).to_contain_text(enough, timeout=5 * PATIENCE)
    picture(person, "train")
    person.at("train-abort").click()
    expect(person.at("train-state")).to_contain_text("was aborted", timeout=PATIENCE)

    person.tab("History")
    rows = person.at("history-table").locator("tbody tr")
    expect(rows.nth(0)).to_contain_text("Training")
    rows.filter(has_text=re.compile("54 facts")).first.get_by_role("button").click()  # a comparison's may be below
    expect(person.at("history-case-study").locator("tbody tr").nth(0)).to_be_visible()
    picture(person, "history")


def test_a_picture_of_the_projections(enter):
    person = with_edit(enter)
    person.tab("Projections")
    drawn(person, "t-SNE")
    picture(person, "projections")
