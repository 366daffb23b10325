"""Peak memory of a piece of work, and one named error for running out of it."""

import ctypes
import gc
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import psutil
import torch

from engine.errors import MemoryLimitError

SAMPLE_SECONDS = 0.01


class PeakMemory:
    """Context manager. `peak_bytes`: the most memory held inside; `start_bytes`: what was held on entry.

    On CUDA, bytes allocated on all devices; elsewhere the resident memory of this process, sampled every 10 ms.
    """

    def __init__(self, device: torch.device):
        self.cuda = device.type == "cuda"
        self.start_bytes = self.peak_bytes = 0

    def __enter__(self) -> "PeakMemory":
        if self.cuda:
            for index in range(torch.cuda.device_count()):
                torch.cuda.reset_peak_memory_stats(index)
            self.start_bytes = sum(torch.cuda.memory_allocated(i) for i in range(torch.cuda.device_count()))
            return self
        self._process = psutil.Process()
        self.start_bytes = self.peak_bytes = self._process.memory_info().rss
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._sample, daemon=True, name="peak-memory")
        self._thread.start()
        return self

    def _sample(self) -> None:
        while not self._stop.wait(SAMPLE_SECONDS):
            self.peak_bytes = max(self.peak_bytes, self._process.memory_info().rss)

    def __exit__(self, *_exception) -> None:
        if self.cuda:
            self.peak_bytes = sum(torch.cuda.max_memory_allocated(i) for i in range(torch.cuda.device_count()))
            return
        self._stop.set()
        self._thread.join()
        self.peak_bytes = max(self.peak_bytes, self._process.memory_info().rss)


@contextmanager
def memory_limit(what: str) -> Iterator[None]:
    """Turn running out of memory inside into a MemoryLimitError that says what to do."""
    try:
        yield
    except (MemoryError, torch.OutOfMemoryError, RuntimeError) as error:
        text = str(error)
        if isinstance(error, RuntimeError) and not isinstance(error, torch.OutOfMemoryError):
            if "allocate memory" not in text and "out of memory" not in text:
                raise
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        raise MemoryLimitError(
            f"{what} ran out of memory; the weights are the original ones. Edit fewer layers, shorten the longest "
            "prompts, close other programs, or choose a smaller model or another device."
        ) from error


def free_bytes(devices: Sequence[torch.device]) -> int:
    """What all these CUDA devices together can still hold, if it is spread as evenly as a model over them."""
    free = []
    for device in devices:
        kept = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)  # by torch, for what comes
        free.append(torch.cuda.mem_get_info(device)[0] + kept)
    return len(free) * min(free)


def settle(device: torch.device) -> None:
    """Give back to the system what nothing holds any more, so that a measurement begins where the last one did."""
    gc.collect()
    give_back(device)


def give_back(device: torch.device) -> None:
    """Give back to the system the memory that was freed: allocators keep it, and each thread's keeps its own."""
    if device.type == "cuda":
        torch.cuda.empty_cache()
    elif device.type == "mps":
        torch.mps.empty_cache()
    elif sys.platform == "linux":
        trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # glibc's: it keeps freed memory otherwise
        if trim is not None:
            trim(0)
