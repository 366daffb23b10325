"""Which process is at work on a run, told apart from a later one that got the same number."""

import os

import psutil

# Setting the system's clock moves the start time that a running process reports.
CLOCK_TOLERANCE = 2.0


def this_process() -> tuple[int, float]:
    """This process's number, and when it started (seconds since 1970)."""
    return os.getpid(), psutil.Process().create_time()


def is_alive(pid: int, started: float) -> bool:
    """Whether the process of that number is still the one that started then."""
    try:
        process = psutil.Process(pid)
        return process.status() != psutil.STATUS_ZOMBIE and abs(process.create_time() - started) < CLOCK_TOLERANCE
    except psutil.NoSuchProcess:
        return False
    except psutil.AccessDenied:
        return True
