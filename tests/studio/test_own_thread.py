"""What is computed for the page leaves no thread behind, neither its own nor OpenMP's."""

import os
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from engine.errors import FactError
from studio.own_thread import in_own_thread

PROCESSORS = len(os.sched_getaffinity(0)) if sys.platform == "linux" else 0


def system_threads() -> int:
    return len(os.listdir("/proc/self/task"))


def soon(holds: Callable[[], bool]) -> bool:
    """A thread that has ended is gone a moment later."""
    for _ in range(200):
        if holds():
            return True
        time.sleep(0.02)
    return False


@pytest.fixture
def two_threads() -> Iterator[None]:
    """OpenMP has a thread of its own."""
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


@pytest.mark.skipif(sys.platform != "linux", reason="The system's threads are counted in /proc.")
@pytest.mark.skipif(PROCESSORS < 2, reason="OpenMP has no threads of its own on one processor.")
def test_computing_leaves_no_thread_behind(two_threads):
    """A handler's thread stays, as the page's do; a large matrix makes OpenMP start threads for whoever multiplies it."""
    large = torch.ones(400, 400)
    with ThreadPoolExecutor(1) as page:
        page.submit(int).result()
        before = system_threads()
        for _ in range(3):
            assert page.submit(in_own_thread, torch.matmul, large, large).result()[0, 0] == 400
        assert soon(lambda: system_threads() == before)
        page.submit(torch.matmul, large, large).result()
        assert system_threads() > before, "OpenMP kept no thread: what is this test for?"


def test_what_the_work_returns_and_raises_comes_back():
    assert in_own_thread(divmod, 7, 3) == (2, 1)
    assert in_own_thread(threading.current_thread) is not threading.current_thread()

    def refuse(*, row: int):
        raise FactError(f"Row {row} is blank.")

    with pytest.raises(FactError, match="Row 4"):
        in_own_thread(refuse, row=4)
