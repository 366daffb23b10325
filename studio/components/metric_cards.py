"""ES, GS, LS and Score as cards, and every metric under every protocol as a table."""

from collections.abc import Sequence

from engine.metrics import Metric
from studio.components.markup import count, figure, text

# The appendix's indicators: what the headline shows.
HEADLINE = (("ES", "exact"), ("GS", "exact"), ("LS", "agreement"), ("Score", "exact+agreement"))
TITLES = {"ES": "edit success", "GS": "generality", "LS": "locality"}
PROTOCOLS = {
    "exact": "every answer token is the target’s (teacher-forced)",
    "token": "share of the answer tokens that are the target’s",
    "generated": "the generated text begins with the target",
    "agreement": "the answer is the same as before the edit",
    "label": "share of the true answer’s tokens",
    "exact+agreement": "harmonic mean of ES and GS (exact) and LS (agreement)",
    "token+label": "harmonic mean of ES and GS (token) and LS (label)",
}
COUNTED = {"ES": "editing prompt", "GS": "equivalent prompt", "LS": "unrelated prompt", "Score": "fact"}
MISSING = {
    "GS": "no equivalent prompts",
    "LS": "no unrelated prompts",
    "Score": "needs equivalent and unrelated prompts",
    "ES": "no editing prompts",
}
CSS = """
.cards { display: grid; grid-template-columns: repeat(4, minmax(0, 1fr)); gap: 10px; }
.card { border: 1px solid var(--border-color-primary); border-radius: var(--radius-md); padding: 10px 14px 12px;
  background: var(--background-fill-primary); min-width: 0; }
.card.main { border-color: var(--color-accent); }
.card h4 { margin: 0; display: flex; gap: 5px; font-size: var(--text-sm); font-weight: 400; white-space: nowrap;
  color: var(--body-text-color-subdued); }
.card h4 b { font-weight: 600; color: var(--body-text-color); }
.card h4 span { margin-left: auto; padding-left: 5px; overflow: hidden; text-overflow: ellipsis; }
.card .value { font-size: 26px; line-height: 1.3; font-weight: 600; font-variant-numeric: tabular-nums; }
.card .was { font-size: var(--text-sm); font-weight: 400; color: var(--body-text-color-subdued); }
.card .scale { position: relative; height: 6px; border-radius: 3px; margin: 6px 0 7px;
  background: var(--border-color-primary); }
.card .scale i { position: absolute; top: 0; bottom: 0; border-radius: 3px; }
.card .scale .fill { left: 0; background: var(--color-accent); }
.card .scale .range { top: -3px; bottom: -3px; border: 1px solid var(--body-text-color); border-width: 0 1px;
  opacity: .55;
  background: linear-gradient(var(--body-text-color), var(--body-text-color)) center / 100% 1px no-repeat; }
.card p { margin: 0; font-size: var(--text-xs); color: var(--body-text-color-subdued);
  font-variant-numeric: tabular-nums; }
.figures .words { text-align: left; font-weight: 400; }
.figures th.words { font-weight: 600; }
@media (max-width: 1000px) { .cards { grid-template-columns: repeat(2, minmax(0, 1fr)); } }
"""


def cards_html(metrics: Sequence[Metric]) -> str:
    """The four headline cards; one that has no value says why."""
    found = {(one.name, one.protocol): one for one in metrics}
    return f'<div class="cards">{"".join(_card(name, protocol, found) for name, protocol in HEADLINE)}</div>'


def _card(name: str, protocol: str, found: dict[tuple[str, str], Metric]) -> str:
    one = found.get((name, protocol))
    head = (
        f'<h4 title="{text(PROTOCOLS[protocol])}"><b>{name}</b> {TITLES.get(name, "")}<span>{text(protocol)}</span></h4>'
    )
    kind = "card main" if name == "Score" else "card"
    if one is None or one.value is None:
        told = f'<div class="value">–</div><p>{MISSING[name]}</p>'
        return f'<div class="{kind}" data-metric="{name}">{head}{told}</div>'
    scale, certain = f'<i class="fill" style="width: {one.value:.1%}"></i>', "no interval known"
    if one.low is not None and one.high is not None:
        certain = f"95 % {interval(one)}"
        scale += f'<i class="range" style="left: {one.low:.1%}; width: {max(0.0, one.high - one.low):.1%}"></i>'
    return (
        f'<div class="{kind}" data-metric="{name}">{head}'
        f'<div class="value"><span class="was">{figure(one.before)} →</span> {figure(one.value)}</div>'
        f'<div class="scale" aria-hidden="true">{scale}</div>'
        f"<p>{certain} · {count(one.n, COUNTED[name])}</p></div>"
    )


def metrics_html(metrics: Sequence[Metric]) -> str:
    """Every metric under every protocol: before, after, 95 % interval, count, and what the protocol means."""
    rows = "".join(
        f'<tr{" class=best" if (one.name, one.protocol) in HEADLINE else ""}><th scope="row">{text(one.name)} '
        f'<span class="quiet">{TITLES.get(one.name, "")}</span></th><td class="words">{text(one.protocol)}</td>'
        f"<td>{figure(one.before)}</td><td>{figure(one.value)}</td>"
        f"<td>{interval(one)}</td><td>{one.n:,}</td>"
        f'<td class="words">{text(PROTOCOLS.get(one.protocol, ""))}</td></tr>'
        for one in metrics
    )
    return (
        '<div class="wide"><table class="figures"><thead><tr><th scope="col">Metric</th>'
        '<th scope="col" class="words">Protocol</th><th scope="col">Before</th>'
        '<th scope="col">After</th><th scope="col">95 % interval</th><th scope="col">n</th>'
        f'<th scope="col" class="words">Counts as a success</th></tr></thead><tbody>{rows}</tbody></table></div>'
    )


def interval(one: Metric) -> str:
    """“0.812 – 0.901”; a dash where there is none."""
    return "–" if one.low is None or one.high is None else f"{one.low:.3f} – {one.high:.3f}"
