"""What the operating system says about a folder of files, as a sentence. It knows no file's content."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from safetensors import SafetensorError

from engine.errors import EditingError


@contextmanager
def disk_errors(folder: Path) -> Iterator[None]:
    """A full disk, or a folder that cannot be made or written, as an EditingError."""
    try:
        yield
    except (OSError, SafetensorError) as error:  # safetensors has its own for a disk that is full
        why = getattr(error, "strerror", None) or error
        raise EditingError(
            f"The files could not be written to {folder}: {why}. Free some room there, or choose another folder."
        ) from error
