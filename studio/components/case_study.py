"""The case study, as the paper's Table 4: instance type, prompt, output before, output after, ✓ or ✗.

A choice of instances is sorted and cut into pages here, so that thousands of facts never reach the browser at once.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass

from engine.facts import Fact
from engine.metrics import Instance, Output
from studio.components.markup import clipped, empty, span, text, tick

PAGE_ROWS = 50
KINDS = {"edit": "Editing", "equivalent": "Equivalent", "unrelated": "Unrelated"}
MAIN_PROTOCOL = {"edit": "exact", "equivalent": "exact", "unrelated": "agreement"}
ALL, FAILED, PASSED = "All", "Failed ✗", "Succeeded ✓"
OUTCOMES = (ALL, FAILED, PASSED)
TYPES = (ALL, *KINDS.values())
HEADS = ("Prompt", "Target", "Output before", "Output after")
CSS = """
.wide { max-height: 72vh; overflow: auto; }
table { table-layout: fixed; min-width: 780px; border: 0; }
thead th { position: sticky; top: 0; z-index: 1; }
col.fact { width: 52px; } col.type { width: 92px; } col.target { width: 13%; } col.result { width: 152px; }
tr.first > td { border-top: 2px solid var(--border-color-primary); }
td { overflow-wrap: anywhere; }
td.fact { color: var(--body-text-color-subdued); font-variant-numeric: tabular-nums; }
td.type { color: var(--body-text-color-subdued); white-space: nowrap; }
.forced { display: block; margin-top: 2px; color: var(--body-text-color-subdued); font-size: var(--text-xs); }
.forced .clip { font-family: var(--font-mono); -webkit-line-clamp: 2; }
td b { font-weight: 600; color: var(--good); }
.verdict { display: flex; gap: 8px; align-items: flex-start; }
.protocols { font-size: var(--text-xs); line-height: 1.45; color: var(--body-text-color-subdued); }
.protocols span { white-space: nowrap; }
button.ask { all: unset; cursor: pointer; display: block; }
button.ask:hover { text-decoration: underline dotted; }
button.ask:focus-visible { outline: 2px solid var(--color-accent); outline-offset: 2px; }
/* On a narrow page an instance is a card: its outputs stand side by side, and nothing has to be scrolled into sight. */
@container (max-width: 700px) {
  table { min-width: 0; } table, tbody { display: block; } colgroup, thead { display: none; }
  tr { display: grid; grid-template-columns: 1fr 1fr; padding: 6px 0; border-top: 1px solid var(--border-color-primary); }
  tr.first { border-top-width: 2px; } tr:first-child { border-top: 0; }
  tr > td, tr.first > td { border: 0; padding: 2px 10px; min-width: 0; }
  td.fact { grid-column: 1 / -1; } td.fact:empty { display: none; } td.fact::before { content: "Fact "; }
  td[data-head] { order: 1; }
  td[data-head]::before { display: block; content: attr(data-head); font-size: var(--text-xs);
    color: var(--body-text-color-subdued); }
}
"""
ASK = """
element.addEventListener('click', (event) => {
  const prompt = event.target.closest('[data-prompt]');
  if (prompt) trigger('select', {index: 0, value: prompt.dataset.prompt});
});
"""


@dataclass(frozen=True)
class Filter:
    """Which instances are shown: a type and an outcome, by their titles above, and a text they contain."""

    kind: str = ALL
    outcome: str = ALL
    search: str = ""

    def takes(self, one: Instance, fact: Fact) -> bool:
        if self.kind != ALL and KINDS[one.kind] != self.kind:
            return False
        if self.outcome != ALL and succeeded(one) != (self.outcome == PASSED):
            return False
        texts = (one.prompt, one.target, fact.subject, *_said(one.before), *_said(one.after))
        wanted = self.search.casefold().split()
        return all(any(word in found.casefold() for found in texts) for word in wanted)


@dataclass(frozen=True)
class Page:
    """One page: its instances, how many fit in all, and its number of so many, from 1."""

    instances: list[Instance]
    total: int
    number: int
    count: int


def succeeded(one: Instance) -> bool:
    """Whether the instance counts as a success in the headline: exact, or agreement for an unrelated one."""
    return bool(one.success[MAIN_PROTOCOL[one.kind]])


def select(instances: Sequence[Instance], facts: Sequence[Fact], chosen: Filter, page: int = 1) -> Page:
    """The page of the chosen instances; facts with a failure come first, a fact's instances stay together."""
    failing = {one.fact for one in instances if not succeeded(one)}
    kept = [one for one in instances if chosen.takes(one, facts[one.fact])]
    kept.sort(key=lambda one: (one.fact not in failing, one.fact, list(KINDS).index(one.kind)))
    count = max(1, -(-len(kept) // PAGE_ROWS))
    number = min(max(1, page), count)
    return Page(kept[(number - 1) * PAGE_ROWS : number * PAGE_ROWS], len(kept), number, count)


def case_study_html(page: Page, facts: Sequence[Fact]) -> str:
    """The page as a table. A click on a prompt sends it on as the value of a `select` event."""
    if not page.instances:
        return empty("No instance fits.", "Choose another type or outcome, or search for fewer words.")
    rows, last = [], None
    for one in page.instances:
        rows.append(_row(one, facts[one.fact], one.fact != last))
        last = one.fact
    heads = ("Fact", "Type", *HEADS, "Result")
    columns = "".join(f'<col class="{name}">' for name in ("fact", "type", "prompt", "target", "out", "out", "result"))
    titles = "".join(f'<th scope="col">{head}</th>' for head in heads)
    return (
        f'<div class="wide"><table><colgroup>{columns}</colgroup><thead><tr>{titles}</tr></thead>'
        f"<tbody>{''.join(rows)}</tbody></table></div>"
    )


def page_text(page: Page) -> str:
    """“51–100 of 3,214 instances, page 2 of 65”; of one page its instances alone."""
    if not page.total:
        return "no instance"
    first = (page.number - 1) * PAGE_ROWS + 1
    shown = span(first, first + len(page.instances) - 1, page.total, "instance")
    return shown if page.count == 1 else f"{shown}, page {page.number:,} of {page.count:,}"


def _row(one: Instance, fact: Fact, first: bool) -> str:
    number = f"{fact.row or one.fact + 1:,}" if first else ""
    subject = f' title="{text(fact.subject)}"' if fact.subject and first else ""
    good = succeeded(one)
    ask = f'<button class="ask" type="button" data-prompt="{text(one.prompt)}">{clipped(one.prompt)}</button>'
    said = (output_html(output, one.target) for output in (one.before, one.after))
    headed = zip(HEADS, (ask, clipped(one.target), *said))
    return (
        f'<tr class="{"first " if first else ""}{one.kind} {"passed" if good else "failed-row"}">'
        f'<td class="fact"{subject}>{number}</td><td class="type">{KINDS[one.kind]}</td>'
        + "".join(f'<td data-head="{head}">{cell}</td>' for head, cell in headed)
        + f'<td><div class="verdict">{tick(good)}{_protocols(one)}</div></td></tr>'
    )


def output_html(output: Output, target: str) -> str:
    """What the model generates, the target in it emphasised; below it the teacher-forced argmax."""
    forced = clipped(one_line(output.argmax))
    if output.generated is None:
        return f'{forced}<span class="forced">teacher-forced; not generated</span>'
    said = clipped(one_line(output.generated))
    if target and output.generated.startswith(target):
        said = said.replace(f">{text(target)}", f"><b>{text(target)}</b>", 1)
    return f'{said}<span class="forced" title="teacher-forced argmax, which the metrics use">{forced}</span>'


def one_line(said: str) -> str:
    """What a model said, its lines as one with their ends made visible, as the paper writes them."""
    return re.sub(r"\s*\n\s*", " ↵ ", said).strip() or "(blank)"


def _protocols(one: Instance) -> str:
    """Each protocol's verdict in small type."""
    parts = []
    for name, value in one.success.items():
        if value is not None:
            verdict = "✓" if value == 1 else "✗" if value == 0 else f"{value:.2f}"
            parts.append(f"<span>{text(name)} {verdict}</span>")
    return f'<span class="protocols">{" · ".join(parts)}</span>'


def _said(output: Output) -> tuple[str, str]:
    return output.argmax, output.generated or ""
