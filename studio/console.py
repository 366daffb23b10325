"""The command line's console: how wide it is, what it cannot encode, sentences and tables that lose nothing on it."""

import codecs
import os
import re
import sys
from collections.abc import Sequence
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

WIDE = 160  # of a file or a pipe, which has no width of its own
CONTROLS = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")
LOOK_ALIKE = {"✓": "v", "✗": "x", "–": "-", "−": "-", "→": ">", "‖": "|", "…": "."}


def make_console() -> Console:
    """The console of this process's output."""
    codecs.register_error("look-alike", _look_alike)
    if hasattr(sys.stdout, "reconfigure"):  # else another program's stream, which is its business
        sys.stdout.reconfigure(errors="look-alike")
    console = Console(markup=False, emoji=False)  # names and texts may hold brackets and colons
    if not console.is_terminal and not os.environ.get("COLUMNS"):
        console.width = WIDE
    return console


def say(console: Console, sentence: str, style: str | None = None) -> None:
    """A sentence as it is. No path in it is broken: a terminal has it between words only, anything else as one line."""
    console.print(
        Text(printable(sentence), style or ""), highlight=False, soft_wrap=not console.is_terminal, overflow="ignore", crop=False
    )


def printable(text: str) -> str:
    """The text without what would command the terminal: a data set's or a model's words may hold it."""
    return CONTROLS.sub("�", text)


def show_figures(
    console: Console, title: str, heads: Sequence[str], rows: Sequence[Sequence[str | Text]], names: int = 1, **look: Any
) -> None:
    """A table whose first columns, so many as `names`, may fold, and whose figures may not.

    The figures that have no room beside them follow below, beside the names again. look: as of rich's Table.
    """
    columns = [list(map(_as_text, column)) for column in zip(*rows)] or [[] for _ in heads]
    left = list(range(names, len(heads)))
    boundless = console.options.update(max_width=10_000)

    def table(shown: Sequence[int]) -> Table:
        made = Table(title=Text(title, "table.title") if shown[0] == names else None, **look)
        for at in (*range(names), *shown):
            figures = {"justify": "right", "no_wrap": True, "min_width": _width(columns[at])} if at >= names else {}
            made.add_column(heads[at], **{"overflow": "fold"} | figures)
        for row in zip(*(columns[at] for at in (*range(names), *shown))):
            made.add_row(*row)
        return made

    while left:
        counts = range(len(left), 1, -1)
        fits = (count for count in counts if console.measure(table(left[:count]), options=boundless).minimum <= console.width)
        shown = left[: next(fits, 1)]
        console.print(table(shown), crop=False)
        left = left[len(shown) :]


def _as_text(cell: str | Text) -> Text:
    return cell if isinstance(cell, Text) else Text(cell)


def _width(column: Sequence[Text]) -> int:
    return max((cell.cell_len for cell in column), default=1)


def _look_alike(error: UnicodeError) -> tuple[str, int]:
    """What is written for signs that the output's encoding has not: those that say something stay apart."""
    if not isinstance(error, UnicodeEncodeError):
        raise error
    return "".join(LOOK_ALIKE.get(sign, "?") for sign in error.object[error.start : error.end]), error.end
