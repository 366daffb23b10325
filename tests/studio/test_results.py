"""What the result pages write: cards, protocols, case study, probe, bar, estimate; and that nobody's text is markup."""

from dataclasses import replace
from html.parser import HTMLParser
from types import SimpleNamespace

import gradio as gr
import pytest
import torch

from engine.facts import Fact
from engine.generation import Probe, ProbeSide
from engine.metrics import Instance, Metric, Output
from engine.placement import Placement
from engine.work import Work
from studio.components.case_study import (
    FAILED,
    PAGE_ROWS,
    PASSED,
    Filter,
    case_study_html,
    page_text,
    select,
    succeeded,
)
from studio.components.case_table import CaseTable
from studio.components.markup import LONGEST, clipped, gigabytes, note, seconds, span, tick
from studio.components.metric_cards import cards_html, metrics_html
from studio.components.probe_view import probe_html
from studio.components.progress_bar import bar_html
from studio.components.result_summary import _figures
from studio.estimate import STEP_TOKENS, editing_bytes, scoring, seconds_of
from studio.jobs import Job, Snapshot

EVIL = '<img src=x onerror="alert(1)"> ${alert(2)} {{x}} \' " &'


class Texts(HTMLParser):
    """Tags, attributes by name, and text as a browser would see them."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.attributes: dict[str, list[str]] = {}
        self.text: list[str] = []
        self.feed(html)

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        for name, value in attrs:
            self.attributes.setdefault(name, []).append(value)

    def handle_data(self, data):
        self.text.append(data)


def instance(fact: int, kind: str, good: bool, prompt: str = "A is", said: str | None = None) -> Instance:
    main = "agreement" if kind == "unrelated" else "exact"
    success = {main: float(good), "token" if main == "exact" else "label": 0.5, "generated": None}
    return Instance(fact, kind, prompt, "b", Output("x", None), Output("b" if good else "c", said), success, success)


def facts(count: int) -> list[Fact]:
    return [Fact(f"Prompt {number}", "b", subject=f"Subject {number}", row=number + 1) for number in range(count)]


def snapshot(**changes) -> Snapshot:
    """A running job as it would be seen."""
    return replace(Job("Edit 2 facts", lambda job: None, "m", "w").snapshot(), **{"state": "running", **changes})


def test_facts_with_a_failure_come_first_and_their_instances_stay_together():
    instances = [
        instance(0, "edit", True),
        instance(1, "edit", True),
        instance(1, "unrelated", True),
        instance(1, "equivalent", False),
        instance(2, "edit", False),
    ]
    page = select(instances, facts(3), Filter())
    assert [(one.fact, one.kind) for one in page.instances] == [
        (1, "edit"), (1, "equivalent"), (1, "unrelated"), (2, "edit"), (0, "edit"),
    ]  # fmt: skip


def test_type_outcome_and_words_choose_the_instances():
    instances = [
        instance(0, "edit", True),
        instance(0, "equivalent", False, "Berlin is"),
        instance(1, "unrelated", False),
        instance(1, "edit", True, said="the WORD comes"),
    ]

    def chosen(**by: str) -> list[tuple[int, str]]:
        return [(one.fact, one.kind) for one in select(instances, facts(2), Filter(**by)).instances]

    assert chosen(kind="Editing") == [(0, "edit"), (1, "edit")]
    assert chosen(outcome=FAILED) == [(0, "equivalent"), (1, "unrelated")]
    assert chosen(outcome=PASSED) == [(0, "edit"), (1, "edit")]
    assert chosen(search="  berlin ") == [(0, "equivalent")]
    assert chosen(search="word the") == [(1, "edit")]
    assert chosen(search="subject 1") == [(1, "edit"), (1, "unrelated")]
    assert chosen(search="nowhere") == []


def test_pages_are_full_and_one_too_far_is_the_last():
    instances = [instance(number, "edit", True) for number in range(2 * PAGE_ROWS + 1)]
    first, last = (select(instances, facts(len(instances)), Filter(), number) for number in (1, 99))
    assert len(first.instances) == PAGE_ROWS and (last.number, last.count, len(last.instances)) == (3, 3, 1)
    assert page_text(first) == "1–50 of 101 instances, page 1 of 3"
    assert page_text(last) == "101–101 of 101 instances, page 3 of 3"
    assert [page_text(select(instances[:n], facts(n), Filter())) for n in (1, 2)] == ["1 instance", "1–2 of 2 instances"]
    none = select([], [], Filter())
    assert (none.number, none.count, page_text(none)) == (1, 1, "no instance")
    assert "No instance fits" in case_study_html(none, [])


def test_a_case_is_a_row_as_in_table_4_with_generated_text_and_argmax():
    one = replace(instance(0, "edit", True), before=Output("Paris", "Paris.\n\nIt"), after=Output("b", "b, and so on"))
    seen = Texts(case_study_html(select([one], facts(1), Filter()), facts(1)))
    text = " ".join(seen.text)
    for said in ("Editing", "A is", "Paris. ↵ It", "Paris", ", and so on", "✓", "exact", "token 0.50"):
        assert said in text, said
    assert seen.attributes["data-prompt"] == ["A is"]
    assert "b" in seen.tags, "the target is emphasised where the model says it"
    assert "not generated" in case_study_html(select([instance(0, "edit", True)], facts(1), Filter()), facts(1))


def test_success_is_the_headlines_protocol():
    assert succeeded(instance(0, "edit", True)) and not succeeded(instance(0, "unrelated", False))
    assert "✗" in tick(False) and 'aria-label="failure"' in tick(False) and "–" in tick(None)


@pytest.mark.parametrize("kind", ["edit", "equivalent", "unrelated"])
def test_nobodys_text_becomes_markup(kind):
    one = replace(
        instance(0, kind, True, EVIL), target=EVIL, before=Output(EVIL, EVIL), after=Output(EVIL, EVIL + EVIL)
    )
    told = [Fact(EVIL, EVIL, subject=EVIL, row=1)]
    seen = Texts(case_study_html(select([one], told, Filter()), told))
    assert "img" not in seen.tags and "onerror" not in seen.attributes
    assert seen.attributes["data-prompt"] == [EVIL]
    probe = Probe(ProbeSide(EVIL, [(EVIL, 0.5)]), ProbeSide(EVIL, [(EVIL, 1.0)]))
    for html in (probe_html(EVIL, probe, EVIL), note("error", EVIL, [EVIL]), bar_html(snapshot(stage=EVIL))):
        assert "img" not in Texts(html).tags, html


def test_a_text_beyond_all_measure_is_cut():
    assert len(Texts(clipped("a" * 100_000)).text[0]) == LONGEST + 1


METRICS = [
    Metric("ES", "exact", 0.98, 0.0, 54, 0.902, 0.997),
    Metric("ES", "token", 0.99, 0.1, 54, 0.95, 1.0),
    Metric("LS", "agreement", 0.7, 1.0, 1, 0.6, 0.8),
]


def test_the_cards_name_value_before_protocol_interval_and_count():
    html = cards_html(METRICS)
    text = " ".join(Texts(html).text)
    for said in ("0.000 →", "0.980", "exact", "95 % 0.902 – 0.997 · 54 editing prompts", "1 unrelated prompt"):
        assert said in text, said
    assert Texts(html).attributes["data-metric"] == ["ES", "GS", "LS", "Score"]
    assert "no interval known · 1 fact" in cards_html([Metric("Score", "exact+agreement", 0.7, 0.0, 1, None, None)])
    assert "no equivalent prompts" in text and "needs equivalent and unrelated prompts" in text


def test_the_protocols_are_all_listed_the_headlines_marked():
    html = metrics_html([*METRICS, Metric("GS", "generated", None, None, 0, None, None)])
    assert html.count("<tr") == 5 and html.count("class=best") == 2
    assert "0.950 – 1.000" in html and "<td>–</td><td>–</td><td>–</td><td>0</td>" in html


def test_a_probe_shows_both_sides_with_five_bars_and_visible_spaces():
    side = ProbeSide(" Rome.", [(" Rome", 0.5), ("\n", 0.25), ("", 0.1), ("a", 0.05), ("b", 0.001)])
    html = probe_html("The capital is", Probe(side, side), "edited: 2 facts by AGRADE")
    assert html.count('class="chance"') == 10
    for said in ("␣Rome", "↵", "(empty)", "50.0%", "0.1%", "After: edited: 2 facts by AGRADE"):
        assert said in html, said
    assert probe_html("x", Probe(side, None), "").count('class="chance"') == 5
    flat = probe_html("x", Probe(ProbeSide("y", [("a", 0.0006), ("b", 0.0004), ("c", 0.0)]), None), "")
    assert [flat.count(said) for said in ("<td>0.1%</td>", "<td>&lt;0.1%</td>", "<td>0.0%</td>")] == [1, 2, 0]


def test_the_bar_tells_stage_count_share_and_time_left():
    html = bar_html(snapshot(stage="Scoring", done=250, total=1000, eta=12.4, seconds=4.0))
    text = " ".join(Texts(html).text)
    assert "Scoring · 250 of 1,000" in text and "25% · 12 s left · 4.0 s so far" in text
    assert Texts(html).attributes["aria-valuenow"] == ["25"]
    assert "Cancelling" in bar_html(snapshot(cancelling=True, stage="Scoring", done=1, total=2))
    assert "2 in the queue" in bar_html(snapshot(state="queued", position=2))
    assert "aria-valuenow" not in bar_html(snapshot())
    for stage in ("Downloading the model", "Packing the edited model"):
        assert "9 MB of 93 MB" in bar_html(snapshot(stage=stage, done=9_000_000, total=93_000_000))
    assert [bar_html(snapshot(state=state)) for state in ("done", "failed", "cancelled")] == [""] * 3


@pytest.mark.parametrize(
    ("length", "said"), [(0.04, "0.0 s"), (9.94, "9.9 s"), (12.3, "12 s"), (150, "2 min"), (7200, "2 h 0 min")]
)
def test_times_are_rounded_to_what_matters(length, said):
    assert seconds(length) == said


def test_one_of_one_is_not_counted_twice():
    assert (span(1, 1, 1, "run"), span(26, 26, 26, "run")) == ("1 run", "26–26 of 26 runs")
    assert span(1, 25, 1030, "fact") == "1–25 of 1,030 facts"


def test_commands_in_messages_stand_as_code():
    html = note("error", "There is none.", ["Train one with `python app.py train <facts>`; one ` alone stays."])
    assert "<code>python app.py train &lt;facts&gt;</code>; one ` alone stays." in html


def test_memory_is_told_in_decimal_units():
    assert (gigabytes(64_000_000), gigabytes(1_420_000_000)) == ("64 MB", "1.42 GB")


def modelled(**changes) -> SimpleNamespace:
    """What the estimate asks a model for: ten layers of width 64, the last four edited, on a CPU."""
    config = SimpleNamespace(num_attention_heads=4, num_key_value_heads=2)
    told = {"layer_count": 10, "width": 64, "context": 2048, "config": config, "dtype": torch.float32}
    told["placement"] = Placement(torch.device("cpu"), torch.float32, "")
    told["first_pass"] = SimpleNamespace(masks_padding=True)
    told |= {"chunk_tokens": lambda layer: 512, "activation_bytes": lambda layer: 20 * 64 * 4 * (10 - layer)}
    return SimpleNamespace(**told | changes)


def test_scoring_runs_the_trunk_once_and_the_edited_layers_twice_and_writes_before_and_after():
    fact = Fact("a" * 21, "b" * 21, ("c" * 21,), (("d" * 42, ""),))
    read = scoring(modelled(), [fact, fact], generate=0, first=6)
    assert read.forward == pytest.approx(60 * (6 + 2 * 4)) and read.steps == 0
    written = scoring(modelled(), [fact, fact], generate=1, first=6)
    assert written.forward - read.forward == pytest.approx(2 * 3 * (10 + 8) * 10), "three prompts as wide as the widest"
    assert written.steps == 8, "three prompts go in one batch, eight steps, before and after together"
    long_answer = scoring(modelled(), [replace(fact, target="b" * 84)], generate=1, first=6)
    assert long_answer.steps == 20 and scoring(modelled(), [replace(fact, target="b" * 999)], 1, 6).steps == 64


def test_one_long_prompt_costs_its_own_length_and_no_other_prompts():
    short, long = [Fact("a" * 42, "b", ("c" * 42,) * 3)] * 8, Fact("a" * 4200, "b")
    plain, more = (scoring(modelled(), facts, generate=9, first=6) for facts in (short, [*short, long]))
    assert more.forward - plain.forward == pytest.approx(1000 * (6 + 2 * 4) + 2 * (1000 + 8) * 10, rel=1e-3)
    assert more.steps == plain.steps + 8
    layers = 2 * 10 + 6 + 2 * 4  # generated before and after, scored
    assert more.operations - plain.operations == pytest.approx(2.5 * 4 * 1000**2 * 64 * layers, rel=1e-3)


def test_a_long_prompt_takes_the_memory_of_its_attention():
    short, long = Fact("a" * 42, "b"), Fact("a" * 8400, "b")
    assert editing_bytes(modelled(), [short], 6) == pytest.approx(512 * 20 * 64 * 4 * 4, rel=0.1)
    scores = 4 * 2000**2 * 4
    assert editing_bytes(modelled(), [short, long], 6) == pytest.approx(2000 * 20 * 64 * 4 * 4 + 8 * scores, rel=1e-2)
    cache = 2 * 10 * 2 * 2008 * 32 * 4
    held = scoring(modelled(), [short, long], generate=2, first=6).bytes
    assert held == pytest.approx(2 * 2000 * 20 * 64 * 4 + 2 * 4 * scores + cache, rel=1e-2)
    flash = Placement(torch.device("cuda"), torch.float32, "", attention="sdpa")
    held = scoring(modelled(placement=flash), [short, long], generate=2, first=6).bytes
    assert held == pytest.approx(2 * 2000 * 20 * 64 * 4 + cache, rel=1e-2)


def test_seconds_come_from_tokens_through_all_layers_steps_and_operations():
    assert seconds_of(Work(forward=30), 0.1, 10, 10**6) == pytest.approx(0.3)
    assert seconds_of(Work(backward=30), 0.1, 10, 10**6) == pytest.approx(0.3), "no gradient of the weights"
    assert seconds_of(Work(steps=3), 0.1, 10, 10**6) == pytest.approx(0.3 * STEP_TOKENS)
    assert seconds_of(Work(operations=4e6), 0.1, 10, 10**6) == pytest.approx(0.2)


@pytest.mark.parametrize(
    ("column", "cells"),
    [
        ([48.131, 144.7, 61.0], ["48.13", "144.70", "61.00"]),
        ([1.0, 0.98331, None], ["1.0000", "0.9833", "–"]),
        ([12.3, 0.004], ["12.3", "0.004"]),
        ([7.7e-7, 3e-6], ["7.7e-07", "3e-06"]),
        ([1e12, 3.0], ["1e+12", "3"]),
        ([float("nan"), 0.5, 0.0], ["nan", "0.5000", "0.0000"]),
        ([3, "a"], ["3", "a"]),
    ],
)
def test_a_columns_figures_have_the_same_places_where_all_are_seen_so(column, cells):
    assert _figures(column) == cells


def test_a_page_of_cases_tells_how_far_the_generated_texts_go():
    with gr.Blocks():
        table = CaseTable("x-", asks=False)
    instances = [Instance(n, "edit", "p", "t", Output("a"), Output("b"), {"exact": 1.0}, {"exact": 0.0}) for n in range(3)]
    facts = [Fact("p", "t")] * 3
    assert "generated" not in table.show(instances, facts)[table.place], "none was asked for"
    instances[0] = replace(instances[0], after=Output("b", "b it is"))
    assert "generated texts for the first 1 fact<" in table.show(instances, facts)[table.place]
