"""The command line's progress bar hears Ctrl+C where nothing is half done."""

import os
import signal

import pytest
from rich.console import Console

from engine.errors import Cancelled
from studio.terminal import progress_bar

pytestmark = pytest.mark.skipif(os.name == "nt", reason="Windows has no SIGINT for another process.")


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


def test_a_second_interrupt_stops_at_once():
    with pytest.raises(KeyboardInterrupt), progress_bar(Console(quiet=True)):
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGINT)
        pytest.fail("went on")
