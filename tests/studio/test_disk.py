"""What cannot be written is told with what helps, and what is read is never written over."""

import errno
import os

import pytest
from safetensors import SafetensorError

from engine.errors import EditingError, FactError
from studio.disk import disk_errors, refuse_foreign, refuse_overwriting


@pytest.mark.parametrize(
    ("error", "advice"),
    [
        (OSError(errno.ENOSPC, "No space left on device"), "device. Free some room there, or choose another folder."),
        (SafetensorError("I/O error: No space left on device (os error 28)"), "28). Free some room there, or choose"),
        (FileExistsError(errno.EEXIST, "File exists"), "File exists. Something else has that name: choose another"),
        (PermissionError(errno.EACCES, "Permission denied"), "Permission denied. You may not write there: choose"),
        (OSError(errno.EIO, "Input/output error"), "Input/output error. Choose another folder."),
    ],
)
def test_the_advice_is_that_of_the_error(tmp_path, error, advice):
    with pytest.raises(EditingError) as told, disk_errors(tmp_path):
        raise error
    assert f"could not be written to {tmp_path}: " in str(told.value) and advice in str(told.value)


def test_files_that_no_earlier_run_left_are_not_overwritten(tmp_path):
    names = ["facts.csv", "delta.json"]
    for folder in (None, tmp_path / "not-there", tmp_path):
        refuse_foreign(folder, names, "delta.json", "studio delta")
    (tmp_path / "facts.csv").write_text("prompt,target\nMine,is this\n")
    with pytest.raises(FactError, match="has facts.csv, which would be overwritten and .* Name another folder"):
        refuse_foreign(tmp_path, names, "delta.json", "studio delta")
    (tmp_path / "delta.json").write_text('{"format": "another program"}')
    with pytest.raises(FactError, match="has facts.csv, delta.json, which"):
        refuse_foreign(tmp_path, names, "delta.json", "studio delta")
    (tmp_path / "delta.json").write_text('{"format": "studio delta 1"}')
    refuse_foreign(tmp_path, names, "delta.json", "studio delta")


def test_an_input_is_refused_under_whatever_path(tmp_path):
    mine, out = tmp_path / "mine.csv", tmp_path / "out"
    mine.write_text("prompt,target\n")
    out.mkdir()
    for path in (mine, tmp_path / "none.csv"):
        refuse_overwriting(out, ["facts.csv"], [path])
        refuse_overwriting(None, ["facts.csv"], [path])
        refuse_overwriting(tmp_path / "not-there", ["mine.csv"], [path])
    with pytest.raises(FactError, match="would overwrite .*mine.csv, which is read: name another folder"):
        refuse_overwriting(out / "..", ["facts.csv", "mine.csv"], [mine])
    os.link(mine, out / "facts.csv")
    with pytest.raises(FactError, match="would overwrite .*mine.csv"):
        refuse_overwriting(out, ["facts.csv"], [mine])
