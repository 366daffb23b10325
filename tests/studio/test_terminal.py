"""The command line's progress bar hears Ctrl+C where nothing is half done; its tables show texts as they are."""

import os
import signal
from io import StringIO
from types import SimpleNamespace

import pytest
from rich.console import Console

import app
from engine.errors import Cancelled
from engine.metrics import Instance, Metric, Outcome, Output
from studio.comparison_record import Line
from studio.terminal import case_table, progress_bar, show_edit, show_lines, show_metrics, show_part, show_trials

posix = pytest.mark.skipif(os.name == "nt", reason="Windows has no SIGINT for another process.")


@posix
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupt_waits_for_the_next_report(number):
    before, done = signal.getsignal(number), []
    with pytest.raises(Cancelled), progress_bar(Console(quiet=True)) as report:
        report("Work", 0, 2)
        os.kill(os.getpid(), number)
        done.append("what was begun")
        report("Work", 1, 2)
        done.append("what was not")
    assert done == ["what was begun"]
    assert signal.getsignal(number) is before


@posix
def test_a_second_interrupt_stops_at_once():
    with pytest.raises(KeyboardInterrupt), progress_bar(Console(quiet=True)):
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGINT)
        pytest.fail("went on")


TEXTS = (r"The sum \[x+1\] equals", r"After \[/INST] comes", "[bold]Rome[/bold] [/]", ":smile: [red]")


def printed(*things, console: Console | None = None) -> str:
    console = console or Console(width=200)
    with console.capture() as caught:
        for thing in things:
            console.print(thing)
    return caught.get()


def shown(show, *given, width: int = 200) -> str:
    with (console := Console(width=width)).capture() as caught:
        show(console, *given)
    return caught.get()


@pytest.mark.parametrize("text", TEXTS)
def test_texts_and_names_are_printed_as_they_are(text):
    said = Output(text)
    instance = Instance(0, "edit", text, text, said, said, {"exact": 1.0}, {"exact": 0.0})
    run = SimpleNamespace(method="ft", model=text, n_facts=1, outcome=Outcome([instance], []))
    line = Line(1, "ft", text, "ft", 1, "done", "", [])
    trial = SimpleNamespace(settings={"layers": text}, error="", rank=0, mean=lambda name: None)
    assert printed(case_table(run, 1)).count(text) == 4
    assert shown(show_metrics, run).count(text) == 1 and shown(show_lines, [line], text).count(text) == 2
    assert shown(show_trials, text, [trial]).count(text) == 2
    assert printed(text, console=app.console).strip() == text


def test_an_output_that_begins_with_a_line_break_is_seen_and_one_not_generated_is_marked():
    instances = [
        Instance(0, "edit", "p", "t", Output("x", "\nA: Rome\n\nB"), Output("y", " "), {"exact": 1.0}, {"exact": 0.0}),
        Instance(1, "edit", "q", "t", Output("forced"), Output("t", "t"), {"exact": 1.0}, {"exact": 0.0}),
    ]
    run = SimpleNamespace(method="ft", model="m", n_facts=2, outcome=Outcome(instances, []))
    text = printed(case_table(run, 2))
    assert "↵ A: Rome ↵ B" in text and "(blank)" in text and "forced †" in text and "† teacher-forced argmax" in text
    assert "†" not in printed(case_table(run, 1))


def test_off_a_terminal_the_progress_bar_prints_nothing():
    console = Console(width=200, file=(written := StringIO()))
    with progress_bar(console) as report:
        report("Work", 0, 2)
        report("Work", 2, 2)
    assert written.getvalue() == ""


FIGURES = {"prepare_seconds": 7.77, "seconds": 0.9876, "peak_memory_bytes": 0, "memory_bytes": 12_345e6}


@pytest.mark.parametrize("width", [40, 80])
def test_no_figure_is_cut_on_a_narrow_console(width):
    metrics = [Metric("Score", "exact+agreement", 0.123, 0.456, 64, 0.101, 0.202)]
    instance = Instance(99, "edit", "p", "t", Output("b"), Output("a"), {"exact": 1.0}, {"exact": 0.0})
    run = SimpleNamespace(method="ft", model="m", n_facts=100, outcome=Outcome([instance], metrics))
    for text in (shown(show_metrics, run, width=width), printed(case_table(run, 1), console=Console(width=width))):
        assert "…" not in text
    for figure in ("0.123", "0.456", "0.101 – 0.202", "64"):
        assert figure in shown(show_metrics, run, width=width)
    metrics = [Metric(name, "exact", value, 0.0, 64, 0.1, 0.2) for name, value in (("ES", 0.123), ("GS", 0.456))]
    metrics += [Metric("LS", "agreement", 0.789, 1.0, 64, 0.1, 0.2), metrics[0]]
    lines = [Line(1, "ft", "AGRADE w/o weights projection", "ft", 100, "done", "", metrics, relative_norm=1.5e-7, **FIGURES)]
    text = shown(show_lines, lines, "Two", width=width)
    for figure in ("0.123", "0.456", "0.789", "7.77", "0.988", "12,345", "1.5e-07"):
        assert figure in text
    trial = SimpleNamespace(settings={"layers": "18-23"}, error="", rank=0, mean=lambda name: 0.987)
    text = shown(show_trials, "Trials", [trial], width=width)
    assert "…" not in text and text.count("0.987") == 4


def test_one_fact_is_one_fact():
    step = SimpleNamespace(name="UltraEdit", n_facts=1)
    assert shown(show_part, step, SimpleNamespace(outcome=None, error="no")) == "UltraEdit, 1 fact: no\n"
    delta = SimpleNamespace(norm=1.0)
    figures = {"seconds": 1.0, "score_seconds": 1.0, "peak_memory_bytes": 1, "delta": delta, "notes": ()}
    run = SimpleNamespace(method="ft", model="m", n_facts=1, outcome=Outcome([], []), **figures)
    assert "\n1 fact edited in 1.00 s" in shown(show_edit, run)
