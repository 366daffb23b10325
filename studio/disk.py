"""What the operating system says about a folder of files, as a sentence. It knows no file's content."""

import errno
import os
import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from safetensors import SafetensorError

from engine.errors import EditingError, FactError

WINDOWS_FULL = 112
ADVICE = {
    "Free some room there, or choose another folder.": (errno.ENOSPC, errno.EDQUOT, WINDOWS_FULL),
    "Something else has that name: choose another folder.": (errno.EEXIST, errno.ENOTDIR, errno.EISDIR),
    "You may not write there: choose another folder, or allow it.": (errno.EACCES, errno.EPERM, errno.EROFS),
}


@contextmanager
def disk_errors(folder: Path) -> Iterator[None]:
    """A full disk, or a folder that cannot be made or written, as an EditingError."""
    try:
        yield
    except (OSError, SafetensorError) as error:  # safetensors has its own for a disk that is full
        why = getattr(error, "strerror", None) or error
        raise EditingError(f"The files could not be written to {folder}: {why}. {_advice(error)}") from error


def refuse_overwriting(folder: Path | None, names: Iterable[str], inputs: Iterable[Path]) -> None:
    """Raises FactError when one of the files of these names in `folder` is one of the inputs, under whatever path."""
    given = [path for path in inputs if os.path.exists(path)]  # which says no, too, where it may not look
    for written in (folder / name for name in names) if folder else ():
        for path in given:
            if os.path.exists(written) and written.samefile(path):
                raise FactError(f"--out {folder} would overwrite {path}, which is read: name another folder.")


def refuse_foreign(folder: Path | None, names: Iterable[str], mark: str, sign: str) -> None:
    """Raises FactError when `folder` has files of these names that no earlier run left: it would have left `mark` too,
    with `sign` in it."""
    found = [name for name in names if folder and (folder / name).exists()]
    with suppress(OSError):
        if found and sign in (folder / mark).read_text(encoding="utf-8", errors="replace"):
            return
    if found:
        raise FactError(
            f"--out {folder} has {', '.join(found)}, which would be overwritten and are not the results of an earlier run. "
            "Name another folder."
        )


def _advice(error: OSError | SafetensorError) -> str:
    number = getattr(error, "errno", None)
    if number is None and (told := re.search(r"os error (\d+)", str(error))):
        number = int(told[1])
    return next((advice for advice, numbers in ADVICE.items() if number in numbers), "Choose another folder.")
