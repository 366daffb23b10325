"""The Compare tab, as a person uses it: methods chosen, compared, looked into fact by fact, taken away, found again."""

import json
import re

import pytest
from playwright.sync_api import expect

from tests.browser.person import PATIENCE, Person

pytestmark = pytest.mark.browser


def choose(person: Person, *titles: str) -> None:
    """Tick these methods and no others."""
    boxes = person.at("compare-choice").locator("label")
    for number in range(boxes.count()):
        label = boxes.nth(number)
        label.locator("input").set_checked(label.inner_text().strip() in titles)


def fill(person: Person, id: str, text: str) -> None:
    person.at(id).locator("input, textarea").fill(text)
    person.at(id).locator("input, textarea").blur()


def chosen(person: Person) -> list[str]:
    """The methods that are ticked."""
    return [one.strip() for one in person.at("compare-choice").locator("label:has(input:checked)").all_inner_texts()]


def read(person: Person, id: str) -> str:
    return person.at(id).locator("input, textarea").input_value()


def rows(person: Person, id: str = "compare-table") -> dict[str, list[str]]:
    """The table on the page: a method's name → its cells."""
    found = person.at(id).locator("tbody tr").evaluate_all(
        "rows => rows.map(row => [...row.cells].map(cell => cell.innerText.trim()))"
    )
    return {cells[0].removesuffix("on front").strip(): cells[1:] for cells in found}


def test_methods_are_compared_looked_into_taken_away_and_found_again(person, facts_file):
    person.tab("Compare")
    expect(person.at("compare-status")).to_contain_text("No facts yet")
    with person.page.expect_file_chooser() as chooser:
        person.at("compare-upload").click()
    chooser.value.set_files(facts_file)
    expect(person.at("compare-status")).to_contain_text("2 facts")
    choose(person, "AGRADE", "UltraEdit", "MEMIT")
    person.at("compare-ablations").get_by_label("w/o weights projection").check()
    fill(person, "compare-generate", "2")
    fill(person, "compare-sweep", "1")
    needs = person.at("compare-needs")
    expect(needs).to_contain_text(re.compile("AGRADE.*ready", re.DOTALL), timeout=PATIENCE)
    expect(needs).to_contain_text("covariance is measured first")
    choose(person, "AGRADE", "UltraEdit")
    expect(needs).not_to_contain_text("MEMIT", timeout=PATIENCE)

    person.at("compare").click()
    expect(person.at("compare-head")).to_contain_text("3 methods", timeout=PATIENCE)
    person.reload()  # the tab is the same
    done = re.compile("3 methods.*done", re.DOTALL)
    expect(person.at("compare-head")).to_contain_text(done, timeout=PATIENCE)
    expect(person.at("compare")).to_be_enabled()
    assert chosen(person) == ["AGRADE", "UltraEdit"], "the form is as it was"
    assert (read(person, "compare-generate"), read(person, "compare-sweep")) == ("2", "1")
    found = rows(person)
    names = ["AGRADE", "AGRADE w/o weights projection", "UltraEdit", "Unedited model"]
    assert list(found) == names and all(len(cells) == 8 for cells in found.values())
    assert all(0 <= float(cell) <= 1 for name in names for cell in found[name][:4] if cell != "–")
    assert found["Unedited model"][4:] == ["–"] * 4 and float(found["AGRADE"][5]) > 0
    for plot in ("scores", "front", "memory", "sizes"):
        expect(person.at(f"compare-{plot}").locator(".js-plotly-plot")).to_be_visible()

    grid = person.at("compare-grid").locator("tbody tr")
    expect(grid).to_have_count(2)
    shape = person.page.viewport_size
    person.page.set_viewport_size({"width": 800, "height": 1000})
    assert person.at("compare-grid").locator(".wide").evaluate("table => table.scrollWidth <= table.clientWidth")
    assert needs.locator("td.now").first.evaluate("cell => cell.offsetWidth > 0.9 * cell.closest('.wide').clientWidth")
    person.page.set_viewport_size(shape)
    grid.filter(has_text="The capital of France is").click()
    detail = person.at("compare-detail").locator("tbody tr")
    expect(detail).to_have_count(4)
    expect(detail.nth(0)).to_contain_text("Unedited model")
    expect(detail.nth(1)).to_contain_text("AGRADE")
    expect(person.at("compare-detail").locator("thead th")).to_have_count(4)  # method, and three prompts
    person.at("compare-reading").get_by_label("token + label").check()
    expect(person.at("compare-table").locator("thead")).to_contain_text("label")
    expect(detail).to_have_count(4)

    person.at("compare-export").click()
    files = person.at("compare-files")
    expect(files).to_contain_text(re.compile(r"summary\s*\.json"), timeout=PATIENCE)
    with person.page.expect_download() as download:
        files.get_by_role("link").filter(has_text=re.compile("KB|MB|B")).nth(1).click()
    assert download.value.suggested_filename
    expect(person.at("compare-command").locator("textarea, input")).to_have_value(
        re.compile(r"compare \S+facts.csv --methods agrade,agrade:no-weights-projection,ultraedit --sizes 1 ")
    )

    person.badge("original weights")
    person.tab("History")
    listed = person.at("history-table").locator("tbody tr")
    listed.filter(has_text="by 3 methods").first.get_by_role("button").click()
    expect(person.at("history-comparison-head")).to_contain_text("3 methods")
    assert rows(person, "history-comparison-table") == found
    with person.page.expect_download() as download:
        person.at("history-facts").click()
    assert "The capital of France is" in download.value.path().read_text(encoding="utf-8")


def test_cancel_keeps_what_is_finished_and_another_comparison_takes_its_place(person, facts_file):
    person.upload(facts_file)
    expect(person.at("facts-status")).to_contain_text("2 facts")
    second = Person(person.page.context.new_page(), person.studio)
    second.open()
    second.tab("Compare")
    expect(second.at("compare-head")).to_contain_text("No comparison yet")
    person.page.bring_to_front()
    person.tab("Compare")
    expect(person.at("compare-status")).to_contain_text("2 facts")
    choose(person, "AGRADE", "MEMIT")
    fill(person, "compare-generate", "0")
    person.at("compare").click()
    expect(person.at("compare-progress")).to_contain_text("MEMIT · Covariance", timeout=PATIENCE)
    person.at("compare-cancel").click()
    expect(person.at("compare")).to_be_enabled(timeout=PATIENCE)
    expect(person.at("compare-problem")).to_contain_text("what was finished before is kept")
    expect(person.at("compare-table")).to_contain_text("cancelled")
    found = rows(person)
    assert len(found["AGRADE"]) == 8 and found["MEMIT"] == ["cancelled"]
    second.come_back()
    expect(second.at("compare-table")).to_contain_text("cancelled")
    person.page.bring_to_front()

    # Its files are still being written when the next one takes its place.
    person.at("compare-export").click()
    choose(person, "UltraEdit")
    expect(person.at("compare-problem")).to_have_text("")
    person.at("compare").click()
    expect(person.at("compare-table")).to_contain_text("UltraEdit", timeout=PATIENCE)
    expect(person.at("compare")).to_be_enabled(timeout=PATIENCE)
    expect(person.at("compare-files")).to_be_hidden()
    person.at("compare-export").click()
    expect(person.at("compare-command").locator("textarea, input")).to_have_value(
        re.compile(r"--methods ultraedit\b"), timeout=PATIENCE
    )
    second.come_back()
    expect(second.at("compare-table")).to_contain_text("UltraEdit")


def test_what_cannot_be_compared_is_said(person, facts_file):
    person.tab("Compare")
    person.at("compare").click()
    expect(person.at("compare-problem")).to_contain_text("there is no fact in it", timeout=PATIENCE)
    person.tab("Edit")
    person.upload(facts_file)
    person.tab("Compare")
    choose(person)
    person.at("compare").click()
    expect(person.at("compare-problem")).to_contain_text("No method was chosen")
    choose(person, "UltraEdit")
    fill(person, "compare-sweep", "some")
    person.at("compare").click()
    expect(person.at("compare-problem")).to_contain_text("no numbers of facts")
    assert json.dumps(rows(person)) == "{}"
