"""Gradio without what takes a third of its start and nobody sees.

At each import it parses every component to rewrite a `.pyi` beside it: these stubs serve editors of Gradio's own source
and already lie in its wheel. It imports its own command line. And it describes the whole page four times and makes the
server's app, with its hundred routes, three times before `launch` makes the one that is served.
"""

import gc
import inspect
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import count
from types import ModuleType
from unittest.mock import patch


def import_gradio() -> None:
    """Import Gradio, its command line apart, with no search for garbage meanwhile, nor later among what it makes.

    It skips the stub of a class whose source file cannot be told, so for its own none is told.
    """
    tell = inspect.getfile

    def getfile(item: object) -> str:
        if isinstance(item, type) and item.__module__.startswith("gradio."):
            raise OSError("not asked for")
        return tell(item)

    commands = ModuleType("gradio.cli")
    commands.deploy = None  # all that Gradio itself takes from there
    gc.disable()
    sys.modules[commands.__name__] = commands
    try:
        with patch("inspect.getfile", getfile):
            import gradio  # noqa: F401
    finally:
        del sys.modules[commands.__name__]
        gc.freeze()
        gc.enable()


@contextmanager
def unserved() -> Iterator[None]:
    """Blocks made inside have neither description nor app until `launch` makes theirs."""
    from gradio import Blocks
    from gradio.routes import App

    with patch.object(Blocks, "get_config_file", lambda _: {}), patch.object(App, "create_app", lambda *_, **__: None):
        yield


@contextmanager
def described_once() -> Iterator[None]:
    """`launch` describes the page, and again once it knows all; inside, the first description is empty."""
    from gradio import Blocks

    describe, calls = Blocks.get_config_file, count()
    with patch.object(Blocks, "get_config_file", lambda page: describe(page) if next(calls) else {}):
        yield
