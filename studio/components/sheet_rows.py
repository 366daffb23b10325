"""Rows of the fact sheet ↔ facts and files. It knows no browser; what stands on the page is the fact sheet's."""

import csv
import io
import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from engine.errors import FactError
from engine.fact_readers import read_facts, read_records
from engine.fact_records import NUMBERED_COLUMN, TEMPLATE_COLUMNS, fact_to_record, field_name, parse_records
from engine.facts import FactBatch

SHEET = "The sheet"
# So many rows the sheet can be edited with; of a larger batch it shows the first few.
EDITABLE_ROWS = 500
PREVIEW_ROWS = 100
BLANK_ROWS = 3
SEPARATOR = " || "

Rows = list[list[str]]


def blank_rows(count: int = BLANK_ROWS) -> Rows:
    return [[""] * len(TEMPLATE_COLUMNS) for _ in range(count)]


def clean_rows(value: object) -> Rows:
    """What a browser or a client sent as the sheet, as texts: seven cells a row, None and NaN blank."""
    rows = value.get("data") if isinstance(value, Mapping) else value
    if not isinstance(rows, Sequence):
        return []
    return [[_cell(cell) for cell in [*row, *[""] * len(TEMPLATE_COLUMNS)][: len(TEMPLATE_COLUMNS)]] for row in rows]


def _cell(value: object) -> str:
    return "" if value is None or value != value else str(value).strip()


def filled(rows: Rows) -> Rows:
    """The rows without the blank ones at the end, which the sheet keeps for typing."""
    last = max((number for number, row in enumerate(rows, 1) if any(row)), default=0)
    return rows[:last]


def same(rows: object, others: object) -> bool:
    """Whether two sheets say the same."""
    return filled(clean_rows(rows)) == filled(clean_rows(others))


def rows_of(batch: FactBatch) -> Rows:
    """The rows that show a batch: all of them, or the first few of one too large to be edited by hand."""
    facts = batch.facts if len(batch) <= EDITABLE_ROWS else batch.facts[:PREVIEW_ROWS]
    return [list(fact_to_record(fact).values()) for fact in facts]


def read_rows(rows: Rows) -> FactBatch:
    """The facts of a typed sheet, with a problem for every row that cannot be used; no error when it is blank."""
    rows = filled(rows)
    if not rows:
        return FactBatch((), SHEET, "studio")
    return parse_records([dict(zip(TEMPLATE_COLUMNS, row, strict=True)) for row in rows], SHEET)


def upload(path: Path) -> tuple[FactBatch, Rows]:
    """The facts of a file and the rows that show it.

    Rows with a blank or unfit text are shown too, in the file's order, so that they can be mended in the sheet.
    Raises FactError when the file as a whole cannot be read, or a row of it.
    """
    batch = read_facts(path)
    rows = rows_of(batch)
    # A row that fell apart (field "") has no cells to show: it can only be mended in the file.
    if fallen := [problem for problem in batch.errors if not problem.field]:
        others = f" {len(fallen) - 1:,} more of its rows cannot be read either." if len(fallen) > 1 else ""
        raise FactError(f"{fallen[0]}{others} Mend the file and upload it again.")
    if batch.form == "studio" and batch.errors:
        raw = raw_rows(path)
        rows = raw if raw and len(raw) <= EDITABLE_ROWS else rows
    return batch, rows


def raw_rows(path: Path) -> Rows:
    """The rows of a readable file in the studio's columns, unchecked and in their places: blank cells stay blank.

    None at all where something stands that no cell of text can say, such as a list in a list.
    """
    records, _ = read_records(path)
    found = {one.row: {field_name(name): value for name, value in one.values.items()} for one in records}
    if not all(_is_text(record, name) for record in found.values() for name in record):
        return []
    return [_raw_row(found.get(row, {})) for row in range(1, max(found, default=0) + 1)]


def _is_text(record: Mapping[str, object], column: str) -> bool:
    """Whether a cell of the sheet can say what stands there; of other columns it says nothing."""
    value, numbered = record[column], NUMBERED_COLUMN.match(f"{column}_1")
    if column not in TEMPLATE_COLUMNS and not numbered:
        return True
    texts = value if numbered and isinstance(value, list) else [value]
    return not any(isinstance(one, bool | list | dict) or one in (math.inf, -math.inf) for one in texts)


def _raw_row(record: Mapping[str, object]) -> list[str]:
    cells = {column: _raw_texts(record, column) for column in TEMPLATE_COLUMNS}
    prompts, answers = cells["unrelated"], cells["unrelated_answer"]
    if len(prompts) == len(answers):  # a blank answer keeps its place beside its prompt
        pairs = [pair for pair in zip(prompts, answers) if any(pair)]
        cells["unrelated"], cells["unrelated_answer"] = zip(*pairs) if pairs else ([], [])
    else:
        cells |= {column: [*filter(None, cells[column])] for column in ("unrelated", "unrelated_answer")}
    cells["equivalent"] = [*filter(None, cells["equivalent"])]
    return [SEPARATOR.join(texts) if any(texts) else "" for texts in cells.values()]


def _raw_texts(record: Mapping[str, object], column: str) -> list[str]:
    values = [record[name] for name in sorted(record) if re.fullmatch(rf"{column}(_[0-9]+)?", name)]
    return [_cell(item) for value in values for item in (value if isinstance(value, list) else [value])]


def preview_key(rows: Rows) -> tuple:
    """What tells the rows of one sheet from those of another."""
    return tuple(map(tuple, filled(rows)))


def chosen_batch(rows: Rows, uploaded: FactBatch | None, previews: Mapping[tuple, str]) -> FactBatch:
    """What Apply edits: the uploaded batch while its rows stand untouched, else what the sheet says.

    Published data sets keep what the sheet's stricter reading refuses, such as two targets for one prompt. `previews`:
    the sources of batches of which the sheet showed the first rows. Raises FactError when it is unclear what is meant.
    """
    if uploaded is not None and same(rows, rows_of(uploaded)):
        return uploaded
    if uploaded is not None and len(uploaded) > EDITABLE_ROWS:
        raise FactError(
            f"{uploaded.source} has {len(uploaded):,} facts, of which the sheet shows {PREVIEW_ROWS}; the shown rows "
            "were changed, so it is unclear which are meant. Upload the file again, or clear the sheet."
        )
    if source := previews.get(preview_key(rows)):
        raise FactError(
            f"The sheet shows the first {PREVIEW_ROWS} facts of {source}, which another page of this browser has put away "
            "since. Upload the file again, or clear the sheet."
        )
    return read_rows(rows)


def pasted(rows: Rows, text: str, row: int, column: int) -> Rows:
    """The rows with what a spreadsheet copied put in, from the cell at `row`, `column` on to the right and down.

    A first line that names columns says which ones the lines below it go to. Cells beyond the last column are left out.
    Raises FactError when the sheet would have too many rows.
    """
    lines = _copied_lines(text)
    names = [field_name(cell) for cell in lines[0]] if len(lines) > 1 else []
    if any(names) and all(name in TEMPLATE_COLUMNS or NUMBERED_COLUMN.fullmatch(name) for name in names if name):
        named = {re.sub("_[0-9]+$", "", name) for name in names}
        places = [at for at, own in enumerate(TEMPLATE_COLUMNS) if own in named]
        lines = [_raw_row(dict(zip(names, line))) for line in lines[1:]]
        lines = [{at: line[at] for at in places} for line in lines]
    else:
        lines = [dict(enumerate(line, column)) for line in lines]
    needed = row + len(lines)
    if needed > EDITABLE_ROWS:
        raise FactError(
            f"With it the sheet would have {needed:,} rows; it can be edited with up to {EDITABLE_ROWS}. "
            "Save the rows as a CSV file and upload that."
        )
    found = [list(one) for one in rows] + blank_rows(needed - len(rows))
    for at, line in enumerate(lines, row):
        for place, cell in line.items():
            if place < len(TEMPLATE_COLUMNS):
                found[at][place] = _cell(cell)
    return found


def _copied_lines(text: str) -> Rows:
    """Lines of cells as a spreadsheet copies them: parted by tabs; one of several lines in quotation marks."""
    if not re.search(r"[\t\r\n]", text):
        return [[text]]
    try:
        lines = list(csv.reader(io.StringIO(text, newline=""), "excel-tab", strict=True))
    except csv.Error:  # the quotation marks are the text's own
        lines = [line.split("\t") for line in re.split("\r\n?|\n", text.removesuffix("\n").removesuffix("\r"))]
    return [line or [""] for line in lines]
