"""What several of the engine's tests are given."""

from types import SimpleNamespace

import pytest
import torch

from tests.engine.small_wheel import small_wheel

# Not skipped but left out: a machine without a GPU lacks nothing that the README asks for.
collect_ignore = [] if torch.cuda.is_available() else ["test_cuda.py"]


@pytest.fixture(scope="session")
def small(tmp_path_factory) -> SimpleNamespace:
    """The small model's GGUF file, wheel, conversion and sums, made once."""
    return small_wheel(tmp_path_factory.mktemp("wheel"))
