"""Facts × methods: for each fact and method ✓ or ✗ on the editing, equivalent and unrelated prompts.

A click on a row sends the fact's place on as the value of a `select` event. Sorted and cut into pages here, so that
thousands of facts never reach the browser at once.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import pvariance

from engine.facts import Fact
from engine.metrics import Kind
from studio.comparison_record import Answer, Line, Question, Verdict
from studio.components.case_study import KINDS, MAIN_PROTOCOL, output_html
from studio.components.markup import clipped, empty, figure, text, tick

PAGE_FACTS = 40
LETTERS: dict[Kind, str] = {"edit": "E", "equivalent": "G", "unrelated": "L"}
DISAGREEMENT, GIVEN, FAILURES = "Most disagreement first", "In the order of the facts", "Most failures first"
ORDERS = (DISAGREEMENT, GIVEN, FAILURES)
GRID_CSS = """
.wide { max-height: 62vh; overflow: auto; }
.wide > table { border: 0; border-collapse: separate; border-spacing: 0; padding: 0; }
.under { font-size: var(--text-sm); margin: 4px 0 0; }
thead th { position: sticky; top: 0; z-index: 2; white-space: normal; vertical-align: bottom; text-align: center;
  font-size: var(--text-xs); min-width: 74px; }
thead th.what { text-align: left; min-width: 240px; left: 0; z-index: 3; font-size: var(--text-sm); }
tbody th { position: sticky; left: 0; z-index: 1; background: var(--background-fill-primary); white-space: normal;
  min-width: 240px; max-width: 380px; }
tbody tr:hover th, tbody tr:hover td, tr.chosen th, tr.chosen td { background: var(--background-fill-secondary); }
tbody tr { cursor: pointer; }
tbody td { text-align: center; white-space: nowrap; }
td.share { color: var(--body-text-color-subdued); font-variant-numeric: tabular-nums; }
th button { all: unset; cursor: pointer; display: block; width: 100%; }
th button:focus-visible { outline: 2px solid var(--color-accent); outline-offset: 2px; }
th .clip { -webkit-line-clamp: 2; }
th small { color: var(--body-text-color-subdued); }
.letters { font-family: var(--font-mono); letter-spacing: 9px; padding-left: 9px; font-weight: 400;
  color: var(--body-text-color-subdued); display: block; }
.tick { min-width: 16px; padding: 0 1px; line-height: 16px; font-size: var(--text-xs); }
.tick + .tick { margin-left: 2px; }
/* On a narrow page three methods stand beside a fact, and more of them are scrolled into sight. */
@container (max-width: 560px) {
  thead th { min-width: 54px; } thead th, tbody td { padding-left: 4px; padding-right: 4px; }
  thead th.what, tbody th { min-width: 128px; max-width: 150px; }
}
"""
DETAIL_CSS = """
h4:first-child { margin-top: 8px; }
.wide { max-height: 70vh; overflow: auto; }
.wide > table { border: 0; border-collapse: separate; border-spacing: 0; padding: 0; }
thead th { position: sticky; top: 0; z-index: 1; white-space: normal; min-width: 220px; max-width: 360px; }
thead th:first-child { min-width: 130px; left: 0; z-index: 2; }
thead th small { display: block; font-weight: 400; color: var(--body-text-color-subdued); }
tbody th { position: sticky; left: 0; background: var(--background-fill-primary); white-space: normal;
  min-width: 130px; }
td { overflow-wrap: anywhere; min-width: 200px; }
td .said { display: flex; gap: 8px; align-items: flex-start; }
td b { font-weight: 600; color: var(--good); }
.forced { display: block; margin-top: 2px; color: var(--body-text-color-subdued); font-size: var(--text-xs); }
.forced .clip { font-family: var(--font-mono); -webkit-line-clamp: 2; }
tr.unedited, tr.unedited th { background: var(--background-fill-secondary); }
"""
CHOOSE = """
element.addEventListener('click', (event) => {
  const row = event.target.closest('[data-fact]');
  if (!row) return;
  element.querySelectorAll('tr.chosen').forEach(one => one.classList.remove('chosen'));
  row.classList.add('chosen');
  trigger('select', {index: 0, value: Number(row.dataset.fact)});
});
"""

Verdicts = Mapping[int, Mapping[int, Mapping[Kind, Verdict]]]


@dataclass(frozen=True)
class GridPage:
    """One page: its facts by their places, and its number of so many, from 1."""

    places: list[int]
    number: int
    count: int
    total: int


def disagreement(lines: Sequence[Line], verdicts: Verdicts, place: int) -> float:
    """How much the methods differ on a fact: the mean over its kinds of 4 Var(p), p each method's share of success.

    0 where all agree, 1 where every kind splits them in halves.
    """
    found = []
    for kind in LETTERS:
        shares = [own[kind].share for line in lines if kind in (own := _own(verdicts, line, place))]
        if shares:
            found.append(4 * pvariance(shares))
    return sum(found) / len(found) if found else 0.0


def failures(lines: Sequence[Line], verdicts: Verdicts, place: int) -> float:
    """Over all methods and kinds, the failures on a fact."""
    return sum(1 - one.share for line in lines for one in _own(verdicts, line, place).values())


def select(facts: Sequence[Fact], lines: Sequence[Line], verdicts: Verdicts, order: str, page: int = 1) -> GridPage:
    """A page of the facts in the chosen order; equal ones in their own."""
    places = list(range(len(facts)))
    if order != GIVEN:
        key = disagreement if order == DISAGREEMENT else failures
        places.sort(key=lambda place: -key(lines, verdicts, place))
    pages = max(1, -(-len(places) // PAGE_FACTS))
    number = min(max(1, page), pages)
    return GridPage(places[(number - 1) * PAGE_FACTS : number * PAGE_FACTS], number, pages, len(places))


def grid_html(
    page: GridPage, facts: Sequence[Fact], lines: Sequence[Line], verdicts: Verdicts, chosen: int | None
) -> str:
    """The page as a table; `chosen`: the place of the fact whose outputs are open."""
    if not lines or not page.places:
        return empty("No outputs yet.", "They are here as soon as one method has edited the whole batch.")
    letters = f'<span class="letters" aria-hidden="true">{"".join(LETTERS.values())}</span>'
    heads = "".join(f'<th scope="col">{text(line.name)}{letters}</th>' for line in lines)
    rows = "".join(_row(place, facts[place], lines, verdicts, place == chosen) for place in page.places)
    return (
        '<div class="wide"><table><thead><tr><th scope="col" class="what">Fact</th>'
        f'<th scope="col">Disagree&shy;ment</th>{heads}</tr></thead><tbody>{rows}</tbody></table></div>'
        '<p class="quiet under">E: the editing prompt, G: all equivalent ones (exact), '
        "L: all unrelated ones (agreement). Disagreement: 0 where all methods do the same, 1 where half of them fail on "
        "everything. A click on a fact shows its outputs.</p>"
    )


def _row(place: int, fact: Fact, lines: Sequence[Line], verdicts: Verdicts, chosen: bool) -> str:
    cells = "".join(f"<td>{_ticks(_own(verdicts, line, place))}</td>" for line in lines)
    return (
        f'<tr data-fact="{place}"{" class=chosen" if chosen else ""}><th scope="row"><button type="button">'
        f"{clipped(f'{fact.row or place + 1}. {fact.prompt} → {fact.target}')}</button></th>"
        f'<td class="share">{disagreement(lines, verdicts, place):.2f}</td>{cells}</tr>'
    )


def _ticks(own: Mapping[Kind, Verdict]) -> str:
    marks = []
    for kind in LETTERS:
        verdict = own.get(kind)
        title = f"{KINDS[kind]}: {verdict.good:g} of {verdict.n}" if verdict else f"{KINDS[kind]}: no such prompt"
        mark = tick(verdict.good == verdict.n if verdict else None)
        marks.append(mark.replace("<span ", f'<span title="{title}" ', 1))
    return "".join(marks)


def _own(verdicts: Verdicts, line: Line, place: int) -> Mapping[Kind, Verdict]:
    return verdicts.get(line.run, {}).get(place, {})


def detail_html(fact: Fact, place: int, lines: Sequence[Line], questions: Sequence[Question]) -> str:
    """The fact's prompts as columns, what the unedited model and each method say to them as rows (Table 4 for all)."""
    heads = "".join(
        f'<th scope="col"><small>{KINDS[one.kind]}, target {text(one.target)}</small>{clipped(one.prompt)}</th>'
        for one in questions
    )
    rows = []
    for line in lines:
        cells = "".join(f"<td>{_answer(one.answers.get(line.run), one, bool(line.key))}</td>" for one in questions)
        kind = "" if line.key else ' class="unedited"'
        rows.append(f'<tr{kind}><th scope="row">{text(line.name)}</th>{cells}</tr>')
    return (
        f"<h4>Fact {fact.row or place + 1}: {text(fact.prompt)} → {text(fact.target)}</h4>"
        f'<div class="wide"><table><thead><tr><th scope="col">Method</th>{heads}</tr></thead>'
        f"<tbody>{''.join(rows)}</tbody></table></div>"
    )


def _answer(answer: Answer | None, question: Question, edited: bool) -> str:
    if answer is None:
        return "–"
    success = answer.success.get(MAIN_PROTOCOL[question.kind])
    good = None if success is None or (question.kind == "unrelated" and not edited) else success == 1
    share = answer.success.get("token" if question.kind != "unrelated" else "label")
    part = f'<span class="forced">tokens {figure(share)}</span>' if share not in (None, 0, 1) else ""
    return f'<div class="said">{tick(good)}<div>{output_html(answer.output, question.target)}{part}</div></div>'
