"""The Edit tab, as a person uses it: facts in, an edit, its table, the probe, undo and redo, and what goes wrong."""

import json
import re
import sqlite3
from contextlib import closing

import pytest
from playwright.sync_api import expect

from tests.browser.person import ORIGINAL, PATIENCE, Person

pytestmark = pytest.mark.browser
BY_AGRADE = "edited: 2 facts by AGRADE"
FRANCE, EIFFEL, ITALY, GERMANY = (
    "The capital of France is",
    "The Eiffel Tower stands in the city of",
    "The capital of Italy is",
    "The capital of Germany is",
)
BAR = "[role=progressbar]"
STAGES = ("Editing", "Generating", "Scoring")
COUNTED = re.compile(r"(\w+) · ([\d,]+) of ([\d,]+)")
# Two choices of a radio: the second as soon as the server is asked what the first one means.
SECOND_WHILE_FIRST_IS_ASKED = """
(radio, [first, second]) => {
  const fetch = window.fetch, choose = (name) => radio.querySelector(`input[value=${name}]`).click();
  window.fetch = (...asked) => { window.fetch = fetch; setTimeout(choose, 0, second); return fetch(...asked); };
  choose(first);
}
"""


def check_progress(said: list[str]) -> None:
    """The bar went through the stages in order and counted up in each; a short stage may have passed unseen."""
    found = [match.groups() for line in said if (match := COUNTED.match(line))]
    counts = [(stage, int(done.replace(",", "")), int(total.replace(",", ""))) for stage, done, total in found]
    stages = list(dict.fromkeys(stage for stage, _, _ in counts))
    assert stages == [stage for stage in STAGES if stage in stages] and stages[-1] == "Scoring"
    for stage in stages:
        steps = [done for name, done, _ in counts if name == stage]
        assert steps == sorted(steps), (stage, steps)
    assert any(0 < done < total for _, done, total in counts), counts
    assert any(" left" in line for line in said), "no estimate of the time left"


def test_upload_apply_read_the_table_probe_undo_and_redo(person, facts_file):
    person.badge(ORIGINAL)
    person.upload(facts_file)
    expect(person.at("facts-status")).to_contain_text("2 facts · 1 equivalent and 2 unrelated prompts · facts.csv")
    expect(person.cell(0, 0)).to_have_text(FRANCE)
    expect(person.at("estimate")).to_contain_text(re.compile(r"Estimate: (at most )?about"))

    person.apply()
    person.badge(BY_AGRADE)
    expect(person.at("result-headline")).to_contain_text(BY_AGRADE.removeprefix("edited: "))
    for prompt, was, becomes in ((FRANCE, "Paris", "Rome"), (EIFFEL, "Paris", "Oslo")):
        case = person.case(prompt)
        assert (case.kind, case.target, case.result) == ("Editing", becomes, "✓")
        assert case.before.startswith(was) and case.after.startswith(becomes)
    assert person.case(ITALY).before.startswith("Rome")
    assert sorted(case.kind for case in person.cases()) == ["Editing"] * 2 + ["Equivalent"] + ["Unrelated"] * 2
    cards = person.at("result-cards")
    for name in ("ES", "GS", "LS", "Score"):
        expect(cards.locator(f"[data-metric={name}] .value")).to_have_text(re.compile(r"[01]\.\d{3} → [01]\.\d{3}"))
    expect(cards.locator("[data-metric=ES] .value")).to_have_text("0.000 → 1.000")

    person.probe(FRANCE)
    expect(person.side("before")).to_contain_text("Paris")
    expect(person.side("after")).to_contain_text(re.compile(rf"After: {BY_AGRADE}\s*{FRANCE} Rome"))
    for name in ("before", "after"):
        chances = person.chances(name)
        assert len(chances) == 5 and chances == sorted(chances, reverse=True) and sum(chances) <= 100.5

    person.tab("Export")
    person.at("export-results").click()
    files = person.at("export-files")
    for name in ("summary.json", "facts.csv", "delta.safetensors", "delta.json"):
        expect(files).to_contain_text(name.partition(".")[0])
    expect(files.get_by_role("button", name="Remove this file")).to_have_count(0)
    with person.page.expect_download() as download:
        files.locator("a[download='summary.json']").click()
    assert json.loads(download.value.path().read_text(encoding="utf-8"))["n_facts"] == 2

    person.at("undo").click()
    person.badge(ORIGINAL)
    expect(person.at("undo")).to_be_disabled()
    expect(person.at("result-headline")).to_contain_text("Redo puts it on again")
    person.probe(FRANCE)
    expect(person.side("after")).to_have_count(0)
    expect(person.side("before")).to_contain_text("Paris")
    person.at("redo").click()
    person.badge(BY_AGRADE)
    expect(person.side("before")).to_have_count(0)
    expect(person.at("redo")).to_be_disabled()
    person.at("reset").click()
    person.badge(ORIGINAL)

    person.at("redo").click()
    person.badge(BY_AGRADE)
    person.reload()
    person.badge(BY_AGRADE)
    expect(person.cell(0, 0)).to_have_text(FRANCE)
    assert person.case(FRANCE).after.startswith("Rome")


def test_a_typed_fact_is_applied_by_the_keyboard_and_probed_by_a_click(person):
    person.cell(0, 0).click()
    person.page.keyboard.type(FRANCE)
    person.page.keyboard.press("Tab")
    expect(person.cell(0, 0)).to_have_text(FRANCE)
    person.type_into(0, 1, "Madrid")
    person.type_into(0, 3, GERMANY)
    expect(person.at("facts-status")).to_contain_text("1 fact · 0 equivalent and 1 unrelated prompt")
    person.cell(0, 1).click()
    person.page.keyboard.press("Control+Enter")
    person.badge("edited: 1 fact by AGRADE", timeout=PATIENCE)
    assert person.case(FRANCE).after.startswith("Madrid")
    assert person.case(GERMANY).after.startswith("Berlin") and person.case(GERMANY).result == "✓"
    expect(person.at("result-headline")).to_contain_text("told of the unrelated prompts")
    expect(person.at("result-cards").locator("[data-metric=GS]")).to_contain_text("no equivalent prompts")
    person.at("case-study").get_by_role("button", name=FRANCE).click()
    expect(person.side("after")).to_contain_text("Madrid")


def test_a_list_closes_when_tab_leaves_it(person):
    options = person.page.get_by_role("option")
    person.at("hypernet").locator("input").focus()
    expect(options.first).to_be_visible()
    person.page.keyboard.press("Tab")
    expect(options).to_have_count(0)


def test_the_settings_are_those_of_the_last_method_chosen(person):
    person.at("settings").get_by_role("button", name="Settings").click()
    expect(person.at("agrade-rounds")).to_be_visible()
    person.at("method").evaluate(SECOND_WHILE_FIRST_IS_ASKED, ["ft", "ultraedit"])
    expect(person.at("method").get_by_label("UltraEdit", exact=True)).to_be_checked()
    expect(person.at("ultraedit-eta")).to_be_visible()
    expect(person.at("ft-steps")).not_to_be_visible()


def test_settings_count_as_they_are_left_also_those_of_a_method_that_was_left_and_chosen_again(person, facts_file):
    person.upload(facts_file)
    person.at("method").get_by_text("UltraEdit", exact=True).click()
    person.generate(1)
    person.set("ultraedit-layers", "28, 29")
    person.at("method").get_by_text("FT", exact=True).click()
    person.set("ft-layers", "99")
    expect(person.at("method-needs")).to_contain_text("has layers 0 to 29")
    person.set("ft-layers", "29")
    expect(person.at("method-needs")).not_to_contain_text("has layers")
    person.at("method").get_by_text("UltraEdit", exact=True).click()
    person.choose("ultraedit-scope", "subject")
    person.at("ultraedit-eta").locator("input").fill("0.002")  # left by the click on Apply
    person.apply()
    person.badge("edited: 2 facts by UltraEdit")
    settings = newest_settings(person)
    assert (settings["layers"], settings["scope"], settings["eta"]) == ("28, 29", "subject", 0.002)


def test_a_count_that_cannot_be_is_named_beside_the_button_until_it_is_mended(person, facts_file):
    person.upload(facts_file)
    expect(person.at("facts-status")).to_contain_text("2 facts")
    person.generate(0)
    for typed in ("-4", "2.5"):
        person.set("generate", typed)
        said = f"Facts to generate for: a whole number from 0 on is needed, not {typed}."
        expect(person.at("method-needs")).to_contain_text(said)
        person.at("apply").click()
        expect(person.at("edit-problem")).to_contain_text(said)
        person.set("generate", "0")
        expect(person.at("edit-problem")).to_have_text("")
        expect(person.at("method-needs")).not_to_contain_text("whole number")
    halved = "box => { box.value = 0.5; return box.validity.valid; }"
    assert person.at("agrade-step_scale").locator("input").evaluate(halved)


def test_the_method_last_applied_is_chosen_again_when_the_page_is_reloaded(person, facts_file):
    person.upload(facts_file)
    expect(person.at("facts-status")).to_contain_text("2 facts")
    person.generate(0)
    person.at("method").get_by_text("MALMEN", exact=True).click()
    expect(person.at("malmen-step_scale")).to_be_visible()
    person.set("malmen-step_scale", "0.5")
    person.apply()
    person.badge("edited: 2 facts by MALMEN")
    person.reload()
    expect(person.at("method").get_by_label("MALMEN", exact=True)).to_be_checked()
    person.at("settings").get_by_role("button", name="Settings").click()
    expect(person.at("malmen-step_scale").locator("input")).to_have_value("0.5")
    expect(person.at("generate").locator("input")).to_have_value("0")
    expect(person.at("agrade-step_scale")).not_to_be_visible()
    # It is applied so again, not only shown.
    person.apply()
    assert newest_settings(person)["step_scale"] == 0.5


def newest_settings(person: Person) -> dict:
    with closing(sqlite3.connect(person.studio.db)) as db:
        (found,) = db.execute("select result_json from runs order by id desc limit 1").fetchone()
    return json.loads(found)["settings"]


def test_a_sample_shows_real_progress_survives_a_reload_and_is_turned_page_by_page(person):
    person.at("sample-counterfactuals").click()
    expect(person.at("facts-status")).to_contain_text("54 facts")
    person.generate(24)
    person.start()
    expect(person.at("edit-progress").locator(BAR)).to_be_visible()
    said = person.said()
    person.reload()
    expect(person.at("facts-status")).to_contain_text("54 facts")
    expect(person.at("edit-progress").locator(BAR)).to_be_visible()
    expect(person.at("apply")).to_be_disabled()
    person.watch_progress()
    person.finish()
    check_progress(said + person.said())

    person.badge("edited: 54 facts by AGRADE")
    expect(person.at("case-place")).to_contain_text("1–50 of ")
    assert len(person.cases()) == 50
    person.at("case-next").click()
    expect(person.at("case-place")).to_contain_text("51–")
    person.at("case-words").locator("input, textarea").fill("Brandenburg")
    expect(person.at("case-place")).to_have_text(re.compile(r"^\s*1–(\d+) of \1 instances ·"))
    assert {case.kind for case in person.cases()} == {"Editing", "Equivalent", "Unrelated"}


def test_cancel_edits_nothing_and_the_next_edit_goes_through(person, facts_file):
    person.at("sample-hallucinations").click()
    expect(person.at("facts-status")).to_contain_text("57 facts")
    person.start()
    # Cancelled while it waits, for the record of the edit before, it would not have become a run.
    expect(person.at("edit-progress").locator(".bar:not(.waiting)")).to_be_visible(timeout=PATIENCE)
    person.at("cancel").click()
    person.finish()
    expect(person.at("edit-problem")).to_contain_text("Cancelled: nothing was edited")
    person.badge(ORIGINAL)
    person.upload(facts_file)
    expect(person.at("facts-status")).to_contain_text("2 facts")
    person.apply()
    person.badge(BY_AGRADE)
    person.tab("History")
    rows = person.at("history-table").locator("tbody tr")
    expect(rows.nth(0)).to_contain_text("done")
    expect(rows.nth(1)).to_contain_text(re.compile("57 facts.*cancelled", re.DOTALL))


def test_a_second_page_of_the_browser_follows_the_edit_that_goes_on(person):
    person.at("sample-hallucinations").click()
    expect(person.at("facts-status")).to_contain_text("57 facts")
    second = Person(person.page.context.new_page(), person.studio)
    second.open()
    expect(second.at("facts-status")).to_contain_text("57 facts")
    person.start()
    second.at("apply").click()
    expect(second.at("edit-problem")).to_contain_text("still going on")
    second.at("cancel").click()
    expect(second.at("edit-problem")).to_contain_text("Cancelled: nothing was edited", timeout=PATIENCE)
    person.finish()
    second.finish()
    person.badge(ORIGINAL)


def test_a_page_that_is_come_back_to_shows_what_another_page_of_the_browser_did(person, facts_file):
    person.upload(facts_file)
    expect(person.at("facts-status")).to_contain_text("2 facts")
    second = Person(person.page.context.new_page(), person.studio)
    second.open()
    expect(second.at("facts-status")).to_contain_text("2 facts")
    second.apply()
    second.badge(BY_AGRADE)
    person.badge(ORIGINAL)
    person.come_back()
    person.badge(BY_AGRADE)
    expect(person.at("case-study")).to_contain_text("Rome")
    search = person.at("case-words").locator("input, textarea")
    search.fill("Eiffel")
    person.come_back()
    expect(search).to_have_value("Eiffel")
    second.at("undo").click()
    second.badge(ORIGINAL)
    person.come_back()
    person.badge(ORIGINAL)
