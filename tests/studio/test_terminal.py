"""The command line's progress bar hears Ctrl+C where nothing is half done; its tables show texts as they are."""

import os
import signal
from types import SimpleNamespace

import pytest
from rich.console import Console

import app
from engine.errors import Cancelled
from engine.metrics import Instance, Outcome, Output
from studio.comparison_record import Line
from studio.terminal import case_table, comparison_table, metric_table, progress_bar, show_trials

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


@pytest.mark.parametrize("text", TEXTS)
def test_texts_and_names_are_printed_as_they_are(text):
    said = Output(text)
    instance = Instance(0, "edit", text, text, said, said, {"exact": 1.0}, {"exact": 0.0})
    run = SimpleNamespace(method="ft", model=text, n_facts=1, outcome=Outcome([instance], []))
    line = Line(1, "ft", text, "ft", 1, "done", "", [])
    trial = SimpleNamespace(settings={"layers": text}, error="", rank=0, mean=lambda name: None)
    assert printed(case_table(run, 1)).count(text) == 4
    assert printed(metric_table(run)).count(text) == 1 and printed(comparison_table([line], text)).count(text) == 2
    with (console := Console(width=200)).capture() as caught:
        show_trials(console, text, [trial])
    assert caught.get().count(text) == 2
    assert printed(text, console=app.console).strip() == text
