"""What the page says of a comparison: table, best values, plots, grid, outputs side by side; no text is markup."""

import re
from dataclasses import replace
from math import log10

import pytest

from engine.facts import Fact
from engine.metrics import Metric, Output
from studio.comparison_record import Answer, Line, Question, StoredComparison, Verdict
from studio.comparison_table import READINGS, cells, columns, figures, fronts, worth
from studio.comparisons import command_of
from studio.components import fact_grid
from studio.components.comparison_html import head_html, parts_html, protocols_html, sizes_html, table_html
from studio.components.comparison_plot import figures_of, memory_figure, pareto_figure, scores_figure, sweep_figure
from studio.components.fact_grid import DISAGREEMENT, FAILURES, GIVEN, detail_html, disagreement, grid_html, select

EVIL = "<script>alert(1)</script>"
FACTS = [Fact(f"Prompt {number}", "Rome") for number in range(4)]
TEXT = "exact+agreement"


def metrics(es: float, gs: float | None, ls: float) -> list[Metric]:
    found = [Metric("ES", "exact", es, 0.0, 4, max(0.0, es - 0.1), min(1.0, es + 0.05))]
    found += [Metric("ES", "token", es, 0.0, 4, es, es), Metric("LS", "agreement", ls, 1.0, 4, ls, ls)]
    if gs is not None:
        score = 3 / sum(1 / max(value, 1e-9) for value in (es, gs, ls))
        found += [Metric("GS", "exact", gs, 0.0, 4, gs, gs), Metric("Score", TEXT, score, 0.0, 4, score, score)]
    return found


def line(run: int, key: str, name: str, scores: tuple, seconds: float | None, size: int = 4, **more) -> Line:
    edited = {"seconds": seconds, "prepare_seconds": 0.5, "peak_memory_bytes": 9_000, "relative_norm": 0.01}
    given = {"status": "done", "error": "", "metrics": metrics(*scores)} | (edited if key else {}) | more
    return Line(run=run, key=key, name=name, method=key.partition(":")[0], n_facts=size, **given)


UNEDITED = line(10, "", "Unedited model", (0.01, 0.01, 1.0), None)
AGRADE = line(11, "agrade", "AGRADE", (1.0, 0.8, 0.9), 2.0, memory_bytes=300_000_000)
NO_C = line(12, "agrade:no-c", "AGRADE w/o adjustment c", (0.2, 0.2, 0.9), 1.0, memory_bytes=200_000_000)
MEMIT = line(13, "memit", "MEMIT", (1.0, 0.5, 0.4), 30.0, memory_bytes=250_000_000)
FAILED = Line(14, "lora", "LoRA", "lora", 4, "failed", f"out of memory {EVIL}", [])
ROW = {
    "id": 9, "title": f"{EVIL}: 4 facts by 4 methods", "status": "done", "error": "", "model": "embedded",
    "duration": 40.0, "started": "2026-11-23T10:00:00.000+00:00",
    "hparams": {
        "entries": [{"key": "agrade", "name": "AGRADE", "settings": {"step_scale": 0.0}, "hypernet": "/nets/a b"},
                    {"key": "memit", "name": "MEMIT", "settings": {"layers": "2-3", "seed": 0}, "hypernet": ""}],
        "sizes": [2], "generate": 8,
    },
}  # fmt: skip
COMPARISON = StoredComparison(9, ROW, FACTS, [UNEDITED, AGRADE, NO_C, MEMIT, FAILED], [], [])
SWEEP = [replace(one, run=one.run + 10, n_facts=2) for one in (UNEDITED, AGRADE, NO_C, MEMIT)]


# The table


def test_the_best_value_of_each_column_is_marked_and_the_unedited_model_never():
    best = [[cell.best for cell in own] for own in cells(COMPARISON.lines)]
    titles = [column.title for column in columns()]
    assert titles == ["ES", "GS", "LS", "Score", "Preparation", "Editing", "Memory", "‖Δθ‖/‖W‖"]
    assert best == [
        [False] * 8,
        [True, True, True, True, False, False, False, False],
        [False, False, True, False, False, True, True, False],  # LS as good as AGRADE's: both are best
        [True, False, False, False, False, False, False, False],
        [False] * 8,
    ]
    texts = [cell.text for cell in cells(COMPARISON.lines)[1]]
    assert texts == ["1.000", "0.800", "0.900", "0.893", "0.5", "50", "300", "0.01"]
    assert {cell.text for cell in cells(COMPARISON.lines)[4]} == {"–"}


def test_one_method_alone_is_not_called_the_best():
    assert not any(cell.best for cell in cells([UNEDITED, AGRADE])[1])


def test_where_all_methods_are_equal_none_is_the_best():
    equal = replace(AGRADE, run=99, key="malmen")
    assert not any(cell.best for own in cells([UNEDITED, AGRADE, equal]) for cell in own)


def test_without_equivalent_prompts_methods_are_ranked_by_es():
    assert worth(COMPARISON) == ("Score", TEXT)
    bare = [replace(one, metrics=metrics(0.5, None, 0.5)) for one in (UNEDITED, AGRADE)]
    assert worth(replace(COMPARISON, lines=bare)) == ("ES", "exact")


def test_the_front_is_what_is_neither_slower_nor_worse():
    assert [one.name for one in fronts(COMPARISON.edited, ("Score", TEXT))] == ["AGRADE w/o adjustment c", "AGRADE"]
    nothing = replace(AGRADE, seconds=0.1, metrics=[Metric("Score", TEXT, 0.0, 0.0, 4, None, None)])
    assert fronts([nothing], ("Score", TEXT)) == [], "to be fast is nothing where the Score is 0"


@pytest.mark.parametrize(
    ("value", "text"), [(0, "0"), (0.00001234, "1.2e-05"), (0.01234, "0.0123"), (1.5, "1.5"), (1234.5, "1,234")]
)
def test_figures_have_three_places_that_count(value, text):
    assert figures(value) == text


def test_a_preparation_of_microseconds_is_none():
    assert cells([replace(AGRADE, prepare_seconds=3.6e-05), MEMIT])[0][4].text == "0"


def test_the_tables_rows_are_escaped_and_the_unedited_model_is_the_last():
    html = table_html(replace(COMPARISON, waiting=[EVIL]), TEXT)
    assert "not begun" in html and "waiting" not in html  # the comparison is over
    assert EVIL not in html and "out of memory &lt;script&gt;" in html
    names = [name.strip() for name in re.findall(r'<th scope="row" class="name">([^<]*)', html)]
    waiting = "&lt;script&gt;alert(1)&lt;/script&gt;"
    assert names == ["AGRADE", "AGRADE w/o adjustment c", "MEMIT", "LoRA", waiting, "Unedited model"]
    assert html.count("on front</span>") == 2 and html.count("<b>") == 8


def test_the_sweeps_table_has_the_sizes_in_order_and_says_what_failed_at_one():
    failed = replace(FAILED, n_facts=1)
    html = sizes_html(replace(COMPARISON, sweep=[failed, *SWEEP]), TEXT)
    assert EVIL not in html and "out of memory &lt;script&gt;" in html
    assert re.findall(r'scope="rowgroup">([^<]*)', html) == ["1 fact", "2 facts"]
    names = [name.strip() for name in re.findall(r'<th scope="row" class="name">([^<]*)', html)]
    assert names == ["LoRA", "AGRADE", "AGRADE w/o adjustment c", "MEMIT", "Unedited model"]
    assert "on front" not in html and sizes_html(COMPARISON, TEXT) == ""


def test_every_protocol_stands_in_the_long_table():
    html = protocols_html(COMPARISON)
    assert re.findall(r'scope="colgroup">(\w+)', html) == ["ES", "GS", "LS", "Score"]
    assert 'colspan="2" scope="colgroup">ES' in html and "0.900 – 1.000" in html


def test_the_head_tells_the_state_what_failed_and_what_was_not_begun():
    row = ROW | {"status": "cancelled"}
    noted = replace(AGRADE, notes=[f"Left out {EVIL}"])
    html = head_html(replace(COMPARISON, row=row, waiting=["EMMET"], lines=[noted]))
    assert EVIL not in html and "cancelled" in html and "Not begun: EMMET" in html and "AGRADE: Left out" in html


def test_progress_shows_each_method_at_each_size_while_it_goes_on():
    running = replace(AGRADE, status="running")
    html = parts_html(replace(COMPARISON, row=ROW | {"status": "running"}, lines=[UNEDITED, running], sweep=[]))
    assert re.findall(r'class="part (\w+)"', html) == ["done", "running", "waiting", "waiting", "waiting", "waiting"]
    assert "4 facts" in html and "2 facts" in html
    assert parts_html(COMPARISON) == ""


# The plots


def test_bars_have_their_intervals():
    figure = scores_figure(COMPARISON)
    assert [bar.name for bar in figure.data] == ["ES", "GS", "LS", "Score"]
    bar = figure.data[0]
    assert list(bar.x) == ["Unedited model", "AGRADE", "AGRADE w/o adjustment c", "MEMIT"]
    assert list(bar.y) == [0.01, 1.0, 0.2, 1.0]
    assert list(bar.error_y.array) == pytest.approx([0.05, 0.0, 0.05, 0.0])
    assert list(bar.error_y.arrayminus) == pytest.approx([0.01, 0.1, 0.1, 0.1])


def test_where_no_interval_is_known_none_is_drawn_or_told():
    def unsure(one: Line) -> Line:
        return replace(one, metrics=[replace(metric, low=None, high=None) for metric in one.metrics])

    comparison = replace(COMPARISON, lines=[unsure(MEMIT), AGRADE], sweep=[unsure(SWEEP[3])])
    bars = scores_figure(comparison).data[0].error_y
    assert list(bars.array) == [None, pytest.approx(0.0)] and list(bars.arrayminus) == [None, pytest.approx(0.1)]
    assert next(one for one in pareto_figure(comparison).data if one.name == "MEMIT").error_y.array == (None,)
    swept = {one.name: one for one in sweep_figure(comparison).data if one.yaxis == "y"}
    assert swept["MEMIT"].customdata == ("", "") and "95 %" not in swept["MEMIT"].hovertemplate
    assert swept["AGRADE"].customdata == ("<br>95 % 0.893 – 0.893",)
    assert "<td>1.000<i>–</i></td>" in protocols_html(comparison)


def test_score_against_seconds_has_the_front_and_the_unedited_models_level():
    figure = pareto_figure(COMPARISON)
    front = figure.data[0]
    assert (front.name, list(front.x)) == ("Pareto front", [25.0, 50.0])
    assert {one.name: (one.x[0], round(one.y[0], 3)) for one in figure.data[1:]} == {
        "AGRADE": (50.0, 0.893), "AGRADE w/o adjustment c": (25.0, 0.27), "MEMIT": (750.0, 0.545)
    }  # fmt: skip
    assert figure.layout.xaxis.type == "log" and figure.layout.shapes[0].y0 == pytest.approx(0.0149, abs=1e-3)


def test_seconds_have_plain_numbers_on_a_logarithmic_axis():
    axis = pareto_figure(COMPARISON).layout.xaxis  # 25 to 750 s
    assert axis.type == "log" and {"20", "50", "100", "1,000"} <= set(axis.ticktext)
    alike = replace(COMPARISON, lines=[replace(one, seconds=seconds) for one, seconds in ((AGRADE, 2.7), (MEMIT, 2.44))])
    axis = pareto_figure(alike).layout.xaxis
    shown = [text for tick, text in zip(axis.tickvals, axis.ticktext) if axis.range[0] < log10(tick) < axis.range[1]]
    assert shown == ["50", "100"], "61 and 67.5 lie between two numbers that can be read"
    slow = replace(COMPARISON, lines=[replace(AGRADE, seconds=0.004), replace(MEMIT, seconds=400.0)])
    texts = pareto_figure(slow).layout.xaxis.ticktext
    assert {"0.1", "10,000"} <= set(texts) and not any("5" in one for one in texts), "over many decades only those"


def test_memory_is_above_the_loaded_model():
    bars = memory_figure(COMPARISON).data[0]
    assert dict(zip(bars.y, bars.x)) == {"AGRADE": 300.0, "AGRADE w/o adjustment c": 200.0, "MEMIT": 250.0}


def test_the_sweep_draws_score_and_seconds_over_the_sizes():
    assert sweep_figure(COMPARISON) is None
    figure = sweep_figure(replace(COMPARISON, sweep=SWEEP))
    scores = {one.name: (list(one.x), list(one.y)) for one in figure.data if one.yaxis == "y"}
    seconds = {one.name: list(one.y) for one in figure.data if one.yaxis == "y2"}
    assert set(scores) == {"Unedited model", "AGRADE", "AGRADE w/o adjustment c", "MEMIT"}
    assert scores["MEMIT"][0] == [2, 4] and seconds["MEMIT"] == [30.0, 30.0] and "Unedited model" not in seconds


def test_a_method_has_one_colour_everywhere_and_its_ablations_another_shape():
    marks = {one.name: (one.marker.color, one.marker.symbol) for one in pareto_figure(COMPARISON).data[1:]}
    bars = memory_figure(COMPARISON).data[0]
    assert dict(zip(bars.y, bars.marker.color)) == {name: color for name, (color, _) in marks.items()}
    assert marks["AGRADE"][0] == marks["AGRADE w/o adjustment c"][0] != marks["MEMIT"][0]
    assert marks["AGRADE"][1] != marks["AGRADE w/o adjustment c"][1]


@pytest.mark.parametrize("reading", READINGS)
def test_nothing_done_is_nothing_drawn(reading):
    assert figures_of(replace(COMPARISON, lines=[FAILED]), reading) == {}
    assert set(figures_of(replace(COMPARISON, lines=[UNEDITED, FAILED]), reading)) == {"scores"}


# The grid


def verdicts(*shares: tuple[float, ...]) -> dict:
    """Run 11, 12, …: for each the share of success on the editing prompt of each fact."""
    return {
        11 + number: {place: {"edit": Verdict(good, 1)} for place, good in enumerate(own)}
        for number, own in enumerate(shares)
    }


LINES = [AGRADE, NO_C, MEMIT]
SPLIT = verdicts((1, 1, 0, 1), (1, 0, 0, 1), (1, 0, 0, 0))


def test_disagreement_is_0_where_all_agree_and_1_where_they_are_split_in_halves():
    assert disagreement(LINES, SPLIT, 0) == disagreement(LINES, SPLIT, 2) == 0
    assert disagreement(LINES, SPLIT, 1) == disagreement(LINES, SPLIT, 3) == pytest.approx(8 / 9)
    assert disagreement(LINES[:2], SPLIT, 1) == 1
    assert disagreement(LINES, {}, 0) == 0
    partly = {11: {0: {"equivalent": Verdict(1, 2)}}, 12: {0: {"equivalent": Verdict(1, 2)}}}
    assert disagreement(LINES[:2], partly, 0) == 0, "both fail alike"


@pytest.mark.parametrize(
    ("order", "places"), [(DISAGREEMENT, [1, 3, 0, 2]), (GIVEN, [0, 1, 2, 3]), (FAILURES, [2, 1, 3, 0])]
)
def test_facts_are_sorted(order, places):
    assert select(FACTS, LINES, SPLIT, order).places == places


def test_pages_hold_forty_facts_and_the_last_one_the_rest():
    many = [Fact(str(number), "t") for number in range(95)]
    pages = [select(many, LINES, {}, GIVEN, number) for number in (0, 2, 9)]
    assert [(page.number, page.count, len(page.places)) for page in pages] == [(1, 3, 40), (2, 3, 40), (3, 3, 15)]


def test_the_grid_has_a_row_a_fact_and_ticks_for_each_method():
    facts = [Fact(EVIL, EVIL, row=7), *FACTS[1:]]
    own = {11: {0: {"edit": Verdict(1, 1), "equivalent": Verdict(1, 2), "unrelated": Verdict(2, 2)}}}
    html = grid_html(select(facts, LINES, own, GIVEN), facts, LINES, own, chosen=0)
    assert EVIL not in html and "7. &lt;script&gt;" in html
    first = html.split("<tr data-fact=")[1]
    assert first.startswith('"0" class=chosen')
    marks = [("good" in one, "bad" in one) for one in first.split("tick ")[1:4]]
    assert marks == [(True, False), (False, True), (True, False)]
    assert 'title="Equivalent: 1 of 2"' in first and 'title="Equivalent: no such prompt"' in first
    assert len(re.findall("<tr data-fact=", html)) == 4


def test_a_grid_without_outputs_says_what_will_be_there():
    assert "No outputs yet" in grid_html(select([], [], {}, GIVEN), [], [], {}, None)


def test_a_facts_outputs_stand_side_by_side_under_every_method():
    answers = {
        10: Answer(Output("Paris", "Paris, France"), {"exact": 0.0, "token": 0.0, "generated": 0.0}),
        11: Answer(Output("Rome", "Rome it is"), {"exact": 1.0, "token": 1.0, "generated": 1.0}),
        13: Answer(Output(f"Ro{EVIL}"), {"exact": 0.0, "token": 0.5, "generated": None}),
    }
    locality = {
        10: Answer(Output("Danube"), {"agreement": 1.0, "label": None}),
        11: Answer(Output("Po"), {"agreement": 0.0, "label": None}),
    }
    questions = [
        Question("edit", EVIL, "Rome", answers),
        Question("unrelated", "The river is", "Danube", locality),
    ]
    html = detail_html(FACTS[0], 0, [UNEDITED, AGRADE, NO_C, MEMIT], questions)
    assert EVIL not in html
    rows = html.split('<th scope="row">')[1:]
    assert [row.split("<")[0] for row in rows] == ["Unedited model", "AGRADE", "AGRADE w/o adjustment c", "MEMIT"]
    assert "Paris, France" in rows[0] and "tick bad" in rows[0]
    assert "tick none" in rows[0], "the unedited model has nothing to agree with but itself"
    assert "<b>Rome</b> it is" in rows[1] and "tick good" in rows[1] and "Po" in rows[1] and "tick bad" in rows[1]
    assert rows[2].count("<td>–</td>") == 2
    assert "tokens 0.500" in rows[3] and "not generated" in rows[3]


# The command


def test_the_command_names_what_differs_from_the_defaults():
    assert command_of(ROW["hparams"], "embedded", "my facts.csv") == (
        "python app.py compare 'my facts.csv' --methods agrade,memit --sizes 2 --generate 8 --hypernet '/nets/a b' "
        "--set memit.layers=2-3"
    )
    bare = {"entries": [{"key": "agrade:no-c", "settings": {"coefficient": False}, "hypernet": ""}], "generate": 64}
    loaded = {"module_pattern": "h.{}.mlp", "device": "cuda:1", "dtype": "float16"}
    assert command_of(bare | loaded, "embedded", "f.csv").endswith(
        "--module-pattern 'h.{}.mlp' --device cuda:1 --dtype float16"
    )
    assert command_of(bare, "some/model", "f.csv") == (
        "python app.py compare f.csv --methods agrade:no-c --set agrade.coefficient=false --model some/model"
    )


def test_grid_letters_cover_every_kind():
    assert list(fact_grid.LETTERS) == ["edit", "equivalent", "unrelated"]
