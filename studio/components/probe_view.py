"""A probe as two columns, before and after: the greedy continuation, and the likeliest next tokens with bars."""

from engine.generation import Probe, ProbeSide
from studio.components.markup import text, token_text

CSS = """
.sides + .sides { margin-top: 10px; }
.sides { display: grid; grid-template-columns: repeat(2, minmax(0, 1fr)); gap: 10px; }
.side { border: 1px solid var(--border-color-primary); border-radius: var(--radius-md); padding: 10px 14px;
  background: var(--background-fill-primary); min-width: 0; }
.side.after { border-color: var(--color-accent); }
.side h4 { margin: 0 0 6px; font-size: var(--text-sm); color: var(--body-text-color-subdued); }
.side p { margin: 0 0 10px; white-space: pre-wrap; overflow-wrap: anywhere; unicode-bidi: plaintext; }
.side p span { color: var(--body-text-color-subdued); }
.side p b { font-weight: 400; color: var(--body-text-color); }
.side table { table-layout: fixed; }
.side td, .side th { padding: 2px 0; border: 0; }
.side th { width: 38%; font-family: var(--font-mono); overflow: hidden; text-overflow: ellipsis; white-space: pre; }
.side td:last-child { width: 58px; text-align: right; font-variant-numeric: tabular-nums; }
.side .chance { height: 10px; border-radius: 2px; background: var(--color-accent); min-width: 1px; opacity: .8; }
.side:only-child { grid-column: 1 / -1; }
@media (max-width: 700px) { .sides { grid-template-columns: minmax(0, 1fr); } }
"""


def probe_html(prompt: str, probe: Probe, badge: str) -> str:
    """Both sides; without an edit, the original weights' alone. `badge`: what the edited side is called."""
    alone = probe.after is None
    sides = _side(prompt, probe.before, "Original weights" if alone else "Before: original weights", "before")
    if not alone:
        sides += _side(prompt, probe.after, f"After: {badge}", "after")
    return f'<div class="sides">{sides}</div>'


def _side(prompt: str, side: ProbeSide, title: str, kind: str) -> str:
    rows = "".join(
        f'<tr><th scope="row" title="{text(token_text(token))}">{text(token_text(token))}</th>'
        f'<td><div class="chance" style="width: {probability:.1%}"></div></td>'
        f"<td>{text(_percent(probability))}</td></tr>"
        for token, probability in side.top
    )
    return (
        f'<div class="side {kind}"><h4>{text(title)}</h4><p><span>{text(prompt)}</span><b>{text(side.text)}</b></p>'
        f'<table aria-label="likeliest next tokens">{rows}</table></div>'
    )


def _percent(probability: float) -> str:
    """With one place; what would be rounded to nothing is less than that place shows."""
    return "<0.1%" if probability < 0.0005 else f"{probability:.1%}"
