"""One record of facts, read field by field as clean text; what cannot be read is a problem of its row.

What the fields mean is `engine.fact_records`' business.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass

from engine.facts import Problem


@dataclass(frozen=True)
class Record:
    """values: what was found; place: where, as a person counts ("Row 3 (line 4)"). Rows count from 1."""

    row: int
    values: Mapping
    place: str


class RecordReader:
    """One record's values as clean text; what cannot be read becomes a problem of its row, never an exception."""

    def __init__(self, record: Record, strict: bool):
        self.record = record
        self.strict = strict
        self.problems: list[Problem] = []

    def complain(self, field: str, message: str, severity: str = "error") -> None:
        self.problems.append(Problem(self.record.row, field, f"{self.record.place}: {message}", severity))

    def text(self, field: str) -> str:
        """The value of `field`, stripped; "" when absent."""
        return self._clean(field, self.value(field))

    def texts(self, field: str) -> list[str]:
        """The value of `field` as a list, each stripped, blanks among them kept; [] when absent."""
        value = self.value(field)
        values = value if isinstance(value, list | tuple) else [value]
        return [] if value is None else [self._clean(field, item) for item in values]

    def first(self, field: str) -> str:
        """The first of several true answers; "" when absent."""
        return next(iter(self.texts(field)), "")

    def value(self, field: str) -> object:
        """What stands in `field`, None when absent; dots lead into objects."""
        value = self.record.values
        for part in field.split("."):
            value = value.get(part) if isinstance(value, Mapping) else None
        return value

    def needed(self, field: str) -> str:
        """The text of a field without which there is nothing to edit."""
        seen = len(self.problems)
        text = self.text(field)
        if not text and len(self.problems) == seen:
            state = "missing" if self.value(field) is None else "blank"
            if self.strict:
                self.complain(field, f"{field} is {state}. Fill it in or delete the row.")
            else:
                self.complain(field, f"{field} is {state}, so the record was left out.", "warning")
        return text

    def pairs(self, prompts_field: str, answers_field: str) -> tuple[tuple[str, str], ...]:
        """Unrelated prompts with their answers as published: one each, or alternatives for a single prompt."""
        prompts, answers = self.texts(prompts_field), self.texts(answers_field)
        return self.zipped(prompts, answers[:1] if len(prompts) == 1 else answers, prompts_field, answers_field)

    def zipped(
        self, prompts: list[str], answers: list[str], prompts_field: str, answers_field: str
    ) -> tuple[tuple[str, str], ...]:
        """(prompt, answer) pairs; all answers may be missing, but not some of them."""
        if not any(answers):
            answers = [""] * len(prompts)
        if len(prompts) != len(answers):
            self.complain(
                answers_field,
                f"{answers_field} holds {len(answers)} answer(s) for {len(prompts)} prompt(s) in {prompts_field}. "
                "Give one each, in the same order, or none.",
            )
        elif any(answer and not prompt for prompt, answer in zip(prompts, answers)):
            self.complain(
                prompts_field,
                f"{answers_field} has an answer whose prompt in {prompts_field} is blank. Write it, or delete both.",
            )
        return tuple((prompt, answer) for prompt, answer in zip(prompts, answers) if prompt)

    def _clean(self, field: str, value: object) -> str:
        if is_blank(value):
            return ""
        if not isinstance(value, str | int | float) or isinstance(value, bool):
            self.complain(field, f"{field} holds {kind_of(value)} where text is expected. Write a text.")
            return ""
        if isinstance(value, float) and math.isinf(value):
            self.complain(field, f"{field} holds an infinite number where text is expected. Write a text.")
            return ""
        text = str(value).strip()
        if "\0" in text or not text.isascii() and any("\ud800" <= letter <= "\udfff" for letter in text):
            self.complain(field, f"{field} holds a NUL or half a character (a lone surrogate). Type the text anew.")
            return ""
        return text


def is_blank(value: object) -> bool:
    """Whether nothing stands there: None, not a number, an empty list, a text of spaces."""
    missing = value is None or isinstance(value, float) and math.isnan(value)
    return missing or value == [] or isinstance(value, str) and not value.strip()


def kind_of(value: object) -> str:
    """What the value is, for people: “a list”."""
    names = {"NoneType": "nothing", "bool": "true or false", "int": "a number", "float": "a number", "str": "a text"}
    names |= {"list": "a list", "dict": "an object"}
    return names.get(type(value).__name__, f"a {type(value).__name__}")
