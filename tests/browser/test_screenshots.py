"""The README's pictures, as a person would see the studio after an applied sample. Only taken when asked for:

    AGRADE_STUDIO_SCREENSHOTS=assets/screenshots pytest tests/browser/test_screenshots.py
"""

import os
import re
from pathlib import Path

import pytest
from playwright.sync_api import expect

from studio.components.fact_sheet import SAMPLES
from tests.browser.person import PATIENCE, Person

pytestmark = pytest.mark.browser
STEPS = 24


def picture(person: Person, name: str) -> None:
    """The window from the top of the page, without a cursor or a button under it."""
    person.page.mouse.move(0, 0)
    person.page.evaluate("() => { document.activeElement.blur(); window.scrollTo(0, 0); }")
    folder = Path(os.environ["AGRADE_STUDIO_SCREENSHOTS"])
    folder.mkdir(parents=True, exist_ok=True)
    person.page.screenshot(path=folder / f"{name}.png", animations="disabled")


def test_pictures_for_the_readme(enter):
    person = enter(height=1500)
    person.at("sample-counterfactuals").click()
    expect(person.at("facts-status")).to_contain_text("54 facts")
    person.apply()
    person.badge("edited: 54 facts by AGRADE")
    picture(person, "edit")
    person.page.emulate_media(color_scheme="dark")
    person.reload()
    expect(person.at("result-cards")).to_be_visible()
    picture(person, "edit-dark")
    person.page.emulate_media(color_scheme="light")

    person.reload()
    person.page.set_viewport_size({"width": 1440, "height": 1200})
    person.tab("Train")
    person.at("train-paths").locator("textarea, input").fill(str(SAMPLES / "counterfactuals.json"))
    for name, value in {"steps": STEPS, "layers": "24-29", "validate_every": 4, "name": "counterfactuals"}.items():
        person.at(f"train-{name}").locator("input, textarea").fill(str(value))
    person.at("train-start").click()
    expect(person.at("train-state")).to_contain_text("is trained", timeout=2 * PATIENCE)
    expect(person.at("train-card")).to_contain_text(f"{STEPS} of {STEPS} steps")
    picture(person, "train")

    person.tab("History")
    rows = person.at("history-table").locator("tbody tr")
    expect(rows.nth(0)).to_contain_text("Training")
    rows.filter(has_text=re.compile("54 facts")).get_by_role("button").click()
    expect(person.at("history-cases").locator("tbody tr").nth(0)).to_be_visible()
    picture(person, "history")
