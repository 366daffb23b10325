"""What several of the engine's tests are given."""

from types import SimpleNamespace

import pytest

from tests.engine.small_wheel import small_wheel


@pytest.fixture(scope="session")
def small(tmp_path_factory) -> SimpleNamespace:
    """The small model's GGUF file, wheel, conversion and sums, made once."""
    return small_wheel(tmp_path_factory.mktemp("wheel"))
