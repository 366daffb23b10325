"""Where a running studio puts what is gone with it: uploads, downloads, weight shifts that are not on."""

import signal
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def scratch_folder() -> Iterator[str]:
    """A folder for the temporary files of Python and Gradio, removed at the end; SIGTERM ends as Ctrl+C does.

    What people upload may be private, and Gradio would keep it. To be entered before Gradio is imported.
    """
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    with tempfile.TemporaryDirectory(prefix="agrade-studio-", ignore_cleanup_errors=True) as folder:
        before, tempfile.tempdir = tempfile.tempdir, folder
        try:
            yield folder
        finally:
            tempfile.tempdir = before
