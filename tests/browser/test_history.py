"""The History tab, as a person uses it: runs are listed, searched, opened, and can be repeated."""

import re

import pytest
from playwright.sync_api import expect

from tests.browser.person import ORIGINAL, PATIENCE

pytestmark = pytest.mark.browser
WORD = "Quetzalcoatlus"


@pytest.fixture
def runs(studio) -> tuple[int, str]:
    """A finished run and a failed one, made by a program; the finished one's number and what the other failed of."""
    facts = [{"prompt": f"The {WORD} lived in", "target": "Peru", "equivalent": [f"Fossils of the {WORD} lie in"]}]
    with studio.client() as client:
        done = client.predict(facts=facts, generate=1, api_name="/apply")["run"]
        with pytest.raises(Exception, match="context holds"):
            client.predict(facts=[{"prompt": f"{WORD} " * 9000, "target": "Peru"}], api_name="/apply")
    return done, "context holds"


def test_runs_are_listed_searched_filtered_and_opened(person, runs):
    done, failure = runs
    person.tab("History")
    rows = person.at("history-table").locator("tbody tr")
    expect(rows.nth(0)).to_contain_text("failed")
    expect(rows.nth(1)).to_contain_text(re.compile(rf"{done}\s*Facts of a program: 1 fact(?!s).*done", re.DOTALL))

    person.at("history-search").locator("input, textarea").fill(f"{WORD} fossils")
    expect(rows).to_have_count(1)
    rows.nth(0).get_by_role("button").click()
    expect(person.at("history-head")).to_contain_text(f"Run {done}")
    expect(person.at("history-cards").locator("[data-metric=ES] .value")).to_be_visible()
    cases = person.at("history-case-study").locator("tbody tr")
    expect(cases).to_have_count(2)
    expect(cases.nth(0)).to_contain_text(f"The {WORD} lived in")
    expect(person.at("history-command").locator("textarea, input")).to_have_value(re.compile(r"^python app.py edit \S+ "))
    with person.page.expect_download() as download:
        person.at("history-facts").click()
    assert WORD in download.value.path().read_text(encoding="utf-8-sig")
    person.at("history-take").click()
    expect(person.at("fact-sheet")).to_contain_text(f"The {WORD} lived in")
    expect(person.at("facts-status")).to_contain_text(f"run-{done}-facts.csv")
    expect(person.at("estimate")).not_to_be_empty(timeout=PATIENCE)

    person.tab("History")
    person.at("history-back").click()
    expect(rows).to_have_count(1)
    person.at("history-search").locator("input, textarea").fill("")
    person.at("history-status").locator("input").click()
    person.page.get_by_role("option", name="failed").click()
    expect(rows.nth(0)).to_contain_text("failed")
    expect(person.at("history-table")).not_to_contain_text("done")
    rows.nth(0).get_by_role("button").click()
    expect(person.at("history-head")).to_contain_text(failure)
    person.at("history-back").click()
    person.at("history-search").locator("input, textarea").fill("nothing is called so")
    expect(person.at("history-table")).to_contain_text("No run fits.")


def test_an_opened_run_that_goes_on_is_shown_anew_when_the_tab_is_come_back_to(person):
    person.at("sample-counterfactuals").click()
    expect(person.at("facts-status")).to_contain_text("54 facts")
    person.generate(40)
    person.start()
    expect(person.at("edit-progress").locator(".bar:not(.waiting)")).to_be_visible(timeout=PATIENCE)
    person.tab("History")
    person.at("history-table").locator("tbody tr").nth(0).get_by_role("button").click()
    expect(person.at("history-head")).to_contain_text("running")
    person.tab("Edit")
    person.finish()
    person.tab("History")
    expect(person.at("history-head")).to_contain_text("done")
    person.at("history-case-next").click()
    expect(person.at("history-case-place")).to_contain_text("51–")
    person.tab("Edit")
    person.tab("History")
    expect(person.at("history-head")).to_contain_text("done")
    expect(person.at("history-case-place")).to_contain_text("51–")


def test_a_run_is_deleted_after_a_question_and_its_edit_is_taken_off(person, facts_file):
    person.upload(facts_file)
    expect(person.at("facts-status")).to_contain_text("2 facts")
    person.generate(0)
    person.apply()
    person.badge("edited: 2 facts by AGRADE")
    person.tab("History")
    rows, question = person.at("history-table").locator("tbody tr"), person.at("history-question")
    number = rows.nth(0).locator("td").first.inner_text()
    rows.nth(0).get_by_role("button").click()
    expect(person.at("history-head")).to_contain_text(f"Run {number}")

    person.at("history-delete").click()
    expect(question).to_contain_text(f"Delete run {number} for good?")
    person.at("history-keep").click()
    expect(question).to_be_hidden()
    person.at("history-delete").click()
    person.at("history-sure").click()
    expect(person.at("history-deleted")).to_contain_text(f"Run {number} is deleted.")
    expect(rows.filter(has_text=re.compile(rf"^\s*{number}\s"))).to_have_count(0)
    person.tab("Edit")
    person.badge(ORIGINAL)
    expect(person.at("case-study")).to_be_hidden()
