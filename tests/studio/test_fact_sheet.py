"""The fact sheet without a browser: rows ↔ facts, uploads, what counts as the facts, and how problems are told."""

import json
from pathlib import Path

import gradio as gr
import pytest

from engine.errors import FactError
from engine.fact_readers import read_facts, template_text, write_csv
from engine.fact_records import TEMPLATE_COLUMNS
from engine.facts import Fact, FactBatch, Problem
from studio.components import sheet_rows
from studio.components.fact_sheet import FactSheet, problems_html, sample_title, samples, status_html
from studio.components.sheet_rows import (
    EDITABLE_ROWS,
    PREVIEW_ROWS,
    blank_rows,
    chosen_batch,
    clean_rows,
    filled,
    pasted,
    raw_rows,
    read_rows,
    rows_of,
    same,
    upload,
)
from studio.store import Store
from studio.studio import Studio

FACT = Fact(
    "The capital of Burundi is",
    "Gitega",
    ("Burundi is governed from", "The Burundian capital is"),
    (("The capital of Rwanda is", "Kigali"), ("Burundi lies in", "")),
    "Burundi",
    "Bujumbura",
    1,
)


def row(**cells: str) -> list[str]:
    return [cells.get(column, "") for column in TEMPLATE_COLUMNS]


def test_a_row_shows_several_texts_in_one_cell_and_reads_them_back():
    batch = FactBatch((FACT,), "here", "studio")
    rows = rows_of(batch)
    assert rows[0][2] == "Burundi is governed from || The Burundian capital is"
    assert read_rows(rows).facts == (FACT,)


def test_what_the_browser_sends_becomes_seven_texts_a_row():
    rows = [["a", None, float("nan")], [1, " b ", "", "", "", "", "", "extra"]]
    assert clean_rows({"headers": list(TEMPLATE_COLUMNS), "data": rows}) == [["a", "", "", "", "", "", ""], ["1", "b", "", "", "", "", ""]]
    assert clean_rows(None) == []


def test_blank_rows_at_the_end_do_not_count_but_keep_the_numbers_of_those_between():
    rows = [row(prompt="A is", target="b"), row(), row(prompt="C is"), *blank_rows()]
    assert filled(rows) == rows[:3]
    batch = read_rows(rows)
    assert len(batch) == 1 and [problem.row for problem in batch.errors] == [3]
    assert read_rows(blank_rows()) == FactBatch((), sheet_rows.SHEET, "studio")


def test_an_untouched_upload_stays_what_it_was_and_a_changed_cell_makes_it_the_sheets(tmp_path):
    records = [
        {"prompt": "A is", "target_new": "b", "ground_truth": "x"},
        {"prompt": "A is", "target_new": "c", "ground_truth": "x"},
    ]
    path = tmp_path / "facts.json"
    path.write_text(json.dumps(records), encoding="utf-8")
    batch, rows = upload(path)
    assert batch.form == "counterfact" and len(batch) == 2 and not batch.errors
    assert chosen_batch([*rows, *blank_rows()], batch, {}) is batch
    rows[0][1] = "d"
    changed = chosen_batch(rows, batch, {})
    assert changed.form == "studio" and "contradicts" in str(changed.errors[0])


def test_what_is_typed_is_there_when_the_page_is_opened_again(tmp_path):
    path = tmp_path / "facts.csv"
    write_csv([FACT], path)
    studio = Studio(Store(tmp_path / "studio.db"))
    with gr.Blocks():
        sheet = FactSheet(studio, gr.State(""))
    typed, workspace = [row(prompt="A is", target="b"), *blank_rows()], studio.workspace("w")
    sheet._described("w", typed, True)
    assert sheet.shown(workspace.batch, workspace.rows)[sheet.sheet].value["data"] == typed
    sheet._described("w", blank_rows(), False)
    assert workspace.rows == typed, "the blank sheet of a page that is being opened"
    sheet._described("w", blank_rows(), True)
    assert not filled(sheet.kept("w")[sheet.sheet].value["data"]), "what was deleted does not come back"
    sheet.load("w", path)
    shown = rows_of(workspace.batch)
    sheet._described("w", [[*shown[0][:1], "Rome", *shown[0][2:]]], True)
    assert workspace.rows[0][1] == "Rome" and workspace.batch.facts[0].target == "Gitega"
    sheet._described("w", shown, True)
    assert workspace.rows is None, "it is the upload again"
    sheet._cleared("w", shown)
    assert workspace.rows is None and workspace.batch is None
    studio.close()


@pytest.fixture
def sheet(tmp_path):
    studio = Studio(Store(tmp_path / "studio.db"))
    with gr.Blocks():
        yield FactSheet(studio, gr.State(""))
    studio.close()


def test_what_was_cleared_or_removed_can_be_put_back(sheet, tmp_path):
    path, workspace = tmp_path / "facts.csv", sheet.studio.workspace("w")
    write_csv([FACT], path)
    loaded = sheet.load("w", path)
    rows = loaded[sheet.sheet].value["data"]
    assert not loaded[sheet.back].visible
    cleared = sheet._cleared("w", rows)
    assert cleared[sheet.back].visible and workspace.batch is None
    sheet._cleared("w", blank_rows())  # once more: there is nothing to lose
    typed = [row(prompt="A is", target="b")]
    back = sheet._put_back("w", typed)
    assert same(back[sheet.sheet].value, rows) and back[sheet.back].visible and workspace.batch.facts == (FACT,)
    sheet._cleared("w", rows)
    assert not sheet._put_back("w", blank_rows())[sheet.back].visible, "a blank sheet is nothing to put back"
    sheet._cleared("w", typed)
    assert sheet._put_back("w", rows)[sheet.sheet].value["data"] == typed, "what stood in its place is not lost"
    left, _row, _remove, shown = sheet._removed("w", [*typed, *rows], 0)
    assert same(left, rows) and shown.visible
    assert same(sheet._put_back("w", left)[sheet.sheet].value, [*typed, *rows])


def test_what_another_page_typed_is_shown_where_it_is_come_back_to(sheet):
    typed = [row(prompt="A is", target="b"), *blank_rows()]
    sheet._described("w", typed, True)
    assert sheet.come_back("w", blank_rows(), False) == gr.skip(), "it is only being opened"
    assert sheet.come_back("w", typed[:1], True) == gr.skip()
    assert sheet.come_back("w", blank_rows(), True)[sheet.sheet].value["data"] == typed


def test_an_upload_comes_back_from_the_sheet_unchanged_when_its_last_answer_is_blank():
    batch = FactBatch((FACT,), "facts.csv", "counterfact")
    assert rows_of(batch)[0][4] == "Kigali || "
    assert chosen_batch(clean_rows(rows_of(batch)), batch, {}) is batch


def test_rows_that_cannot_be_used_are_shown_in_the_files_order_so_that_they_can_be_mended(tmp_path):
    path = tmp_path / "facts.csv"
    path.write_text("Prompt;Target;equivalent_1;equivalent_2\nA is;b;;\nC is;;x;y\n", encoding="utf-8")
    batch, rows = upload(path)
    assert [problem.row for problem in batch.errors] == [2]
    assert rows == [row(prompt="A is", target="b"), row(prompt="C is", equivalent="x || y")]
    again = chosen_batch(rows, batch, {})
    assert [problem.row for problem in again.errors] == [2]
    rows[1][1] = "d"
    assert [fact.target for fact in chosen_batch(rows, batch, {}).require()] == ["b", "d"]


def test_a_file_of_which_a_row_fell_apart_is_not_taken(tmp_path):
    path = tmp_path / "facts.csv"
    path.write_text("prompt,target\nOne is,two,three\nA is,b\n", encoding="utf-8")
    with pytest.raises(FactError, match="Row 1 .*3 cells, but the header names 2.* Mend the file and upload it again"):
        upload(path)
    path = tmp_path / "facts.jsonl"
    path.write_text('{"prompt": "A is", "target": "b"}\nnot json\nnor this\n', encoding="utf-8")
    with pytest.raises(FactError, match="Row 2 .line 2.: not valid JSON.* 1 more of its rows cannot be read either"):
        upload(path)


def test_a_sheet_of_faulty_rows_is_not_called_empty(tmp_path):
    path = tmp_path / "facts.csv"
    path.write_text("prompt,target\nA is,\n", encoding="utf-8")
    assert "No fact that can be edited yet · facts.csv" in status_html(upload(path)[0])
    assert "No facts yet" in status_html(read_rows([]))


@pytest.mark.parametrize(
    "unfit",
    [
        {"equivalent": [["x"], "y"]},
        {"unrelated": [{"prompt": "p", "answer": "q"}]},
        {"target": {"str": "b", "id": "Q1"}},
        {"target": True},
        {"target": ["b", "c"]},
        {"target": float("inf")},
    ],
    ids=str,
)
def test_what_no_cell_can_say_is_not_written_into_one_and_edited(tmp_path, unfit):
    path = tmp_path / "facts.json"
    records = [{"prompt": "C is", "target": "d"}, {"prompt": "A is", "target": "b"} | unfit]
    path.write_text(json.dumps(records), encoding="utf-8")
    batch, rows = upload(path)
    assert row(prompt="C is", target="d") in rows
    with pytest.raises(FactError, match="Row 2"):
        chosen_batch(rows, batch, {}).require()


def raw_rows_of(text: str, tmp_path: Path, name: str = "facts.csv") -> list[list[str]]:
    (tmp_path / name).write_text(text, encoding="utf-8")
    return raw_rows(tmp_path / name)


@pytest.mark.parametrize(
    "text",
    [
        '[{"prompt": "A is", "target": "b", "equivalent": ["x", "y"]}]',
        '{"prompt": "A is", "target": "b", "equivalent": "x || y"}\n',
        "prompt\ttarget\tequivalent\nA is\tb\tx || y\n",
        '\n\nprompt,target,equivalent\nA is,b,x || y\n',
        'prompt;target;equivalent;"notes, sources, links, and more"\nA is;b;x || y;none\n',
        "sep=;\nprompt;target;equivalent;who, where, when, and why\nA is;b;x || y;\n",
        '[{"prompt": "A is", "target": "b", "equivalent": ["x", "y"], "id": {"of": "another program"}}]',
    ],
    ids=["json", "jsonl", "tab", "blank lines first", "commas in a heading", "declared", "another column"],
)
def test_raw_rows_of_every_kind_of_file(tmp_path, text):
    assert raw_rows_of(text, tmp_path) == [row(prompt="A is", target="b", equivalent="x || y")]


def test_blank_rows_of_a_file_keep_their_places(tmp_path):
    found = raw_rows_of("prompt,target\nA is,b\n,\n\nC is,\n", tmp_path)
    assert found == [row(prompt="A is", target="b"), row(), row(prompt="C is")]


def test_a_blank_answer_keeps_its_place_among_numbered_columns(tmp_path):
    text = "prompt,target,unrelated_1,unrelated_answer_1,unrelated_2,unrelated_answer_2,unrelated_3,unrelated_answer_3\n"
    (found,) = raw_rows_of(text + "A is,,u,,,,w,x\n", tmp_path)
    assert found == row(prompt="A is", unrelated="u || w", unrelated_answer=" || x")
    found[1] = "b"
    assert read_rows(clean_rows([found])).require().facts[0].unrelated == (("u", ""), ("w", "x"))


def test_pasted_cells_fill_to_the_right_and_down_and_the_rows_grow():
    rows = [row(prompt="A is", target="b", subject="A"), row(prompt="C is")]
    found = pasted(rows, "d\tx || y\r\n\t\r\n e \tz\r\n", 1, 1)
    changed = row(prompt="C is", target="d", equivalent="x || y")
    assert found == [rows[0], changed, row(), row(target="e", equivalent="z")]
    assert rows[1] == row(prompt="C is"), "what the sheet said is not touched"
    assert pasted(rows, "B", 0, 5) == [row(prompt="A is", target="b", subject="B"), rows[1]]
    assert pasted(rows, "one\ttwo\tthree", 0, 5)[0] == row(prompt="A is", target="b", subject="one", old_target="two")
    assert pasted(rows, "D is\r\n", 0, 0) == [row(prompt="D is", target="b", subject="A"), rows[1]]


def test_a_pasted_cell_of_several_lines_stays_one_and_quotation_marks_of_a_text_stay():
    assert pasted([], '"Say ""hi"":\nA is"\tb\n', 0, 0) == [row(prompt='Say "hi":\nA is', target="b")]
    assert pasted([], '"A" is', 0, 0) == [row(prompt='"A" is')]
    open_ended = '"A" is\tb\r\n"C is\td\r\n'
    assert pasted([], open_ended, 0, 0) == [row(prompt='"A" is', target="b"), row(prompt='"C is', target="d")]


def test_a_pasted_first_line_that_names_columns_says_where_the_cells_go():
    text = "Target\tEdit prompt\tequivalent_1\tequivalent_2\nb\tA is\tx\ty\nd\tC is\t\tz\n"
    found = pasted([row(subject="A", target="old"), *blank_rows(1)], text, 0, 4)
    first = row(prompt="A is", target="b", equivalent="x || y", subject="A")
    assert found == [first, row(prompt="C is", target="d", equivalent="z")]
    assert pasted([], "prompt\ttarget", 0, 0) == [row(prompt="prompt", target="target")], "a line alone is a text"
    assert pasted([], "prompt\tremarks\nA is\tb", 0, 0)[0] == row(prompt="prompt", target="remarks")


def test_more_rows_are_not_pasted_than_the_sheet_can_be_edited_with():
    text = "\n".join(f"Number {number} is called\tx" for number in range(EDITABLE_ROWS))
    assert len(pasted(blank_rows(), text, 0, 0)) == EDITABLE_ROWS
    with pytest.raises(FactError, match="would have 501 rows; it can be edited with up to 500"):
        pasted(blank_rows(), text, 1, 0)


def test_of_a_large_upload_the_first_rows_are_shown_and_all_are_edited(tmp_path):
    path = tmp_path / "facts.csv"
    write_csv((Fact(f"Number {number} is called", "x") for number in range(EDITABLE_ROWS + 1)), path)
    batch, rows = upload(path)
    assert len(rows) == PREVIEW_ROWS
    assert chosen_batch(rows, batch, {}) is batch and len(batch) == EDITABLE_ROWS + 1
    with pytest.raises(FactError, match="unclear which are meant"):
        chosen_batch(rows[1:], batch, {})
    with pytest.raises(FactError, match="first 100 facts of facts.csv, which another page"):
        chosen_batch(rows, None, {sheet_rows.preview_key(rows): batch.source})


def test_the_template_and_every_sample_can_be_edited_as_they_come(tmp_path):
    path = tmp_path / "template.csv"
    path.write_text(template_text(), encoding="utf-8")
    assert len(read_facts(path).require()) == 2
    assert len(samples()) == 3
    for sample in samples():
        batch, rows = upload(sample)
        assert chosen_batch(rows, batch, {}).require() is batch
        assert read_rows(rows).facts == batch.facts, "the sheet says the same as the file"
        assert sample_title(sample).endswith(f"({len(batch)})")


def test_the_status_counts_and_names_the_source():
    batch = FactBatch((FACT,), "my <facts>.json", "zsre")
    assert status_html(batch) == (
        "<strong>1 fact</strong> · 2 equivalent and 2 unrelated prompts · my &lt;facts&gt;.json (zsRE form)"
    )
    assert "No facts yet" in status_html(read_rows([]))
    assert "the first" in status_html(FactBatch((FACT,) * (EDITABLE_ROWS + 1), "x", "zsre"))


def test_problems_are_told_by_row_errors_before_warnings_and_escaped():
    problems = (
        Problem(2, "target", "Row 2: <b> is blank.", "error"),
        Problem(1, "prompt", "Row 1: twice.", "warning"),
    )
    batch = FactBatch((FACT,), "x", "studio", problems)
    told = problems_html(batch)
    assert "1 problem to mend first" in told and "note warning" in told and "Nothing was edited" not in told
    assert told.index("Row 2: &lt;b&gt; is blank.") < told.index("Row 1: twice.") and "<b>" not in told
    refused = problems_html(batch, refused=True)
    assert "Nothing was edited: 1 problem to mend first." in refused and 'class="note error" role="alert"' in refused
    assert problems_html(FactBatch((FACT,), "x", "studio")) == ""


def test_of_very_many_problems_the_first_are_told_and_the_rest_counted():
    problems = tuple(Problem(number, "target", f"Row {number}: blank.", "error") for number in range(1, 1001))
    told = problems_html(FactBatch((), "x", "studio", problems))
    assert told.count("<li") == 51 and "950 more" in told
