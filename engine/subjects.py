"""A fact's subject in its prompt: where it ends, and which it is where the fact does not say. It knows no tokenizer."""

import re
from collections.abc import Sequence
from dataclasses import dataclass

from engine.errors import FactError
from engine.facts import SHOWN_PROBLEMS, Fact

WORD = re.compile(r"[^\W_][\w'’.&-]*[^\W_]|[^\W_]")
# Small words inside a name: Bank of England, Leonardo da Vinci.
INSIDE = frozenset("of the de la le du des del della di da von van der den al el bin ibn y".split())
# Words that open a sentence with a capital and name nothing.
OPENERS = frozenset(
    "a an the who whom whose what which where when why how in on at of for by from to with as is was are were does did "
    "do has had can could will would if it its he she his her they their this that these those there after before "
    "during since although while because name".split()
)


@dataclass(frozen=True)
class Subject:
    """text, as it stands in the prompt; end: the number of letters of the prompt up to its end."""

    text: str
    end: int


def find_subjects(facts: Sequence[Fact]) -> tuple[list[Subject], list[str]]:
    """The subject of every fact where it last stands in the prompt, and a note on those that were found here.

    A fact without a subject is given the only name in its prompt: a run of capitalised words that does not just open
    the sentence; of several names, the only one that stands in all its equivalent prompts too.
    Raises FactError, listing the rows whose subject is unclear or does not stand in the prompt.
    """
    found: list[Subject] = []
    problems: list[str] = []
    guessed: list[str] = []
    for index, fact in enumerate(facts):
        row, subject = f"Row {fact.row or index + 1}", _find(fact)
        if isinstance(subject, str):
            problems.append(f"{row}: {subject}.")
            continue
        found.append(subject)
        if not fact.subject.strip():
            guessed.append(f"{row.lower()} “{subject.text}”")
    if problems:
        lines = ["The subject is needed: write it, letter by letter as in the prompt, into these rows."]
        raise FactError("\n".join(lines + _shortened(problems)))
    if not guessed:
        return found, []
    shown = ", ".join(guessed[:SHOWN_PROBLEMS]) + (" …" if len(guessed) > SHOWN_PROBLEMS else "")
    return found, [f"Subjects that were missing were found in the prompt: {shown}."]


def clear_subjects(facts: Sequence[Fact]) -> tuple[list[Subject | None], list[str]]:
    """The subject of every fact, found as in `find_subjects`, None where it is unclear, and a note on those."""
    found = [_find(fact) for fact in facts]
    unclear = [str(fact.row or index + 1) for index, fact in enumerate(facts) if isinstance(found[index], str)]
    if not unclear:
        return found, []
    shown = ", ".join(unclear[:SHOWN_PROBLEMS]) + (" …" if len(unclear) > SHOWN_PROBLEMS else "")
    note = (
        f"No subject that stands in the prompt is given, or clear from it, in row{'s' * (len(unclear) > 1)} {shown}: the "
        "prompt's last token stands for it. Write the subject, letter by letter as in the prompt, for an edit that "
        "carries over better."
    )
    return [None if isinstance(subject, str) else subject for subject in found], [note]


def _find(fact: Fact) -> Subject | str:
    """A fact's subject where it last stands in its prompt, or why there is none."""
    text = fact.subject.strip()
    if not text:
        names = _names(fact)
        if len(names) != 1:
            said = f"it could be {' or '.join(f'“{name}”' for name in names)}" if names else "no name stands in it"
            return f"the subject is missing, and the prompt does not tell it: {said}"
        text = names[0]
    place = _last(text, fact.prompt)
    return Subject(place[0], place.end()) if place else f"its subject “{text}” does not stand in its prompt"


def _last(text: str, prompt: str) -> re.Match | None:
    """Where the text last stands in the prompt: rather by itself than inside a word, then rather in its own case."""
    inside = re.escape(text)
    alone = rf"(?<!\w){inside}(?!\w)"
    found = (list(re.finditer(pattern, prompt, case)) for pattern in (alone, inside) for case in (0, re.IGNORECASE))
    return next((places[-1] for places in found if places), None)


def _shortened(problems: list[str]) -> list[str]:
    more = len(problems) - SHOWN_PROBLEMS
    return problems[:SHOWN_PROBLEMS] + ([f"… and {more} more."] if more > 0 else [])


def _names(fact: Fact) -> list[str]:
    """The names in the prompt, each once; only those of all equivalent prompts where that leaves one."""
    names = list(dict.fromkeys(_name_runs(fact.prompt)))
    shared = [name for name in names if all(name in prompt for prompt in fact.equivalent)]
    return shared if fact.equivalent and len(shared) == 1 else names


def _name_runs(prompt: str) -> list[str]:
    """Runs of capitalised words and numbers, small words inside included, punctuation not."""
    words = list(WORD.finditer(prompt))
    runs: list[list[re.Match]] = []
    inside = False  # whether the word before belongs to a name, or may
    for number, word in enumerate(words):
        between = prompt[words[number - 1].end() : word.start()] if number else ""
        inside = inside and not between.strip()
        opens = (not number or bool(re.search(r"[.!?:]", between))) and word[0].lower() in OPENERS
        if word[0][0].isupper() and not opens:
            if inside:
                runs[-1].append(word)
            else:
                runs.append([word])
            inside = True
        elif inside and word[0][0].isdigit():
            runs[-1].append(word)
        else:
            inside = inside and word[0] in INSIDE
    return [prompt[run[0].start() : run[-1].end()] for run in runs]
