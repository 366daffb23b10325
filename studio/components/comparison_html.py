"""A comparison for people, as HTML: how far it is, its table with the best values marked, every protocol, reasons."""

from collections.abc import Sequence, Set
from itertools import groupby

from studio.comparison_record import Line, StoredComparison
from studio.comparison_table import cells, columns, fronts, reason, worth
from studio.components.clock import moment
from studio.components.markup import count, empty, figure, note, seconds, text
from studio.components.metric_cards import interval
from studio.components.panel import badge, said

CSS = """
td.name, th.name { white-space: normal; min-width: 132px; }
.figures tbody th { position: sticky; left: 0; background: var(--background-fill-primary); z-index: 1; }
.figures thead th:first-child { position: sticky; left: 0; z-index: 2; }
.figures thead th span { display: block; font-weight: 400; color: var(--body-text-color-subdued);
  font-size: var(--text-xs); }
td b { font-weight: 700; color: var(--good); }
.figures tr.size th { text-align: left; border-left: 0; font-weight: 600;
  background: var(--background-fill-secondary); }
tr.unedited td, tr.unedited th { color: var(--body-text-color-subdued); }
td.reason { text-align: left !important; white-space: normal; color: var(--bad); overflow-wrap: anywhere; }
td.reason > div { position: sticky; left: 152px; max-width: calc(100cqw - 172px); width: max-content; }
td.reason.quiet { color: var(--body-text-color-subdued); }
.under { font-size: var(--text-sm); margin: 4px 0 0; }
td i { display: block; font-style: normal; font-size: var(--text-xs); color: var(--body-text-color-subdued);
  white-space: nowrap; }
.parts { display: flex; flex-wrap: wrap; gap: 4px; align-items: center; margin: 4px 0 0; }
.parts > strong { flex: 0 0 84px; font-size: var(--text-sm); font-weight: 500; }
.part { font-size: var(--text-xs); line-height: 1.6; padding: 1px 8px; border-radius: 999px;
  border: 1px solid var(--border-color-primary); color: var(--body-text-color-subdued); white-space: nowrap; }
.part.done { color: var(--good); border-color: currentColor; }
.part.failed { color: var(--bad); border-color: currentColor; border-style: dashed; }
.part.cancelled { color: var(--warn); border-color: currentColor; border-style: dashed; }
.part.running { color: var(--body-text-color); border-color: var(--color-accent);
  background: var(--color-accent-soft); }
"""
SIGNS = {"done": "✓", "failed": "✗", "cancelled": "–", "running": "…"}
NOTHING = empty(
    "No comparison yet.",
    "Choose methods and press Compare: the table fills as each method ends, plots and the facts’ outputs follow.",
)


def head_html(comparison: StoredComparison) -> str:
    """The run's number, title, state and beginning; what went wrong with it as a whole, and each method's notes."""
    row = comparison.row
    took = "" if row["duration"] is None else f" · took {seconds(row['duration'])}"
    lines = [f"{line.name}: {one}" for line in comparison.lines for one in line.notes]
    stopped = ""
    if comparison.waiting and row["status"] != "running":
        stopped = note("warning", f"Not begun: {', '.join(comparison.waiting)}. What was finished is kept below.")
    noted = note("info", f"{count(len(lines), 'note')} of the methods", lines) if lines else ""
    return (
        f"<h3>{text(row['title'])} {badge(row['status'])}</h3>"
        f'<p class="quiet">Run {comparison.number} · {text(row["model"])} · {moment(row["started"])}{took}</p>'
        f"{said('error', row['error'])}{stopped}{noted}"
    )


def parts_html(comparison: StoredComparison) -> str:
    """A chip for each method at each size: waiting, at work, done or failed. "" once all is over."""
    if comparison.row["status"] != "running":
        return ""
    names = ["Unedited model", *(entry["name"] for entry in comparison.plan["entries"])]
    total = len(comparison.facts)
    sizes = [total, *sorted(size for size in set(comparison.plan["sizes"]) if size < total)]
    rows = []
    for size in sizes:
        found = {line.name: line for line in (*comparison.lines, *comparison.sweep) if line.n_facts == size}
        chips = "".join(_chip(name, found.get(name)) for name in names)
        rows.append(f'<div class="parts"><strong>{count(size, "fact")}</strong>{chips}</div>')
    return "".join(rows)


def _chip(name: str, line: Line | None) -> str:
    status = line.status if line else "waiting"
    sign = f"{SIGNS[status]} " if line else ""
    return f'<span class="part {status}" title="{status}">{sign}{text(name)}</span>'


def table_html(comparison: StoredComparison, reading: str) -> str:
    """The table: a method a row, the best value of each column marked, the unedited model below them."""
    if not comparison.lines:
        return ""
    front = {line.run for line in fronts(comparison.edited, worth(comparison, reading))}
    *edited, unedited = _rows(comparison.lines, reading, front)
    word = "waiting" if comparison.row["status"] == "running" else "not begun"
    rows = [*edited, *(_waiting_row(name, word, reading) for name in comparison.waiting), unedited]
    return (
        f"{_table(rows, reading)}"
        '<p class="quiet under">ES edit success, GS generality, LS locality, Score their harmonic mean. Bold: the best of a '
        "column. On front: no other method is both faster and better.</p>"
    )


def sizes_html(comparison: StoredComparison, reading: str) -> str:
    """The same for each size of the sweep, the smallest first; "" without one."""
    rows = []
    for size in sorted({line.n_facts for line in comparison.sweep}):
        own = [line for line in comparison.sweep if line.n_facts == size]
        span = 1 + len(columns(reading))
        rows.append(f'<tr class="size"><th colspan="{span}" scope="rowgroup">{count(size, "fact")}</th></tr>')
        rows += _rows(own, reading)
    return _table(rows, reading) if rows else ""


def _table(rows: Sequence[str], reading: str) -> str:
    heads = "".join(
        f'<th scope="col">{text(one.title)}<span>{text(one.unit) or "&nbsp;"}</span></th>' for one in columns(reading)
    )
    return (
        '<div class="wide"><table class="figures"><thead><tr><th scope="col" class="name">Method</th>'
        f"{heads}</tr></thead><tbody>{''.join(rows)}</tbody></table></div>"
    )


def _rows(lines: Sequence[Line], reading: str, front: Set[int] = frozenset()) -> list[str]:
    """A row for each line, the unedited model's last, though it was the first to be asked; `front`: runs on it."""
    pairs = sorted(zip(lines, cells(lines, reading)), key=lambda pair: not pair[0].key)
    return [_row(line, own, line.run in front) for line, own in pairs]


def _row(line: Line, own: Sequence, on_front: bool) -> str:
    tag = ' <span class="tag">on front</span>' if on_front else ""
    head = f'<th scope="row" class="name">{text(line.name)}{tag}</th>'
    if not line.done:
        kind = "" if line.status == "failed" else " quiet"
        return f'<tr>{head}<td class="reason{kind}" colspan="{len(own)}"><div>{text(reason(line))}</div></td></tr>'
    body = "".join(f"<td>{f'<b>{text(cell.text)}</b>' if cell.best else text(cell.text)}</td>" for cell in own)
    return f'<tr{"" if line.key else " class=unedited"}>{head}{body}</tr>'


def _waiting_row(name: str, word: str, reading: str) -> str:
    return (
        f'<tr class="unedited"><th scope="row" class="name">{text(name)}</th>'
        f'<td class="reason quiet" colspan="{len(columns(reading))}">{word}</td></tr>'
    )


def protocols_html(comparison: StoredComparison) -> str:
    """ES, GS, LS and Score under every protocol, each with its 95 % interval."""
    done = [line for line in comparison.lines if line.done]
    # The engine gives them in order; one line may lack some that another has.
    keys = dict.fromkeys((one.name, one.protocol) for line in done for one in line.metrics)
    keys = sorted(keys, key=lambda key: ("ES", "GS", "LS", "Score").index(key[0]))
    if not keys:
        return ""
    above = "".join(
        f'<th colspan="{len(list(group))}" scope="colgroup">{text(name)}</th>'
        for name, group in groupby(keys, key=lambda key: key[0])
    )
    heads = "".join(f'<th scope="col">{text(protocol)}</th>' for _, protocol in keys)
    rows = []
    for line in sorted(done, key=lambda line: not line.key):
        body = ""
        for key in keys:
            one = line.metric(*key)
            body += f"<td>{figure(one.value)}<i>{interval(one)}</i></td>" if one else "<td>–</td>"
        rows.append(f'<tr><th scope="row" class="name">{text(line.name)}</th>{body}</tr>')
    return (
        '<div class="wide"><table class="figures"><thead><tr><th rowspan="2" scope="col" class="name">Method</th>'
        f"{above}</tr><tr>{heads}</tr></thead><tbody>{''.join(rows)}</tbody></table></div>"
    )
