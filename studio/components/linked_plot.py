"""The linked plot: a plotly figure whose points can be clicked and lassoed, and which keeps its zoom when redrawn.

    plot = LinkedPlot(elem_id="plot")
    plot.select(chosen, None, outputs)  # chosen(event: gr.SelectData): event.value is [{"cloud": 0, "rows": […]}, …]
    plot.click(asked, None, outputs)    # asked(event: gr.EventData): event.cloud, event.row
    LinkedPlot.value_of(figure)             # what to send it

`gr.Plot` has no select event and loses its zoom. A lasso that is undone sends an empty list. Traces whose meta names a
`cloud` are points; rows of the same customdata in another `panel` are selected with them. plotly.js is plotly.py's own,
served from this machine when the first figure comes; without WebGL the points are drawn as vectors.
"""

from pathlib import Path
from typing import Any

import gradio as gr
import plotly
import plotly.graph_objects as go

LIBRARY = Path(plotly.__file__).parent / "package_data" / "plotly.min.js"
# plotly.js has a button that sends the figure to its maker's server.
AT_HOME = {"plotlyServerURL": "", "showSendToCloud": False, "modeBarButtonsToRemove": ["sendChartToCloud"]}
TEMPLATE = '<div class="plot" role="figure"></div><div class="told" hidden></div>'
CSS = """
.plot { width: 100%; height: 660px; }
/* The outline of a lasso lies over the points in it, which are still hovered and clicked. */
.plot .selectionlayer path { pointer-events: none !important; }
.told { padding: 12px; color: var(--body-text-color-subdued); font-size: var(--text-sm); }
"""
# Gradio's `watch` runs this after each new value; the template has no value in it, so that the plot's element stays.
SCRIPT = """
const view = element.querySelector('.plot'), told = element.querySelector('.told');
const tools = {displaylogo: false, displayModeBar: true, scrollZoom: true, ...props.tools};
const webgl = !!document.createElement('canvas').getContext('webgl');
let bound = false, busy = false, turn = Promise.resolve();

const library = () => window.linkedPlotLibrary ??= new Promise((done, failed) => {
  if (window.Plotly?.react) { done(window.Plotly); return; }
  const script = document.createElement('script');
  script.src = props.library;
  script.onload = () => done(window.Plotly);
  script.onerror = () => failed(new Error('plotly.js could not be loaded from this studio.'));
  document.head.append(script);
});
const values = (array) => array?._inputArray ?? array ?? [];
const points = () => view.data.map((trace, at) => ({trace, at})).filter(({trace}) => trace.meta?.cloud !== undefined);

function chosen(event) {
  const picked = new Map();
  for (const point of event?.points ?? []) {
    const meta = point.data.meta;
    if (meta?.cloud === undefined) continue;
    if (!picked.has(point.curveNumber)) picked.set(point.curveNumber, []);
    picked.get(point.curveNumber).push(point.pointNumber);
  }
  return picked;
}

async function letGo() {
  const own = points();
  busy = true;
  await window.Plotly.update(
    view, {selectedpoints: own.map(() => null)}, {selections: []}, own.map(({at}) => at));
  busy = false;
  trigger('select', {index: 0, value: []});
}

async function select(event) {
  if (busy || !event) return;  // a redraw says so, too, and so does every click
  const picked = chosen(event), own = points();
  if (!picked.size) return letGo();
  if (new Set(own.map(({trace}) => trace.meta.panel)).size > 1) {
    const from = view.data[picked.keys().next().value].meta.panel, linked = new Set();
    for (const [at, rows] of picked) {
      const numbers = values(view.data[at].customdata);
      for (const row of rows) linked.add(numbers[row]);
    }
    const rows = own.map(({trace, at}) => {
      if (trace.meta.panel === from) return picked.get(at) ?? [];
      const found = [], numbers = values(trace.customdata);
      for (let row = 0; row < numbers.length; row++) if (linked.has(numbers[row])) found.push(row);
      return found;
    });
    await window.Plotly.restyle(view, {selectedpoints: rows}, own.map(({at}) => at));
  }
  const value = [...picked].map(([at, rows]) => ({cloud: view.data[at].meta.cloud, rows}));
  trigger('select', {index: 0, value});
}

function bind() {
  if (bound) return;
  bound = true;
  let width = view.clientWidth, settling;
  view.on('plotly_selected', select);
  view.on('plotly_deselect', () => { if (!busy) letGo(); });
  view.on('plotly_click', (event) => {
    const point = event.points.find((one) => one.data.meta?.cloud !== undefined);
    if (point) trigger('click', {cloud: point.data.meta.cloud, row: point.pointNumber});
  });
  // Also where only the sidebar is folded, which is no resize of the window.
  new ResizeObserver(() => {
    if (!view.clientWidth) return;
    window.Plotly.Plots.resize(view);
    if (view.clientWidth === width) return;
    width = view.clientWidth;
    clearTimeout(settling);
    settling = setTimeout(() => { turn = turn.then(settle); }, 200);
  }).observe(view);
  new MutationObserver(() => { turn = turn.then(repaint); })
    .observe(document.body, {attributes: true, attributeFilter: ['class']});
}

function colours() {
  const style = getComputedStyle(element), of = (name) => style.getPropertyValue(name).trim();
  return {ink: of('--body-text-color'), paper: of('--background-fill-primary')};
}

async function settle() {  // plotly.js leaves a legend where its lines were before the resize
  const places = Object.keys(view.layout ?? {}).filter((name) => name.startsWith('legend') && view.layout[name].y);
  busy = true;
  await window.Plotly.relayout(view, Object.fromEntries(places.map((name) => [name + '.y', view.layout[name].y])));
  busy = false;
}

async function repaint() {  // the page turned dark or light
  const {ink, paper} = colours();
  if (view.hidden || !ink || ink === view.layout?.font?.color) return;
  busy = true;
  await window.Plotly.relayout(
    view, {'font.color': ink, 'hoverlabel.bgcolor': paper, 'hoverlabel.font.color': ink});
  busy = false;
}

async function draw() {
  if (!props.value) { view.hidden = true; return; }
  try {
    const Plotly = await library(), figure = JSON.parse(props.value);
    if (!webgl) for (const trace of figure.data) if (trace.type === 'scattergl') trace.type = 'scatter';
    const {ink, paper} = colours();
    if (ink) figure.layout.font.color = ink;
    figure.layout.hoverlabel = {...figure.layout.hoverlabel, bgcolor: paper, font: {color: ink}};
    view.hidden = false;
    busy = true;
    if (view.layout?.uirevision === figure.layout.uirevision) {  // of the linked panel, plotly.js would forget it
      const before = new Map(points().map(({trace}) => [trace.uid, trace.selectedpoints]));
      for (const trace of figure.data) trace.selectedpoints = before.get(trace.uid) ?? undefined;
    }
    await Plotly.react(view, figure.data, figure.layout, tools);
    told.hidden = true;
    bind();
    view.dataset.drawn = String(Number(view.dataset.drawn ?? 0) + 1);
  } catch (error) {
    told.textContent = `The plot could not be drawn: ${error.message}`;
    told.hidden = false;
  } finally {
    busy = false;
  }
}
watch('value', () => { turn = turn.then(draw); });
turn = turn.then(draw);
"""


class LinkedPlot(gr.HTML):
    """The component. Its value is `value_of` a figure, or "" for no plot."""

    def __init__(self, *, elem_id: str, **more: Any) -> None:
        gr.set_static_paths([LIBRARY])
        super().__init__(
            "",
            elem_id=elem_id,
            html_template=TEMPLATE,
            css_template=CSS,
            js_on_load=SCRIPT,
            apply_default_css=False,
            library=f"gradio_api/file={LIBRARY}",
            tools=AT_HOME,
            **more,
        )

    @staticmethod
    def value_of(figure: go.Figure | None) -> str:
        """The figure as JSON, its arrays as base64; "" for none. By their uids traces are known again when redrawn."""
        return "" if figure is None else figure.to_json(remove_uids=False)
