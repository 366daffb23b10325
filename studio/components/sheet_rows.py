"""Rows of the fact sheet ↔ facts and files. It knows no browser; what stands on the page is the fact sheet's."""

import csv
import io
import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from engine.errors import FactError
from engine.fact_readers import read_facts
from engine.fact_records import TEMPLATE_COLUMNS, fact_to_record, field_name, parse_records
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

    Rows with a blank or unfit cell are shown too, in the file's order, so that they can be mended in the sheet.
    Raises FactError when the file as a whole cannot be read.
    """
    batch = read_facts(path)
    rows = rows_of(batch)
    # A row that fell apart (field "") has no cells to show: it can only be mended in the file.
    if batch.form == "studio" and batch.errors and all(problem.field for problem in batch.errors):
        raw = raw_rows(path.read_text(encoding="utf-8-sig"))
        rows = raw if len(raw) <= EDITABLE_ROWS else rows
    return batch, rows


def raw_rows(text: str) -> Rows:
    """The rows of a readable file in the studio's columns, unchecked: blank cells stay blank."""
    if text.lstrip()[:1] in ("[", "{"):
        try:
            body = json.loads(text)
            records = body if isinstance(body, list) else [body]
        except ValueError:
            records = [json.loads(line) for line in text.split("\n") if line.strip()]
    else:
        header = text.lstrip().split("\n", 1)[0]
        delimiter = max(",;\t", key=header.count)
        records = list(csv.DictReader(io.StringIO(text, newline=""), delimiter=delimiter))
    return [_raw_row({field_name(name): value for name, value in record.items()}) for record in records]


def _raw_row(record: Mapping[str, object]) -> list[str]:
    row = []
    for column in TEMPLATE_COLUMNS:
        names = sorted(name for name in record if re.fullmatch(rf"{column}(_[0-9]+)?", name))
        values = [record[name] for name in names]
        texts = [item for value in values for item in (value if isinstance(value, list) else [value])]
        row.append(SEPARATOR.join(cell for cell in map(_cell, texts) if cell))
    return row


def chosen_batch(rows: Rows, uploaded: FactBatch | None) -> FactBatch:
    """What Apply edits: the uploaded batch while its rows stand untouched, else what the sheet says.

    Published data sets keep what the sheet's stricter reading refuses, such as two targets for one prompt.
    """
    if uploaded is not None and filled(rows) == filled(clean_rows(rows_of(uploaded))):
        return uploaded
    if uploaded is not None and len(uploaded) > EDITABLE_ROWS:
        raise FactError(
            f"{uploaded.source} has {len(uploaded):,} facts, of which the sheet shows {PREVIEW_ROWS}; the shown rows "
            "were changed, so it is unclear which are meant. Upload the file again, or clear the sheet."
        )
    return read_rows(rows)
