"""Computing for the page: in a thread of its own, that ends with it."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import ParamSpec, TypeVar

Given = ParamSpec("Given")
Found = TypeVar("Found")


def in_own_thread(work: Callable[Given, Found], *given: Given.args, **named: Given.kwargs) -> Found:
    """`work(*given, **named)`, in a thread that ends with it; raises what it raises.

    OpenMP keeps threads for every thread that ever computed. The page's handlers run in threads that stay, and once
    there are more of them than processors, all of them sleep where they used to spin: an edit in a job then takes
    1.4 to 1.8 times as long.
    """
    with ThreadPoolExecutor(max_workers=1, thread_name_prefix="computing") as pool:
        return pool.submit(work, *given, **named).result()
