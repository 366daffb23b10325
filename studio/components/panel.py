"""A gr.HTML with the studio's look for what it writes itself: tables of figures, name–value lists, badges, bars.

The value is inserted as it is: whoever makes it escapes every text that came from a person, a file or a model.
"""

from typing import Any

import gradio as gr

from studio.components.markup import note, text

# The rules are scoped to the component. Gradio reads them as a template: no backtick, backslash or dollar sign.
CSS = """
.html-container:has(> &) { padding: 0; }
& { color: var(--body-text-color); font-size: var(--text-md); line-height: 1.5; }
h3, h4 { margin: 0 0 6px; font-size: var(--text-lg); font-weight: 600; overflow-wrap: anywhere; }
.note + dl { margin-top: 8px; }
h4 { margin-top: 14px; font-size: var(--text-md); }
p { margin: 0 0 6px; overflow-wrap: anywhere; }
code { font-family: var(--font-mono); font-size: .92em; overflow-wrap: anywhere; }
.quiet { color: var(--body-text-color-subdued); }
.wide + p { margin-top: 6px; }
h4:first-child { margin-top: 0; }
.wide { container-type: inline-size; overflow-x: auto; border: 1px solid var(--border-color-primary); border-radius: var(--radius-md); }
table { width: 100%; border: 0; border-collapse: collapse; margin: 0; font-size: var(--text-sm); }
caption { caption-side: top; text-align: left; padding: 6px 10px; color: var(--body-text-color-subdued); }
th, td { padding: 5px 10px; border: 0; border-top: 1px solid var(--border-color-primary); text-align: left;
  vertical-align: top; }
thead th { background: var(--background-fill-secondary); font-weight: 600; white-space: nowrap; }
tr { border: 0; }
tbody th { font-weight: 400; white-space: nowrap; }
table > thead:first-child > tr:first-child th { border-top: 0; }
.figures td, .figures thead th, td.number, th.number { text-align: right; font-variant-numeric: tabular-nums; }
.figures thead tr:first-child th:first-child, .figures caption { text-align: left; }
.figures th[colspan] { text-align: center; border-left: 1px solid var(--border-color-primary); }
tr.best td, tr.best th { background: var(--background-fill-secondary); font-weight: 600; }
dl { display: grid; grid-template-columns: max-content minmax(0, 1fr); gap: 3px 16px; margin: 0; }
dt { color: var(--body-text-color-subdued); }
dd { margin: 0; overflow-wrap: anywhere; }
.badge, .tag { display: inline-block; padding: 0 8px; border-radius: 999px; font-size: var(--text-xs);
  line-height: 1.7; border: 1px solid currentColor; white-space: nowrap; font-weight: 500; }
.tag { margin-left: 4px; border-color: transparent; background: var(--color-accent-soft); }
.badge.done { color: var(--good); } .badge.failed { color: var(--bad); } .badge.cancelled { color: var(--warn); }
.badge.running { color: var(--calm); }
.bar { height: 8px; border-radius: 4px; margin: 6px 0; background: var(--border-color-primary); overflow: hidden; }
.bar > div { height: 100%; background: var(--color-accent); transition: width .3s; }
details > summary { cursor: pointer; color: var(--body-text-color-subdued); }
ul { margin: 4px 0 0; padding-left: 20px; } li { overflow-wrap: anywhere; }
"""


def panel(value: str = "", *, elem_id: str, css: str = "", **more: Any) -> gr.HTML:
    """An HTML component in the studio's look. `css`: further rules of its own."""
    return gr.HTML(value, elem_id=elem_id, css_template=CSS + css, **({"js_on_load": None} | more))


def shown(value: str) -> gr.HTML:
    """An update: the value, and no room taken while there is none."""
    return gr.HTML(value, visible=bool(value))


def said(kind: str, message: str) -> str:
    """A message of one or more lines as a note, the first line its title; "" for none."""
    lines = message.splitlines()
    return note(kind, lines[0], lines[1:]) if lines else ""


def badge(status: str) -> str:
    """The state of a run or a job."""
    return f'<span class="badge {text(status)}">{text(status)}</span>'


def name_values(pairs: list[tuple[str, str]]) -> str:
    """A name–value list. The names are text; the values are HTML already."""
    return f"<dl>{''.join(f'<dt>{text(name)}</dt><dd>{value}</dd>' for name, value in pairs)}</dl>"
