"""Files of facts are read as data, refused with a reason, and what is written is read back."""

import gzip
import json
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine import fact_readers
from engine.errors import FactError
from engine.fact_readers import read_facts, template_text, write_csv
from engine.fact_records import TEMPLATE_COLUMNS, fact_to_record, parse_records
from engine.facts import Fact

HEADER = "prompt,target,equivalent,unrelated,unrelated_answer,subject,old_target\n"
PLAIN = {"prompt": "The river in Ulm is the", "target": "Iller"}


@pytest.fixture
def write(tmp_path):
    """Write a file of facts; text is encoded as UTF-8."""

    def write(content: str | bytes | list | dict, name: str = "facts.csv"):
        path = tmp_path / name
        if isinstance(content, list | dict):
            content = json.dumps(content)
        path.write_bytes(content.encode() if isinstance(content, str) else content)
        return path

    return write


def test_every_studio_column_is_read(write):
    batch = read_facts(write(HEADER + " A is , b ,A1 || A2,U1 || U2,x || y,A,c\n"))
    assert batch.facts == (Fact("A is", "b", ("A1", "A2"), (("U1", "x"), ("U2", "y")), "A", "c", 1),)
    assert (batch.source, batch.form, batch.problems) == ("facts.csv", "studio", ())
    assert batch.require() is batch and len(batch) == 1 and list(batch) == list(batch.facts)


@pytest.mark.parametrize("delimiter", [",", ";", "\t"])
def test_the_separator_is_recognised_by_the_header(write, delimiter):
    text = delimiter.join(["prompt", "target", "subject"]) + "\r\n" + delimiter.join(["A is", "b", "A"]) + "\r\n"
    assert read_facts(write(text)).facts == (Fact("A is", "b", subject="A", row=1),)


def test_a_byte_order_mark_capitals_and_spaces_in_the_header_do_no_harm(write):
    text = "\ufeffPrompt, Target ,Unrelated,Unrelated Answer\nA is,b,U,x\n"
    batch = read_facts(write(text))
    assert batch.facts == (Fact("A is", "b", unrelated=(("U", "x"),), row=1),)
    assert not batch.problems


def test_numbered_columns_hold_more_of_the_same(write):
    text = "prompt,target,equivalent_2,equivalent_10,equivalent,unrelated_1,unrelated_answer_1\nA,b,E2,E10,E,U,x\n"
    batch = read_facts(write(text))
    assert batch.facts[0].equivalent == ("E", "E2", "E10")
    assert batch.facts[0].unrelated == (("U", "x"),)
    assert not batch.problems


def test_columns_may_be_headed_as_a_person_says_it(write):
    header = "Edit prompt,Target,Equivalent prompts,equivalent prompt 2,Unrelated prompts,Unrelated answers,Old target"
    batch = read_facts(write(f"{header}\nA,b,E || F,G,U || V,x || y,c\n"))
    assert batch.facts == (Fact("A", "b", ("E", "F", "G"), (("U", "x"), ("V", "y")), old_target="c", row=1),)
    assert not batch.problems


def test_inner_newlines_are_kept(write):
    assert read_facts(write('prompt,target\n"one\ntwo ",x\n')).facts[0].prompt == "one\ntwo"


def test_blank_lines_are_passed_over_and_empty_rows_counted(write):
    batch = read_facts(write("\n \nprompt,target,subject\n,,\nA,b,\n\nC,d,\n"))
    assert [(fact.prompt, fact.row) for fact in batch] == [("A", 2), ("C", 3)]
    assert not batch.problems


# JSON and JSONL


@pytest.mark.parametrize("name", ["facts.jsonl", "facts.json", "facts.txt"])
def test_jsonl_is_read_whatever_it_is_called(write, name):
    text = json.dumps(PLAIN) + "\r\n\n" + json.dumps(PLAIN | {"prompt": "B\u2028C"}, ensure_ascii=False) + "\n"
    batch = read_facts(write(text, name))
    assert [(fact.prompt, fact.row) for fact in batch] == [(PLAIN["prompt"], 1), ("B\u2028C", 2)]


def test_a_bad_jsonl_line_is_named_with_row_line_and_column(write):
    batch = read_facts(write(json.dumps(PLAIN) + '\n\n{"prompt": }\n', "facts.jsonl"))
    problem = batch.problems[0]
    assert (problem.row, problem.severity) == (2, "error")
    assert str(problem).startswith("Row 2 (line 3): not valid JSON at column 12")
    assert len(batch) == 1


def test_a_single_object_is_a_single_fact(write):
    assert len(read_facts(write(PLAIN, "facts.json"))) == 1


def test_an_item_that_is_no_object_is_named(write):
    batch = read_facts(write([PLAIN, 5, None, ["a"]], "facts.json"))
    assert [problem.row for problem in batch.errors] == [2, 3, 4]
    assert str(batch.errors[0]).startswith("Row 2: a number where an object")
    assert [problem.row for problem in read_facts(write([5], "facts.json")).errors] == [1]


def test_a_csv_row_with_too_many_cells_is_named_and_a_short_one_is_filled(write):
    batch = read_facts(write('prompt,target,subject\nA,b,s\n"C\nD",d,s,more\nE,f\nG,h,s,,\n'))
    assert [(fact.prompt, fact.subject) for fact in batch] == [("A", "s"), ("E", ""), ("G", "s")]
    long, short = batch.problems
    assert (long.row, long.severity) == (2, "error")
    assert long.message.startswith("Row 2 (record 2 after the header, line 3): 4 cells, but the header names 3.")
    assert (short.row, short.field, short.severity) == (3, "subject", "warning")
    assert "line 5" in short.message


def test_a_text_below_a_spreadsheets_empty_columns_is_out_of_place(write):
    batch = read_facts(write("prompt,target,,\nA,b,,\nParis, the city of light, is in,Spain\n"))
    assert [fact.prompt for fact in batch] == ["A"]
    assert "Row 2" in batch.errors[0].message and "4 cells, but the header names 2" in batch.errors[0].message


def test_excels_line_on_the_separator_is_no_header(write):
    batch = read_facts(write("sep=;\r\nprompt;target\r\nA, that is;b\r\nC;\r\n"))
    assert [fact.prompt for fact in batch] == ["A, that is"] and "line 4" in batch.errors[0].message


def test_thousands_of_unknown_columns_are_a_short_remark(write):
    names = [f"column{number}" for number in range(3000)]
    (told,) = read_facts(write(f"prompt,target,{','.join(names)}\nA,b{',' * 3000}\n")).warnings
    assert "column11 …" in told.message and len(told.message) < 400


def test_of_facts_that_are_left_out_nothing_is_said(write):
    batch = read_facts(write("prompt,target,unrelated\nA,b,\nC,d,\nE,f,A\nG,h,C\na,b,\n"))
    assert [one.row for one in batch.warnings] == [3, 4, 5]
    assert [one.row for one in batch.only(batch.facts[:3]).warnings] == [3]
    assert [one.row for one in batch.only(batch.facts[::-1][:2]).warnings] == []
    assert batch.only(batch.facts).warnings == batch.warnings


# Files that cannot be read at all: (content, name, words of the message)

FILES = {
    "empty": (b"", "facts.csv", "facts.csv: the file is empty"),
    "only blanks": (b"\xef\xbb\xbf \n\n", "facts.csv", "the file is empty"),
    "packed": (gzip.compress(b"prompt,target\nA,b\n"), "facts.csv.gz", "packed with gzip. Unpack it first"),
    "UTF-16 without a mark": ("prompt,target\nA,b\n".encode("utf-16-le"), "facts.csv", "UTF-16 text. Save it as UTF-8"),
    "header only": (HEADER, "facts.csv", "there is no record in it"),
    "empty list": ("[]", "facts.json", "there is no record in it"),
    "Latin-1": ("prompt,target\nA,é\n".encode("latin-1"), "facts.csv", r"not UTF-8: byte 16 \(line 2\) is 0xE9.*Save"),
    "Latin-1 after a mark": (b"\xef\xbb\xbfa\xe9", "facts.csv", r"byte 4 \(line 1\)"),
    "UTF-16": ("prompt,target\nA,b\n".encode("utf-16"), "facts.csv", "UTF-16.*Save it as UTF-8"),
    "workbook": (b"PK\x03\x04rest", "facts.xlsx", "Excel workbook.*Save it as CSV"),
    "binary": (b"abc\n\0\x01", "facts.csv", r"NUL byte at byte 4 \(line 2\)"),
    "pickle": (b"\x80\x04\x95\x05.", "facts.csv", "not UTF-8: byte 0"),
    "prose": ("Once upon a time, there was\na, b, c, d\n", "facts.txt", "Found: once_upon_a_time, .*Needed: prompt"),
    "missing column": ("prompt,answer\nA,b\n", "facts.csv", "Found: prompt, answer. Needed: prompt and target"),
    "JSON without a field": ([{"prompt": "A", "answer": "b"}], "facts.json", "Found: prompt, answer. Needed"),
    "no fields": ([{}], "facts.json", "Found: none"),
    "column twice": ("prompt,target,Prompt\nA,b,c\n", "facts.csv", "names the column prompt twice"),
    "open quote": ('prompt,target\nA,b\n"C,d\nE,f\n', "facts.csv", "from line 3 on: .*Close every double quote"),
    "huge cell": ("prompt,target\nA," + "b" * 200_000, "facts.csv", "in line 2 has more than 131,072 letters.*shorten"),
    "bad JSON": ('[{"prompt": "A",\n "target" "b"}]', "facts.json", "JSON at line 2, column 11: Expecting ':'"),
    "deep JSON": ("[" * 100_000, "facts.json", "nested too deep"),
    "giant number": ('[{"prompt": ' + "9" * 5000 + "}]", "facts.json", "not valid JSON: Exceeds the limit"),
    "JSON by name only": ("prompt,target\nA,b\n", "facts.json", "not JSON: it begins with “p”"),
}


@pytest.mark.parametrize("case", FILES)
def test_a_file_that_cannot_be_read_says_why_and_what_to_do(write, case):
    content, name, words = FILES[case]
    with pytest.raises(FactError, match=words):
        read_facts(write(content, name))


def test_a_large_file_is_refused_before_it_is_read(tmp_path, monkeypatch):
    path = tmp_path / "facts.csv"
    with path.open("wb") as file:
        file.truncate(100_000_000)  # sparse: takes no room on the disk
    monkeypatch.setattr(type(path), "read_bytes", lambda self: pytest.fail("the file was read"))
    with pytest.raises(FactError, match="facts.csv: 100.0 MB, but at most 50 MB are read. Split"):
        read_facts(path)


def test_a_file_that_is_not_there_and_a_folder_are_refused(tmp_path):
    with pytest.raises(FactError, match="nowhere.csv: cannot be read .*Check the path"):
        read_facts(tmp_path / "nowhere.csv")
    with pytest.raises(FactError, match="cannot be read"):
        read_facts(str(tmp_path))


# Writing


def test_the_template_can_be_read_without_a_problem(write):
    batch = read_facts(write(template_text()))
    assert template_text().splitlines()[0] == ",".join(TEMPLATE_COLUMNS)
    assert [replace(fact, row=0) for fact in batch] == list(fact_readers.TEMPLATE_FACTS)
    assert not batch.problems


def test_excel_is_told_that_the_written_csv_is_utf8(tmp_path):
    write_csv([Fact("Où est", "é")], tmp_path / "facts.csv")
    assert (tmp_path / "facts.csv").read_bytes().startswith(b"\xef\xbb\xbfprompt,target,")


TEXTS = st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=12).map(str.strip)
CELLS = TEXTS | st.lists(st.sampled_from(["||", "a", '"', "[", "]", ",", ";", "\r", "\n"]), max_size=5).map(" ".join)
CELLS = CELLS.map(str.strip)
FILLED = CELLS.filter(bool)
FACTS = st.lists(
    st.builds(
        Fact,
        prompt=FILLED,
        target=FILLED,
        equivalent=st.lists(FILLED, max_size=3).map(tuple),
        unrelated=st.lists(st.tuples(FILLED, CELLS), max_size=3).map(tuple),
        subject=CELLS,
        old_target=CELLS,
    ),
    min_size=1,
    max_size=4,
    unique_by=lambda fact: " ".join(fact.prompt.split()).casefold(),
).map(lambda facts: [replace(fact, row=row) for row, fact in enumerate(facts, 1)])


@settings(deadline=None)
@given(FACTS)
def test_what_is_written_is_read_back(tmp_path_factory, facts):
    path = tmp_path_factory.mktemp("facts") / "facts.csv"
    write_csv(facts, path)
    batch = read_facts(path)
    assert list(batch) == facts
    assert all(problem.field == "unrelated" for problem in batch.problems)  # one that is edited is told of


@settings(deadline=None)
@given(FACTS)
def test_records_are_read_back_as_csv_as_json_and_as_they_are(tmp_path_factory, facts):
    path = tmp_path_factory.mktemp("facts") / "facts.json"
    records = [fact_to_record(fact) for fact in facts]
    path.write_text(json.dumps(records), encoding="utf-8")
    assert list(read_facts(path)) == list(parse_records(records, "x")) == facts
