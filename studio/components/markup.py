"""HTML made from texts that others wrote: everything a person, a file or a model said passes through here."""

import re
from collections.abc import Iterable
from html import escape

LONGEST = 4000


def text(value: object) -> str:
    """The value as HTML text, which can neither be a tag nor leave an attribute."""
    return escape(str(value))


def sentence(value: str) -> str:
    """A message as HTML: what stands between backticks, such as a command to type, as code."""
    return re.sub(r"`([^`\n]+)`", r"<code>\1</code>", text(value))


def clipped(value: str) -> str:
    """A text that ends in an ellipsis where its cell is full, whole on hover; one beyond all measure is cut."""
    shown = text(value if len(value) <= LONGEST else value[:LONGEST] + "…")
    return f'<span class="clip" title="{shown}">{shown}</span>'


def token_text(token: str) -> str:
    """A token with its spaces and line ends made visible."""
    return token.replace("\n", "↵").replace("\t", "⇥").replace(" ", "␣") or "(empty)"


def figure(value: float | None) -> str:
    """A score from 0 to 1 with three places; a dash where there is none."""
    return "–" if value is None else f"{value:.3f}"


def tick(good: bool | None) -> str:
    """✓ or ✗, with a word for those who do not see the sign; a dash where it does not apply."""
    if good is None:
        return '<span class="tick none" role="img" aria-label="does not apply">–</span>'
    kind, sign, word = ("good", "✓", "success") if good else ("bad", "✗", "failure")
    return f'<span class="tick {kind}" role="img" aria-label="{word}">{sign}</span>'


def note(kind: str, title: str, lines: Iterable[str] = (), shown: int = 50) -> str:
    """A boxed message: `kind` is error, warning, info or done; the lines follow as a list, the first `shown`."""
    lines = list(lines)
    items = "".join(f"<li>{sentence(line)}</li>" for line in lines[:shown])
    if len(lines) > shown:
        items += f'<li class="more">… and {len(lines) - shown:,} more.</li>'
    role = "alert" if kind == "error" else "status"
    body = f"<ul>{items}</ul>" if items else ""
    return f'<div class="note {kind}" role="{role}"><strong>{sentence(title)}</strong>{body}</div>'


def empty(title: str, advice: str) -> str:
    """What stands where there is nothing yet: what will be there, and what to do."""
    return f'<div class="empty"><strong>{text(title)}</strong><span>{text(advice)}</span></div>'


def setting(value: object) -> str:
    """A setting's value in words: a switch is on or off, what is left open a dash."""
    return {True: "on", False: "off"}[value] if isinstance(value, bool) else str(value) or "–"


def count(number: int, noun: str) -> str:
    """“1 fact”, “1,024 facts”."""
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def span(first: int, last: int, total: int, noun: str) -> str:
    """“26–50 of 130 runs”; of one alone, “1 run”."""
    return count(total, noun) if total == 1 else f"{first:,}–{last:,} of {total:,} {noun}s"


def seconds(value: float) -> str:
    """A length of time, rounded to what a person cares about."""
    if value < 9.95:
        return f"{value:.1f} s"
    if value < 99.5:
        return f"{value:.0f} s"
    minutes = round(value / 60)
    return f"{minutes} min" if minutes < 100 else f"{minutes // 60} h {minutes % 60} min"


def gigabytes(number: int) -> str:
    """Bytes as decimal megabytes or gigabytes."""
    return f"{number / 1e6:.0f} MB" if number < 1e9 else f"{number / 1e9:.2f} GB"
