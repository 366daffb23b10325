"""The fact sheet, as a person uses it: rows pasted, deleted, put back and mended, files that cannot be read, two pages."""

import re

import pytest
from playwright.sync_api import expect

from tests.browser.person import ORIGINAL, PATIENCE, Person
from tests.browser.test_edit import BY_AGRADE, EIFFEL, FRANCE, ITALY

pytestmark = pytest.mark.browser


def test_rows_of_a_spreadsheet_are_pasted_into_a_chosen_and_into_an_opened_cell(person):
    status = person.at("facts-status")
    person.cell(1, 0).click()
    person.come_back()
    person.paste(f"{FRANCE}\tMadrid\r\n{ITALY}\tMilan\r\n")
    expect(status).to_contain_text("2 facts · 0 equivalent")
    expect(person.cell(2, 1)).to_have_text("Milan")
    expect(person.cell(0, 0)).to_have_text("")
    person.cell(0, 0).dblclick()
    person.page.keyboard.type("The")
    person.paste(f"Prompt\tEquivalent\tTarget\n{EIFFEL}\t\tOslo\n{FRANCE}\t\"the capital\nof France\"\tNice\n")
    expect(status).to_contain_text("3 facts · 1 equivalent")
    expect(person.at("facts-problems")).to_have_text("")
    for row, target in enumerate(("Oslo", "Nice", "Milan")):
        expect(person.cell(row, 1)).to_have_text(target)
    expect(person.at("fact-sheet").locator("textarea")).to_have_count(0)
    person.page.keyboard.press("ArrowDown")
    person.page.keyboard.press("ArrowRight")
    person.paste("Lyon")
    expect(person.cell(1, 1)).to_contain_text("Lyon")
    person.cell(1, 1).dblclick()
    person.page.keyboard.press("End")
    person.paste(" or Nice\n")
    person.page.keyboard.press("Enter")
    expect(person.cell(1, 1)).to_contain_text("Lyon or Nice")


def test_what_is_deleted_stays_away_what_is_cleared_can_be_put_back_and_another_page_shows_what_was_typed(person):
    status = person.at("facts-status")
    second = Person(person.page.context.new_page(), person.studio)
    second.open()
    person.page.bring_to_front()
    person.type_into(0, 0, FRANCE)
    person.type_into(0, 1, "Madrid")
    expect(status).to_contain_text("1 fact")
    second.come_back()
    expect(second.at("facts-status")).to_contain_text("1 fact")
    expect(second.cell(0, 1)).to_contain_text("Madrid")
    second.page.close()
    person.at("facts-clear").click()
    expect(status).to_contain_text("No facts yet")
    person.at("facts-back").click()
    expect(status).to_contain_text("1 fact")
    expect(person.cell(0, 1)).to_contain_text("Madrid")
    for column in (0, 1):
        person.cell(0, column).click()
        person.page.keyboard.press("Delete")
    expect(status).to_contain_text("No facts yet")
    person.reload()
    expect(status).to_contain_text("No facts yet")
    expect(person.cell(0, 0)).to_have_text("")


def test_a_bad_row_is_shown_stops_the_edit_and_can_be_mended_in_the_sheet(person, tmp_path):
    path = tmp_path / "facts.csv"
    path.write_text(f"prompt,target\n{FRANCE},Rome\n{EIFFEL},\n{FRANCE},Madrid\n", encoding="utf-8")
    person.upload(path)
    problems = person.at("facts-problems")
    expect(problems).to_contain_text(re.compile(r"Row 2\b.*target is blank.*Row 3\b.*contradicts row 1", re.DOTALL))
    person.at("apply").click()
    expect(problems).to_contain_text("Nothing was edited: 2 problems to mend first.")
    person.badge(ORIGINAL)
    expect(person.at("edit-problem")).to_contain_text("2 problems to mend in the facts above")
    person.type_into(1, 1, "Oslo")
    expect(person.at("edit-problem")).to_have_text("")
    expect(problems).to_contain_text("Row 3")
    expect(problems).not_to_contain_text("Row 2")
    person.cell(2, 0).click()
    person.at("facts-remove").click()
    expect(problems).not_to_contain_text("Row 3")
    person.apply()
    person.badge(BY_AGRADE)


def test_a_file_that_cannot_be_read_leaves_the_sheet_as_it_was(person, facts_file, tmp_path):
    person.upload(facts_file)
    expect(person.cell(1, 1)).to_have_text("Oslo")
    refused = {
        "empty.csv": (b"", "the file is empty"),
        "latin.csv": ("prompt,target\nCafé,Köln\n".encode("latin-1"), "not UTF-8"),
        "answers.csv": (b"prompt,answer\nSeen,twice\n", "Found: prompt, answer. Needed: prompt and target"),
        "picture.csv": (b"%PDF-1.7\n\0\0", "not text"),
    }
    for name, (content, said) in refused.items():
        path = tmp_path / name
        path.write_bytes(content)
        person.upload(path)
        problems = re.compile(f"The file was not taken; the sheet is as it was.*{name}: .*{said}", re.DOTALL)
        expect(person.at("facts-problems")).to_contain_text(problems)
        expect(person.cell(1, 1)).to_have_text("Oslo")
        expect(person.at("facts-status")).to_contain_text("2 facts")
    person.badge(ORIGINAL)


def test_a_longer_file_with_the_same_first_rows_is_estimated_anew(person, tmp_path):
    said = []
    for facts in (600, 3000):
        path = tmp_path / f"{facts}.csv"
        rows = "".join(f"The capital of country {number} is,Rome\n" for number in range(facts))
        path.write_text(f"prompt,target\n{rows}", encoding="utf-8")
        person.upload(path)
        expect(person.at("facts-status")).to_contain_text(f"{facts:,} facts")
        expect(person.at("estimate")).to_contain_text(re.compile("Estimate: (at most )?about"))
        if said:
            expect(person.at("estimate")).not_to_have_text(said[-1])
        said.append(person.at("estimate").inner_text())


def test_a_prompt_longer_than_the_context_is_named_by_its_row(person, tmp_path):
    path = tmp_path / "facts.csv"
    path.write_text(f"prompt,target\n{FRANCE},Rome\n{'word ' * 9000},Rome\n", encoding="utf-8")
    person.upload(path)
    expect(person.at("facts-status")).to_contain_text("2 facts")
    person.at("apply").click()
    expect(person.at("edit-problem")).to_contain_text(re.compile("Row 2, prompt: .*context holds"), timeout=PATIENCE)
    person.badge(ORIGINAL)
    person.finish()
