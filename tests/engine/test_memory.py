"""What an edit holds does not grow with the number of facts, and running out of memory has one named error."""

import gc
import time

import numpy as np
import pytest
import torch

from engine import statistics
from engine.errors import MemoryLimitError
from engine.facts import Fact
from engine.memory import PeakMemory, memory_limit
from engine.statistics import EditSums
from tests.engine.test_editors import LEARNED, chunked, make


@pytest.fixture
def only_new_objects():
    """`gc.get_objects` leaves out what was alive before the test."""
    gc.collect()
    gc.freeze()
    yield
    gc.unfreeze()


def tensor_bytes() -> int:
    """Bytes of all tensors alive that the test made, each storage once."""
    storages = {}
    for item in gc.get_objects():
        if issubclass(type(item), torch.Tensor):
            storage = item.untyped_storage()
            storages[storage.data_ptr()] = storage.nbytes()
    return sum(storages.values())


def many(count: int) -> list[Fact]:
    return [Fact(f"The river number {index} in Ulm is the", f"Iller {index}") for index in range(count)]


@pytest.mark.parametrize("projection", statistics.PROJECTIONS)
def test_sums_hold_the_same_for_any_number_of_rows(projection, monkeypatch, only_new_objects):
    monkeypatch.setattr(statistics, "FLUSH_ROWS", 64)
    held = {}
    for chunks in (20, 500):
        peak = 0
        sums = EditSums([(24, 16)] * 4, projection)
        for _ in range(chunks):
            sums.add([torch.randn(10, 24) for _ in range(4)], [torch.randn(10, 16) for _ in range(4)])
            peak = max(peak, tensor_bytes())
        assert sums.rows == 10 * chunks
        held[chunks] = peak
        del sums
    assert 0 < held[500] <= held[20]


@pytest.mark.parametrize("projection", statistics.PROJECTIONS)
def test_few_rows_are_solved_without_a_matrix_as_wide_as_the_keys(projection):
    rows, d_h = 12, 4000
    sums = EditSums([(d_h, 16)] * 3, projection)
    for part in (5, 7):
        sums.add([torch.randn(part, d_h) for _ in range(3)], [torch.randn(part, 16) for _ in range(3)])
    solution = sums.solve(torch.zeros(3))
    assert sums.held_bytes == 4 * 3 * rows * (d_h + 16)
    for l in range(3):
        keys, gradients = sums.few_rows(l, solution.mixture[l])
        left = keys.T @ (keys @ solution.shifts[l]) + solution.shifts[l]
        torch.testing.assert_close(left, keys.T @ gradients, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", LEARNED)
def test_edit_holds_the_same_for_any_number_of_facts(tiny_model, name, monkeypatch, request):
    """The peak over all chunks of the tensors alive, for 50 facts and for 800."""
    monkeypatch.setattr(statistics, "FLUSH_ROWS", 128)
    model = chunked(tiny_model("llama"), 400)
    editor = make(name, model)
    editor.edit(model, many(50))
    request.getfixturevalue("only_new_objects")
    held = {}
    for count in (50, 800):
        sizes = []

        def watch(_stage, _done, _total, sizes=sizes):
            sizes.append(tensor_bytes())

        editor.edit(model, many(count), watch)
        assert len(sizes) > count / 25
        held[count] = max(sizes)
    assert 0 < held[800] <= 1.1 * held[50]


def test_peak_memory_sees_what_was_held_for_a_moment():
    with PeakMemory(torch.device("cpu")) as memory:
        block = np.ones(30_000_000)  # 240 MB, touched
        time.sleep(0.1)
        del block
    assert memory.peak_bytes - memory.start_bytes > 200e6


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        torch.OutOfMemoryError("CUDA out of memory."),
        RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes."),
    ],
    ids=lambda error: type(error).__name__,
)
def test_running_out_of_memory_is_named(error):
    with (
        pytest.raises(MemoryLimitError, match="The edit ran out of memory; the weights are the original ones"),
        memory_limit("The edit"),
    ):
        raise error


def test_other_errors_pass_as_they_are():
    with pytest.raises(RuntimeError, match="shapes differ"), memory_limit("The edit"):
        raise RuntimeError("shapes differ")
