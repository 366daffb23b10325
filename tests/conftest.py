"""Fixtures of all tests, those of session scope read-only, and the order in which the tests are run."""

import os
from collections.abc import Callable
from functools import cache
from pathlib import Path

import hypothesis
import pytest
import torch
from transformers import PreTrainedTokenizerFast
from xdist.remote import Producer
from xdist.scheduler import LoadFileScheduling

from engine import embedded
from engine.model import EditableModel
from tests.engine import tiny

BROWSER = "tests/browser/"

hypothesis.settings.register_profile("studio", deadline=None)  # a busy machine is no failure
hypothesis.settings.load_profile("studio")
torch.set_num_threads(1)  # on tiny models a second one costs more than it does


class FileByFile(LoadFileScheduling):
    """What two processes (`pytest -n 2`) share: each takes a file at a time, and one of them takes the browser's tests.

    Those share one studio, whose model and Chromium want both cores, so they also come last.
    """

    def _split_scope(self, nodeid: str) -> str:
        return "browser" if nodeid.startswith(BROWSER) else super()._split_scope(nodeid)


def pytest_xdist_make_scheduler(config: pytest.Config, log: Producer) -> FileByFile:
    config.option.loadscopereorder = False  # by their number the browser's tests would come first
    return FileByFile(config, log)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The browser's tests last, and first those that would be in their way then, with a studio of their own."""
    items.sort(key=lambda item: (item.nodeid.startswith(BROWSER), item.get_closest_marker("live") is None))


def pytest_sessionfinish(session: pytest.Session) -> None:
    """Where AGRADE_STUDIO_NO_SKIPS is set, as in CI, a skipped test fails the run: nothing was to be missing."""
    reporter = session.config.pluginmanager.get_plugin("terminalreporter")  # none in a process of pytest-xdist
    if reporter and reporter.stats.get("skipped") and os.environ.get("AGRADE_STUDIO_NO_SKIPS"):
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


@pytest.fixture(scope="session")
def embedded_folder() -> Path:
    """The real embedded model in the user's cache, fetched if it is not there yet (93 MB)."""
    try:
        return embedded.fetch()
    except embedded.DownloadError as error:
        pytest.skip(str(error))


@pytest.fixture(scope="session")
def tiny_tokenizer() -> PreTrainedTokenizerFast:
    return tiny.tiny_tokenizer()


@pytest.fixture(scope="session")
def tiny_model(tiny_tokenizer: PreTrainedTokenizerFast) -> Callable[[str], EditableModel]:
    """family → its tiny random model in float32, built once for all tests: leave it as it was."""
    return cache(lambda family: tiny.build(family, tiny_tokenizer))
