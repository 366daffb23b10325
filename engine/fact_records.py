"""Records → facts: the studio's own columns and the published forms, recognised by their fields.

A record is a mapping of field to value, wherever it came from. It knows no file (`engine.fact_readers`).

The studio's form is a person's own list and is read strictly: a blank prompt or target, or two targets for one
prompt, is an error. Published data sets hold such records (zsRE has blank targets, CounterFact gives some cities
several twin cities) and are used as they are: the first are left out, the second kept, both with a warning.
"""

import json
import re
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from engine.errors import FactError
from engine.facts import Fact, FactBatch, Problem
from engine.record_reader import Record, RecordReader, is_blank, kind_of

TEMPLATE_COLUMNS = ("prompt", "target", "equivalent", "unrelated", "unrelated_answer", "subject", "old_target")
# How else a person may head them: “Edit prompt”, “Equivalent prompts”, “Unrelated prompt 2”, “Unrelated answers”.
OTHER_NAMES = (
    (re.compile(r"(?:edit|editing)_prompt"), "prompt"),
    (re.compile(r"(?:equivalents|equivalent_prompts?)(_[0-9]+)?"), r"equivalent\1"),
    (re.compile(r"unrelated_prompts?(_[0-9]+)?"), r"unrelated\1"),
    (re.compile(r"unrelated_answers(_[0-9]+)?"), r"unrelated_answer\1"),
)
RESULT_FIELDS = frozenset(("fact", "type", "prompt", "target", "before", "after"))  # of the facts.csv that an edit writes
NUMBERED_COLUMN = re.compile(r"(?:equivalent|unrelated|unrelated_answer)(_[0-9]+)")
SEPARATOR = re.compile(r"(?<!\S)\|\|(?!\S)")


@dataclass(frozen=True)
class Form:
    """A published shape of records: recognised when a record has all of `fields`."""

    name: str
    fields: frozenset[str]
    read: Callable[[RecordReader], Fact]


def parse_records(records: Iterable[Mapping], source: str) -> FactBatch:
    """Facts of records in one of the forms; `source` names them in messages ("the sheet").

    Raises FactError when there is no record or no form has these fields; all else is a problem of its row.
    """
    return batch_of([Record(row, values, f"Row {row}") for row, values in enumerate(records, 1)], source)


def batch_of(records: Sequence[Record], source: str, found: Iterable[Problem] = ()) -> FactBatch:
    """As `parse_records`, for records that know their place; `found`: problems met on the way there."""
    problems, objects = list(found), []
    for record in records:
        if isinstance(record.values, Mapping):
            names: dict[str, object] = {}
            for name in record.values:
                first = names.setdefault(field_name(name), name)
                if first != name:
                    message = f"{record.place}: {_short(str(first))} and {_short(str(name))} are one field. Join them."
                    problems.append(Problem(record.row, field_name(name), message, "error"))
            objects.append(replace(record, values={own: record.values[name] for own, name in names.items()}))
        else:
            message = f"{record.place}: {kind_of(record.values)} where an object with named fields is expected."
            problems.append(Problem(record.row, "", message, "error"))
    if not objects and not problems:
        raise FactError(f"{source}: there is no record in it. Write at least one prompt with its target.")
    if not objects:
        return FactBatch((), source, "studio", tuple(problems))
    if RESULT_FIELDS <= objects[0].values.keys():
        raise FactError(
            f"{source}: these are an edit's results (a row for each instance), not facts. Give the file that the edit was "
            "made of, or download its facts from its run in History."
        )
    form = next(filter(None, (form_of(record.values) for record in objects)), None)
    if form is None:
        raise unknown_fields(objects[0].values, source)
    strict = form.name == "studio"
    facts = []
    for record in objects:
        reader = RecordReader(record, strict)
        if strict and all(map(is_blank, record.values.values())):
            continue  # an empty line of a sheet
        fact = form.read(reader)
        problems += reader.problems
        if fact.prompt and fact.target and not any(problem.severity == "error" for problem in reader.problems):
            facts.append(fact)
    facts = _compared(facts, {record.row: record.place for record in objects}, strict, problems)
    if strict:
        problems += _unknown_columns(objects, source)
    return FactBatch(tuple(facts), source, form.name, tuple(sorted(problems, key=lambda problem: problem.row)))


def field_name(name: object) -> str:
    """A column's name as it is looked up: " Unrelated Answer" is unrelated_answer, “Equivalent prompts” equivalent."""
    found = re.sub(r"\s+", "_", str(name).strip().casefold())
    for other, own in OTHER_NAMES:
        if match := other.fullmatch(found):
            return match.expand(own)
    return found


def form_of(fields: Collection[str]) -> Form | None:
    """The form that has these fields, None when there is none."""
    return next((form for form in FORMS if form.fields <= set(fields)), None)


def unknown_fields(fields: Collection[str], source: str) -> FactError:
    """The error to raise when no form has these fields."""
    return FactError(
        f"{source}: its fields are not known. Found: {_some(fields) or 'none'}. "
        "Needed: prompt and target (the studio's columns; a CSV names them in its first line), or the fields of "
        "CounterFact (prompt, target_new, …), zsRE (src, alt, …) or SelfCheckGPT (prompt, target_new, …)."
    )


def fact_to_record(fact: Fact) -> dict[str, str]:
    """The studio's columns of one fact, one text each; `parse_records` reads them back to the same fact."""
    prompts, answers = [prompt for prompt, _ in fact.unrelated], [answer for _, answer in fact.unrelated]
    cells = (
        fact.prompt,
        fact.target,
        _cell(fact.equivalent),
        _cell(prompts),
        _cell(answers) if any(answers) else "",
        fact.subject,
        fact.old_target,
    )
    return dict(zip(TEMPLATE_COLUMNS, cells, strict=True))


def _read_studio(reader: RecordReader) -> Fact:
    suffixes = sorted({match[1] for name in reader.record.values if (match := NUMBERED_COLUMN.fullmatch(name))})
    equivalent, unrelated = [], []
    for suffix in ("", *sorted(suffixes, key=lambda suffix: int(suffix[1:]))):
        equivalent += filter(None, _split(reader, "equivalent" + suffix))
        fields = "unrelated" + suffix, "unrelated_answer" + suffix
        unrelated += reader.zipped(*(_split(reader, field) for field in fields), *fields)
    return Fact(
        reader.needed("prompt"),
        reader.needed("target"),
        tuple(equivalent),
        tuple(unrelated),
        reader.text("subject"),
        reader.text("old_target"),
        reader.record.row,
    )


def _read_flat(reader: RecordReader) -> Fact:
    return Fact(
        reader.needed("prompt"),
        reader.needed("target_new"),
        tuple(filter(None, reader.texts("rephrase_prompt"))),
        reader.pairs("locality_prompt", "locality_ground_truth"),
        reader.text("subject"),
        reader.first("ground_truth"),
        reader.record.row,
    )


def _read_nested(reader: RecordReader) -> Fact:
    prompt, old_target = reader.needed("requested_rewrite.prompt"), reader.text("requested_rewrite.target_true.str")
    gap = "{}" in prompt
    subject = (reader.needed if gap else reader.text)("requested_rewrite.subject")
    return Fact(
        "" if gap and not subject else prompt.replace("{}", subject),
        reader.needed("requested_rewrite.target_new.str"),
        tuple(filter(None, reader.texts("paraphrase_prompts"))),
        # Neighbours are chosen to share the true answer.
        tuple((prompt, old_target) for prompt in reader.texts("neighborhood_prompts") if prompt),
        subject,
        old_target,
        reader.record.row,
    )


def _read_zsre(reader: RecordReader) -> Fact:
    pairs = reader.pairs("loc", "loc_ans")
    return Fact(
        reader.needed("src"),
        reader.needed("alt"),
        tuple(filter(None, reader.texts("rephrase"))),
        # As ROME does: the questions are published without their question mark.
        tuple((prompt if prompt.endswith("?") else prompt + "?", answer) for prompt, answer in pairs),
        reader.text("subject"),
        reader.first("answers"),
        reader.record.row,
    )


FORMS = (  # the first that fits is taken
    Form("counterfact", frozenset({"requested_rewrite"}), _read_nested),
    Form("zsre", frozenset({"src", "alt"}), _read_zsre),
    Form("counterfact", frozenset({"prompt", "target_new", "rephrase_prompt"}), _read_flat),
    Form("counterfact", frozenset({"prompt", "target_new", "ground_truth"}), _read_flat),
    Form("selfcheckgpt", frozenset({"prompt", "target_new", "locality_prompt"}), _read_flat),
    Form("counterfact", frozenset({"prompt", "target_new"}), _read_flat),
    Form("studio", frozenset({"prompt", "target"}), _read_studio),
)


def _compared(facts: list[Fact], places: dict[int, str], strict: bool, problems: list[Problem]) -> list[Fact]:
    """The facts without repetitions; adds what repeats or contradicts to `problems`.

    Prompts that differ in capital letters may ask for different words (polish, Polish): both are kept.
    """
    seen: dict[str, dict[str, Fact]] = {}
    alike: dict[str, Fact] = {}
    kept = []
    for fact in facts:
        prompt = " ".join(fact.prompt.split())
        targets = seen.setdefault(prompt, {})
        twin, rival = targets.get(_folded(fact.target)), next(iter(targets.values()), None)
        near = alike.setdefault(_folded(prompt), fact)
        place = places[fact.row]
        if twin:
            message = f"{place}: the same prompt and target as row {twin.row}; this one was left out."
            problems.append(Problem(fact.row, "prompt", message, "warning"))
            continue
        if rival:
            message = (
                f"{place}: contradicts row {rival.row}: the same prompt with the targets "
                f"“{_short(rival.target)}” and “{_short(fact.target)}”."
            )
            if strict:
                problems.append(Problem(fact.row, "target", f"{message} Delete one of the two.", "error"))
            else:
                message += " Both were kept, as published."
                problems.append(Problem(fact.row, "target", message, "warning", rival.row))
        elif near is not fact:
            message = f"{place}: the prompt of row {near.row} but for capital letters; both were kept."
            problems.append(Problem(fact.row, "prompt", message, "warning", near.row))
        targets[_folded(fact.target)] = fact
        kept.append(fact)
    problems += filter(None, (_edited_unrelated(fact, alike, places[fact.row]) for fact in kept))
    return kept


def _edited_unrelated(fact: Fact, edited: Mapping[str, Fact], place: str) -> Problem | None:
    """What there is to say when an unrelated prompt of the fact is one that is edited; `edited`: by folded prompt."""
    for prompt, _ in fact.unrelated:
        if other := edited.get(_folded(prompt)):
            whose = "this row" if other is fact else f"row {other.row}"
            message = f"{place}: the unrelated prompt “{_short(prompt)}” is edited in {whose}, so it will not stay as it is."
            return Problem(fact.row, "unrelated", message, "warning", other.row)
    return None


def _unknown_columns(records: Sequence[Record], source: str) -> list[Problem]:
    names = dict.fromkeys(name for record in records for name in record.values if name)
    unknown = [name for name in names if name not in TEMPLATE_COLUMNS and not NUMBERED_COLUMN.fullmatch(name)]
    if not unknown:
        return []
    message = f"{source}: not used: {_some(unknown)}. Columns that are: {', '.join(TEMPLATE_COLUMNS)}."
    return [Problem(0, unknown[0], message, "warning")]


def _split(reader: RecordReader, field: str) -> list[str]:
    """A studio field that may hold several texts: a list, a JSON list in a cell, or text parted by " || "."""
    texts = reader.texts(field)
    if isinstance(reader.record.values.get(field), list | tuple):
        return texts
    return _parted(texts[0]) if texts and texts[0] else []


def _parted(cell: str) -> list[str]:
    if cell.startswith("["):
        try:
            items = json.loads(cell)
        except (ValueError, RecursionError):
            items = None  # a text that happens to begin with a bracket
        if isinstance(items, list) and all(isinstance(item, str) for item in items):
            return [item.strip() for item in items]
    return [part.strip() for part in SEPARATOR.split(cell)]


def _cell(texts: Sequence[str]) -> str:
    """Several texts in one cell: parted by " || ", or a JSON list where that would be read otherwise."""
    cell = " || ".join(texts)
    return cell if not texts or _parted(cell.strip()) == list(texts) else json.dumps(list(texts), ensure_ascii=False)


def _folded(text: str) -> str:
    return " ".join(text.split()).casefold()


def _some(names: Collection[str]) -> str:
    return ", ".join(map(_short, list(names)[:12])) + " …" * (len(names) > 12)


def _short(text: str) -> str:
    return text if len(text) <= 60 else text[:59] + "…"
