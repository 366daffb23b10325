"""Gradio imported without its development step: at each import it parses every component to rewrite a `.pyi` beside it.

Those stubs serve editors of Gradio's own source and already lie in its wheel; making them is half of the import's time.
"""

import gc
import inspect
from unittest.mock import patch


def import_gradio() -> None:
    """Import Gradio, with no search for garbage meanwhile, nor later among what it makes.

    It skips the stub of a class whose source file cannot be told, so for its own none is told.
    """
    tell = inspect.getfile

    def getfile(item: object) -> str:
        if isinstance(item, type) and item.__module__.startswith("gradio."):
            raise OSError("not asked for")
        return tell(item)

    gc.disable()
    try:
        with patch("inspect.getfile", getfile):
            import gradio  # noqa: F401
    finally:
        gc.freeze()
        gc.enable()
