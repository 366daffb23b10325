"""The Projections tab, as a person uses it: drawn, coloured, lassoed with a real mouse, clicked, set beside, saved."""

import csv
import json
import re

import numpy as np
import pytest
from gradio_client import handle_file
from playwright.sync_api import Locator, expect
from safetensors import safe_open

from engine.edit_record import RecordCard, tensor_name, write_record
from engine.facts import Fact
from engine.geometry import ModuleNumbers
from engine.model import EditModule
from studio.components.fact_sheet import SAMPLES
from studio.records import KIND, record_path
from studio.store import Store
from tests.browser.person import PATIENCE, Person

pytestmark = pytest.mark.browser
# Every point on the page: its trace's matrix, its place in it, and where on the screen it is.
POINTS = """
(plot) => plot.data.flatMap((trace, at) => {
  if (trace.meta?.cloud === undefined || trace.visible === 'legendonly') return [];
  const full = plot._fullData[at], layout = plot._fullLayout;
  const x = layout[full.xaxis.replace('x', 'xaxis')], y = layout[full.yaxis.replace('y', 'yaxis')];
  const xs = full.x, ys = full.y, box = plot.getBoundingClientRect();
  return Array.from(xs, (_, row) => ({
    cloud: trace.meta.cloud, panel: trace.meta.panel, name: trace.name, row, text: full.text?.[row],
    x: box.x + x._offset + x.l2p(xs[row]), y: box.y + y._offset + y.l2p(ys[row]),
  }));
})
"""
PLOT = "#project-plot .plot"
UP_AND_DOWN = "plot => plot._fullLayout.yaxis.range"
SELECTED = """
(plot) => plot.data.filter(trace => trace.meta?.cloud !== undefined)
  .map(trace => ({panel: trace.meta.panel,
    rows: trace.selectedpoints ? Array.from(trace.selectedpoints).sort((a, b) => a - b) : null}))
"""


def view(person: Person) -> Locator:
    return person.page.locator(PLOT)


def points(person: Person) -> list[dict]:
    """Where the points are once the whole plot is in the window."""
    view(person).evaluate("plot => plot.scrollIntoView({block: 'center', behavior: 'instant'})")
    return view(person).evaluate(POINTS)


def drawn(person: Person, final: str) -> None:
    """Until the picture is there by the method whose axis is called `final`."""
    expect(view(person)).to_have_attribute("data-drawn", re.compile(r"\d"), timeout=PATIENCE)
    person.page.wait_for_function(
        "([id, name]) => (document.querySelector(id)?.layout?.xaxis?.title?.text ?? '').startsWith(name)",
        arg=[PLOT, final],
        timeout=PATIENCE,
    )
    expect(person.at("project-cancel")).to_be_disabled(timeout=PATIENCE)


def lasso(person: Person, left: float, top: float, right: float, bottom: float) -> None:
    """Draw around a rectangle with the mouse, as a person does."""
    mouse = person.page.mouse
    mouse.move(left, top)
    mouse.down()
    for corner in ((right, top), (right, bottom), (left, bottom), (left, top + 1)):
        mouse.move(*corner, steps=6)
    mouse.up()


def named(point: dict) -> tuple[str, str, str]:
    """The matrix, fact and position that a point's hover names."""
    return point["name"], *(re.search(rf"{word} (\d+):", point["text"])[1] for word in ("fact", "token"))


def choose(person: Person, id: str, option: str) -> None:
    person.at(id).locator("input").click()
    person.page.get_by_role("option", name=option, exact=True).click()


@pytest.fixture(scope="module")
def run(studio) -> int:
    """A finished edit of the embedded model with real facts, made by a program."""
    facts = json.loads((SAMPLES / "counterfactuals.json").read_text(encoding="utf-8"))[:12]
    path = studio.folder / "twelve.json"
    path.write_text(json.dumps(facts), encoding="utf-8")
    studio.wait_for_the_model()
    with studio.client() as client:
        client.predict(file=handle_file(path), api_name="/upload")
        # One whose rows are answer positions: a picture of all tokens is squeezed by the few that stand far out.
        return client.predict(generate=0, keep=100, hypernet="agrade-last-six", api_name="/apply")["run"]


def open_tab(person: Person, run: int) -> None:
    person.tab("Projections")
    expect(person.at("project-run").locator("input")).to_have_value(re.compile(r"^\d+: "), timeout=PATIENCE)
    if not person.at("project-run").locator("input").input_value().startswith(f"{run}: "):
        person.at("project-run").locator("input").click()
        person.page.get_by_role("option", name=re.compile(f"^{run}: ")).click()


def test_without_a_run_the_tab_says_so_and_without_a_new_one_the_picture_stays(enter, studio, request):
    person = enter()
    person.tab("Projections")
    expect(person.at("project-caption")).to_contain_text("Nothing to draw yet", timeout=PATIENCE)
    expect(person.at("project-draw")).to_have_text("Draw")
    run = request.getfixturevalue("run")  # made only now
    person.tab("Edit")
    open_tab(person, run)
    drawn(person, "t-SNE")
    person.tab("Edit")
    person.tab("Projections")
    person.page.wait_for_timeout(3000)
    expect(person.at("project-draw")).to_have_text("Draw")
    expect(person.at("project-caption")).to_contain_text("hidden units a matrix")
    assert len(points(person)) > 0


def test_a_lasso_selects_the_facts_under_it_and_a_click_finds_the_neighbours(person, run, tmp_path):
    open_tab(person, run)
    drawn(person, "t-SNE")
    person.at("project-family").get_by_label("Tokens").check()
    person.at("project-method").get_by_label("PCA", exact=True).check()
    drawn(person, "PC 1")
    expect(person.at("project-caption")).to_contain_text("token rows a matrix")
    assert {point["name"] for point in points(person)} == {"∇G", "G before Eq. 4", "G"}

    # Zoom first: it has to survive other colours.
    before = view(person).evaluate(UP_AND_DOWN)
    view(person).evaluate(
        "plot => Plotly.relayout(plot, {'yaxis.range': plot._fullLayout.yaxis.range.map(v => 0.9 * v)})"
    )
    zoomed = view(person).evaluate(UP_AND_DOWN)
    times = int(view(person).get_attribute("data-drawn"))
    choose(person, "project-colour", "Relation")
    expect(view(person)).to_have_attribute("data-drawn", str(times + 1), timeout=PATIENCE)
    # The legend of the colours takes room: what is seen from left to right may be more, with the same scale.
    assert view(person).evaluate(UP_AND_DOWN) == pytest.approx(zoomed) != before

    every = points(person)
    xs, ys = np.array([p["x"] for p in every]), np.array([p["y"] for p in every])
    left, right = np.quantile(xs, [0.2, 0.8])
    top, bottom = np.quantile(ys, [0.2, 0.8])
    inside = [p for p in every if left + 2 < p["x"] < right - 2 and top + 3 < p["y"] < bottom - 2]
    border = [
        p for p in every if p not in inside and left - 2 <= p["x"] <= right + 2 and top - 3 <= p["y"] <= bottom + 2
    ]
    lasso(person, left, top, right, bottom)
    expect(person.at("project-summary")).to_contain_text("points, of", timeout=PATIENCE)
    with person.page.expect_download() as download:
        person.at("project-csv").click()
    rows = list(csv.DictReader(download.value.path().open(encoding="utf-8")))
    expected, allowed = set(map(named, inside)), set(map(named, inside + border))
    found = {(row["matrix"], row["fact"], row["position"]) for row in rows}
    assert expected and expected <= found <= allowed
    assert {row["outcome"] for row in rows} <= {"edit succeeded", "edit failed"}
    expect(person.at("project-table")).to_be_visible()
    faded = view(person).evaluate(SELECTED)
    assert sum(len(one["rows"] or ()) for one in faded) == len(rows)

    # A click asks for the neighbours, also inside the lasso, and leaves what is selected as it is.
    chosen = [(one["cloud"], one["row"]) for one in inside]
    every = points(person)  # for the CSV the page was scrolled
    xs, ys = np.array([p["x"] for p in every]), np.array([p["y"] for p in every])
    inside = [p for p in every if (p["cloud"], p["row"]) in chosen]
    lonely = max(inside, key=lambda p: min(np.hypot(p["x"] - xs, p["y"] - ys)[np.hypot(p["x"] - xs, p["y"] - ys) > 0]))
    person.page.mouse.move(lonely["x"], lonely["y"])
    expect(view(person).locator(".hoverlayer .hovertext").first).to_be_visible()  # a click before that is none on it
    person.page.mouse.click(lonely["x"], lonely["y"])
    expect(person.at("project-clicked")).to_contain_text(re.search(r"fact (\d+)", lonely["text"])[0], timeout=PATIENCE)
    expect(person.at("project-neighbours")).to_be_visible()
    assert view(person).evaluate(SELECTED) == faded
    expect(person.at("project-summary")).to_contain_text("points, of")
    times = int(view(person).get_attribute("data-drawn"))
    choose(person, "project-colour", "Matrix")
    expect(view(person)).to_have_attribute("data-drawn", str(times + 1), timeout=PATIENCE)
    assert view(person).evaluate(SELECTED) == faded
    points(person)
    corner = view(person).locator(".nsewdrag").first.bounding_box()
    person.page.mouse.dblclick(corner["x"] + 8, corner["y"] + 8)
    expect(person.at("project-summary")).to_contain_text("Draw a lasso", timeout=PATIENCE)
    assert not any(one["rows"] for one in view(person).evaluate(SELECTED))

    # A matrix is hidden by its name in the legend.
    person.page.locator("#project-plot .legendtoggle").nth(0).click()
    person.page.wait_for_function(
        "() => document.querySelector('#project-plot .plot').data.some(trace => trace.visible === 'legendonly')"
    )


def test_two_modules_beside_each_other_are_selected_together_and_saved(person, run):
    open_tab(person, run)
    person.at("project-family").get_by_label("Tokens").check()
    person.at("project-method").get_by_label("PCA", exact=True).check()
    drawn(person, "PC 1")
    choose(person, "project-beside", "module: layer 24")
    person.page.wait_for_function(
        "() => document.querySelector('#project-plot .plot').data.some(trace => trace.meta?.panel === 1)",
        timeout=PATIENCE,
    )
    left = [p for p in points(person) if p["panel"] == 0]
    lasso(
        person,
        min(p["x"] for p in left) - 8,
        min(p["y"] for p in left) - 8,
        float(np.median([p["x"] for p in left])),
        max(p["y"] for p in left) + 8,
    )
    expect(person.at("project-summary")).to_contain_text("points, of", timeout=PATIENCE)
    chosen = view(person).evaluate(SELECTED)
    first, second = ([sorted(one["rows"]) for one in chosen if one["panel"] == panel] for panel in (0, 1))
    assert any(first)
    times = int(view(person).get_attribute("data-drawn"))
    choose(person, "project-colour", "Fact")
    expect(view(person)).to_have_attribute("data-drawn", str(times + 1), timeout=PATIENCE)
    assert view(person).evaluate(SELECTED) == chosen
    # Layer 24 is the first module, which has nothing before Eq. 4: there the row after stands for both.
    assert first == second

    person.at("project-save").click()
    expect(person.at("project-problem")).to_contain_text("The picture as it is shown", timeout=PATIENCE)
    names = person.at("project-files").inner_text()
    assert all(kind in names.replace("\n", "") for kind in (f"run-{run}-tokens", "html", "csv", "png", "svg"))
    expect(person.at("project-files").get_by_role("button", name="Remove this file")).to_have_count(0)
    person.at("project-draw").click()
    expect(person.at("project-files")).to_be_hidden()


def test_a_picture_turns_dark_with_the_page(person, run):
    open_tab(person, run)
    drawn(person, "t-SNE")
    person.page.emulate_media(color_scheme="dark")
    ink = "view => view.querySelector('.xtick text, .legendtext').style.fill.match(/\\d+/g).slice(0, 3).map(Number)"
    person.page.wait_for_function(f"([id]) => Math.min(...({ink})(document.querySelector(id))) > 180", arg=[PLOT])
    person.page.emulate_media(color_scheme="light")
    person.page.wait_for_function(f"([id]) => Math.max(...({ink})(document.querySelector(id))) < 90", arg=[PLOT])


def test_the_legend_stays_below_the_axis_when_the_window_was_narrow(person, run):
    open_tab(person, run)
    drawn(person, "t-SNE")
    for width in (800, 1440):
        person.page.set_viewport_size({"width": width, "height": 1000})
        wide = "([id, width]) => Math.abs(document.querySelector(id)._fullLayout.width - width + 450) < 150"
        person.page.wait_for_function(wide, arg=[PLOT, width])
        below = """
          ([id]) => { const edge = (part) => document.querySelector(`${id} ${part}`).getBoundingClientRect();
            return edge('.legend').top >= edge('.xtitle').bottom - 1; }"""
        person.page.wait_for_timeout(1000)
        assert person.page.evaluate(below, [PLOT]), width


def test_figure_3_is_written_with_its_caption(person, run, studio):
    open_tab(person, run)
    drawn(person, "t-SNE")
    person.at("project-figure3").click()
    expect(person.at("project-problem")).to_contain_text("Figure 3 with its caption", timeout=PATIENCE)
    [page] = studio.folder.glob(f"exports/*-run-{run}-*/run-{run}-figure-3.html")
    assert "Run %d: 12 facts edited" % run in page.read_text(encoding="utf-8")
    assert page.with_suffix(".png").stat().st_size > 20_000
    with Store(studio.db) as store:
        kinds = {one["kind"] for one in store.run(run).artifacts}
    assert {"record", "projection png", "projection svg", "projection html", "projection csv"} <= kinds


@pytest.fixture
def large(studio) -> int:
    """A run whose record has 20,000 points: five matrices of 4,000 units, in the studio's own database."""
    random = np.random.default_rng(0)
    units, tokens, wide, narrow = 4000, 50, 4000, 32
    module = EditModule("model.layers.7.mlp.down_proj", 7, wide, narrow, True)
    shapes = {"M": (units, 64), "H": (tokens, wide)} | {name: (tokens, narrow) for name in ("grad", "G_before", "G")}
    shapes |= {name: (units, narrow) for name in ("HtG_before", "HtG", "shift_before", "shift")}
    matrices = {
        tensor_name(name, 0): random.standard_normal(shape, dtype=np.float32) + at
        for at, (name, shape) in enumerate(shapes.items())
    }
    facts = [Fact(f"Prompt {n} is", f"answer {n}") for n in range(tokens)]
    numbers = ModuleNumbers(module.name, (0.1, 0.2), (0.9, 0.8), (0.5, 0.6), 0.3, 0.9, 100.0, 12.0, 0.1, (3.0, 2.0))
    with Store(studio.db) as store:
        run = store.start_run(store.start_session("test"), "edit", title="large", method="agrade", model="synthetic")
        store.record_facts(run, facts)
        card = RecordCard(
            (module,), "agrade", "synthetic", "none", "scaled", "answer", 0, tokens, tokens, (tuple(range(units)),),
            tuple(range(tokens)), (3,) * tokens, ("is",) * tokens, (" answer",) * tokens, (), (), (numbers,),
        )  # fmt: skip
        store.add_artifact(run, KIND, write_record(record_path(store, run), card, matrices))
        store.finish_run(run)
    return run


def test_a_lasso_over_20000_points_is_answered(person, large):
    open_tab(person, large)
    person.at("project-method").get_by_label("PCA", exact=True).check()
    person.at("project-sample").locator("input").fill("4000")
    person.at("project-draw").click()
    person.page.wait_for_function(
        "() => document.querySelector('#project-caption').innerText.includes('20,000 points')", timeout=PATIENCE
    )
    drawn(person, "PC 1")
    every = points(person)
    assert len(every) == 20_000
    kind = view(person).evaluate("plot => plot.data.find(trace => trace.meta?.cloud !== undefined).type")
    assert kind == "scattergl"
    xs, ys = [p["x"] for p in every], [p["y"] for p in every]
    lasso(person, *np.quantile(xs, [0.1]), *np.quantile(ys, [0.1]), *np.quantile(xs, [0.9]), *np.quantile(ys, [0.9]))
    expect(person.at("project-summary")).to_contain_text(re.compile(r"1\d,\d{3} points"), timeout=PATIENCE)
    expect(person.at("project-summary")).to_contain_text("the CSV has them all")


def test_a_run_that_kept_nothing_is_traced_again(person, studio):
    facts = [{"prompt": "The capital of Peru is", "target": "Oslo"}]
    with studio.client() as client:
        run = client.predict(facts=facts, generate=0, keep=0, api_name="/apply")["run"]
    open_tab(person, run)
    expect(person.at("project-problem")).to_contain_text("kept nothing", timeout=PATIENCE)
    person.at("project-trace").click()
    expect(view(person)).to_have_attribute("data-drawn", re.compile(r"\d"), timeout=PATIENCE)
    with Store(studio.db) as store, safe_open(record_path(store, run), "np") as file:
        assert "M.0" in file.keys()
