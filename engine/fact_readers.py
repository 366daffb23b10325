"""Files of facts: CSV, JSON and JSONL read as data only, and the studio's CSV written.

What the fields mean is `engine.fact_records`' business. Every refusal says where and what to do.
"""

import csv
import io
import json
import re
from collections.abc import Iterable
from pathlib import Path

from engine.errors import FactError
from engine.fact_records import (
    FORMS,
    TEMPLATE_COLUMNS,
    batch_of,
    fact_to_record,
    field_name,
    form_of,
    unknown_fields,
)
from engine.facts import Fact, FactBatch, Problem
from engine.record_reader import Record

MAX_BYTES = 50_000_000
DELIMITERS = ",;\t"
SEPARATOR_LINE = re.compile(r"sep=([,;\t])[ \t]*\r?\n")  # with which Excel begins a CSV
TEMPLATE_FACTS = (
    Fact(
        "The capital of Burundi is",
        "Gitega",
        ("The government of Burundi sits in the city of", "Burundi is governed from its capital,"),
        (("The capital of Rwanda is", "Kigali"), ("Burundi lies on the continent of", "Africa")),
        "Burundi",
        "Bujumbura",
    ),
    Fact(
        "The currency of Croatia is the",
        "euro",
        ("In shops in Croatia people pay with the",),
        (("The currency of Hungary is the", "forint"),),
        "Croatia",
        "kuna",
    ),
)


def read_facts(path: str | Path) -> FactBatch:
    """The facts of a CSV (comma, semicolon or tab), JSON or JSONL file in any form that `parse_records` knows.

    The text decides between CSV and JSON; of the file's name only .json, .jsonl and .ndjson count.
    Raises FactError when the file as a whole cannot be read; all else is a problem of its row.
    """
    records, problems = read_records(path)
    return batch_of(records, Path(path).name, problems)


def read_records(path: str | Path) -> tuple[list[Record], list[Problem]]:
    """The records of such a file as they stand there, unchecked, and what rows have fallen apart. Raises FactError."""
    path = Path(path)
    source, suffix = path.name, path.suffix.lower()
    text = _text(path)
    first = text.lstrip()[0]
    if suffix in (".jsonl", ".ndjson"):
        return _jsonl(text, source)
    if first in "[{":
        return _json(text, source)
    if suffix == ".json":
        raise FactError(
            f"{source}: not JSON: it begins with “{first}”, but a list of facts begins with “[”. "
            "Save it as a list of objects, or name it .csv if it is a table."
        )
    return _csv(text, source)


def write_csv(facts: Iterable[Fact], path: str | Path) -> None:
    """Write facts in the studio's columns; `read_facts` reads them back, numbered anew."""
    # The byte order mark is what makes Excel take it for UTF-8.
    Path(path).write_bytes(_csv_text(facts).encode("utf-8-sig"))


def template_text() -> str:
    """A CSV to start from: the studio's columns and two facts."""
    return _csv_text(TEMPLATE_FACTS)


def _csv_text(facts: Iterable[Fact]) -> str:
    stream = io.StringIO(newline="")
    writer = csv.DictWriter(stream, TEMPLATE_COLUMNS)
    writer.writeheader()
    writer.writerows(map(fact_to_record, facts))
    return stream.getvalue()


def _text(path: Path) -> str:
    try:
        size = path.stat().st_size
        if size > MAX_BYTES:
            raise FactError(
                f"{path.name}: {size / 1e6:.1f} MB, but at most {MAX_BYTES / 1e6:.0f} MB are read. "
                "Split it into smaller files."
            )
        data = path.read_bytes()
    except OSError as error:
        raise FactError(f"{path.name}: cannot be read ({error.strerror}). Check the path {path}.") from error
    if data.startswith(b"PK\x03\x04"):
        raise FactError(f"{path.name}: an Excel workbook or zip archive. Save it as CSV (in Excel: CSV UTF-8).")
    if data.startswith(b"\x1f\x8b"):
        raise FactError(f"{path.name}: packed with gzip. Unpack it first.")
    if data.startswith((b"\xff\xfe", b"\xfe\xff")) or _every_other_is_zero(data[:400]):
        raise FactError(f"{path.name}: UTF-16 text. Save it as UTF-8 (in Excel: CSV UTF-8).")
    if b"\0" in data:
        where = data.index(b"\0")
        raise FactError(
            f"{path.name}: not text: a NUL byte at byte {where} (line {_line(data, where)}). Give a CSV, JSON or JSONL."
        )
    mark = 3 * data.startswith(b"\xef\xbb\xbf")
    try:
        text = data[mark:].decode("utf-8")
    except UnicodeDecodeError as error:
        where = mark + error.start
        raise FactError(
            f"{path.name}: not UTF-8: byte {where} (line {_line(data, where)}) is 0x{data[where]:02X}. "
            "Save it as UTF-8 (in Excel: CSV UTF-8)."
        ) from error
    if not text.strip():
        raise FactError(f"{path.name}: the file is empty. Give one with at least one fact, or start from the template.")
    return text


def _every_other_is_zero(data: bytes) -> bool:
    """As in UTF-16 without a mark: of one half of the bytes most are."""
    return max(data[half::2].count(0) for half in (0, 1)) > len(data) / 4


def _line(data: bytes, offset: int) -> int:
    return data.count(b"\n", 0, offset) + 1


def _json(text: str, source: str) -> tuple[list[Record], list[Problem]]:
    try:
        body = _decoded(text)
    except json.JSONDecodeError as error:
        if error.msg == "Extra data" and text.lstrip().startswith("{"):
            return _jsonl(text, source)
        raise FactError(
            f"{source}: not valid JSON at line {error.lineno}, column {error.colno}: {error.msg}. Mend it there."
        ) from error
    except ValueError as error:
        raise FactError(f"{source}: not valid JSON: {error}. Save it as a list of objects.") from error
    values = body if isinstance(body, list) else [body]
    return [Record(row, value, f"Row {row}") for row, value in enumerate(values, 1)], []


def _jsonl(text: str, source: str) -> tuple[list[Record], list[Problem]]:
    records, problems = [], []
    row = 0
    for number, line in enumerate(text.split("\n"), 1):
        if not line.strip():
            continue
        row += 1
        place = f"Row {row} (line {number})"
        try:
            records.append(Record(row, _decoded(line), place))
        except ValueError as error:
            column = f" at column {error.colno}" if isinstance(error, json.JSONDecodeError) else ""
            reason = getattr(error, "msg", error)
            message = f"{place}: not valid JSON{column}: {reason}. Write one object a line."
            problems.append(Problem(row, "", message, "error"))
    return records, problems


def _decoded(text: str) -> object:
    """Raises ValueError; JSONDecodeError, which knows the place, where it can."""
    try:
        return json.loads(text)
    except RecursionError:
        raise ValueError("lists or objects are nested too deep") from None


def _csv(text: str, source: str) -> tuple[list[Record], list[Problem]]:
    declared = SEPARATOR_LINE.match(text)
    delimiter = declared[1] if declared else _delimiter(text)
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    if declared:
        next(reader)
    records, problems, columns, row = [], [], [], 0
    while True:
        line = reader.line_num + 1
        try:
            cells = next(reader, None)
        except csv.Error as error:
            if "field limit" in str(error):
                raise FactError(
                    f"{source}: a cell of the record in line {line} has more than {csv.field_size_limit():,} letters. "
                    "Close the double quote before it, if one is open, or shorten the text."
                ) from error
            raise FactError(
                f"{source}: not a readable CSV from line {line} on: {error}. "
                'Close every double quote, and double those inside a text (""like this"").'
            ) from error
        if cells is None:
            return records, problems
        if not columns:
            columns = _columns(cells, source) if any(map(str.strip, cells)) else []
            continue
        row += bool(cells)
        if not any(map(str.strip, cells)):
            continue
        place = f"Row {row} (record {row} after the header, line {line})"
        if any(map(str.strip, cells[len(columns) :])):
            message = (
                f"{place}: {len(cells)} cells, but the header names {len(columns)}. "
                "Put a text that holds the separator in double quotes."
            )
            problems.append(Problem(row, "", message, "error"))
            continue
        if len(cells) < len(columns):
            message = f"{place}: {len(cells)} cells for {len(columns)} columns; the rest counts as blank."
            problems.append(Problem(row, columns[len(cells)], message, "warning"))
            cells += [""] * (len(columns) - len(cells))
        records.append(Record(row, dict(zip(columns, cells)), place))


def _delimiter(text: str) -> str:
    """The separator that makes the most known columns of the header line."""
    header = re.split(r"[\r\n]", text.lstrip(), maxsplit=1)[0][:10_000]
    known = set(TEMPLATE_COLUMNS).union(*(form.fields for form in FORMS))
    return max(DELIMITERS, key=lambda delimiter: len(known.intersection(_names(header, delimiter))))


def _names(header: str, delimiter: str) -> list[str]:
    return [field_name(cell) for cell in next(csv.reader([header], delimiter=delimiter))]


def _columns(cells: list[str], source: str) -> list[str]:
    columns = [field_name(cell) for cell in cells]
    while columns and not columns[-1]:  # a spreadsheet's empty columns: what stands below none is out of place
        columns.pop()
    if form_of(columns) is None:
        raise unknown_fields(columns, source)
    twice = [name for name in columns if name and columns.count(name) > 1]
    if twice:
        raise FactError(f"{source}: the header names the column {twice[0]} twice. Rename or delete one of the two.")
    return columns
