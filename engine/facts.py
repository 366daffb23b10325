"""What a fact is: a prompt whose answer is to change, and what must and must not change with it.

It knows no record (`engine.fact_records`), no file (`engine.fact_readers`), no tokenizer and no model.
"""

import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Literal

from engine.errors import FactError

SHOWN_PROBLEMS = 20


@dataclass(frozen=True)
class Fact:
    """One fact to edit in: after the edit, `prompt` shall be answered by `target`.

    equivalent: prompts that shall get the same answer (the paper's E(x_e)).
    unrelated: (prompt, true answer or "") pairs whose answer shall stay (the paper's U(x_e)).
    subject, old_target: "" where unknown. row: the record's number in its source, from 1; 0 when typed.
    """

    prompt: str
    target: str
    equivalent: tuple[str, ...] = ()
    unrelated: tuple[tuple[str, str], ...] = ()
    subject: str = ""
    old_target: str = ""
    row: int = 0


def facts_sha256(facts: Sequence[Fact]) -> str:
    """Of the very facts, in their order; from which rows of a file they come does not count."""
    whole = hashlib.sha256()
    for fact in facts:
        whole.update(json.dumps(asdict(fact) | {"row": 0}, sort_keys=True).encode())
    return whole.hexdigest()


def with_equivalents(facts: Sequence[Fact]) -> list[Fact]:
    """The facts, then, for each of their equivalent prompts, one that has the same answer and names no other prompts."""
    followers = [
        replace(fact, prompt=prompt, equivalent=(), unrelated=()) for fact in facts for prompt in fact.equivalent
    ]
    return [*facts, *followers]


@dataclass(frozen=True)
class Problem:
    """What is wrong in one row, and what to do. row 0: the file as a whole. An error keeps the batch from editing.

    also: the other row that it speaks of; 0 for none.
    """

    row: int
    field: str
    message: str
    severity: Literal["error", "warning"]
    also: int = 0

    def __str__(self) -> str:
        return self.message


@dataclass(frozen=True)
class FactBatch:
    """The usable facts of one source, with every problem found in it.

    form: how its records were laid out: studio, counterfact, zsre or selfcheckgpt.
    """

    facts: tuple[Fact, ...]
    source: str
    form: str
    problems: tuple[Problem, ...] = ()

    def __len__(self) -> int:
        return len(self.facts)

    def __iter__(self) -> Iterator[Fact]:
        return iter(self.facts)

    @property
    def errors(self) -> tuple[Problem, ...]:
        return tuple(problem for problem in self.problems if problem.severity == "error")

    @property
    def warnings(self) -> tuple[Problem, ...]:
        return tuple(problem for problem in self.problems if problem.severity == "warning")

    def only(self, facts: Sequence[Fact]) -> "FactBatch":
        """These of its facts, in their order, with the errors and what else there is to say of them."""
        if len(facts) == len(self.facts):
            return replace(self, facts=tuple(facts))
        rows = {0, *(fact.row for fact in facts)}
        told = tuple(one for one in self.problems if one.severity == "error" or {one.row, one.also} <= rows)
        return replace(self, facts=tuple(facts), problems=told)

    def require(self) -> "FactBatch":
        """The batch itself. Raises FactError, listing the rows, when it has an error or no fact."""
        errors = self.errors
        if errors:
            count = f"{len(errors)} problem{'s' * (len(errors) > 1)}"
            lines = [f"{self.source}: {count} to mend first."]
            lines += [str(problem) for problem in errors[:SHOWN_PROBLEMS]]
            if len(errors) > SHOWN_PROBLEMS:
                lines.append(f"… and {len(errors) - SHOWN_PROBLEMS} more.")
            raise FactError("\n".join(lines))
        if not self.facts:
            raise FactError(f"{self.source}: there is no fact in it. Write at least one prompt with its target.")
        return self
