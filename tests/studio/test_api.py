"""What the endpoints accept from a client: only uploaded files, only checkpoints that the page offers."""

import threading
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from engine.errors import CheckpointError, EditingError, FactError
from studio.api import await_model, check_kinds, known_hypernet, uploaded_path
from studio.components.sidebar import LOADING
from studio.jobs import Jobs


@pytest.fixture
def uploads(tmp_path, monkeypatch) -> Path:
    folder = tmp_path / "uploads"
    (folder / "hash").mkdir(parents=True)
    monkeypatch.setenv("GRADIO_TEMP_DIR", str(folder))
    return folder


def test_an_uploaded_file_is_found(uploads):
    path = uploads / "hash" / "facts.csv"
    assert uploaded_path({"path": str(path)}) == path.resolve()


@pytest.mark.parametrize("path", ["/etc/passwd", "facts.csv", "", "{uploads}/../secret.csv", "{uploads}/hash/link.csv"])
def test_no_other_file_of_the_machine_is_read(uploads, path):
    secret = uploads.parent / "secret.csv"
    secret.write_text("prompt,target\na,b\n", encoding="utf-8")
    (uploads / "hash" / "link.csv").symlink_to(secret)
    with pytest.raises(FactError, match="was not uploaded"):
        uploaded_path({"path": path.format(uploads=uploads)})
    with pytest.raises(FactError, match="was not uploaded"):
        uploaded_path({})


def test_a_hypernetwork_is_chosen_by_its_name_and_the_first_is_the_default():
    offered = [("best", Path("/a/best")), ("old", Path("/b/old"))]
    studio = SimpleNamespace(hypernets=lambda method: offered if method == "agrade" else [])
    assert known_hypernet(studio, "agrade", "") == Path("/a/best")
    assert known_hypernet(studio, "agrade", "old") == Path("/b/old")
    assert known_hypernet(studio, "malmen", "") is None
    with pytest.raises(CheckpointError, match="best, old"):
        known_hypernet(studio, "agrade", "/b/old")


def test_a_program_waits_for_a_model_that_is_being_loaded():
    jobs, studio = Jobs(), SimpleNamespace(model=None)
    studio.jobs = jobs
    await_model(studio)  # none is being loaded: what is refused says so
    begun, over = threading.Event(), threading.Event()

    def load(job):
        begun.set()
        over.wait(60)
        studio.model = "there"

    jobs.submit("Loading", load, workspace=LOADING)
    assert begun.wait(60)
    threading.Timer(0.2, over.set).start()
    await_model(studio)
    assert studio.model == "there"
    jobs.close()


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [("sizes", [1, "x"], r"sizes is \[1, 'x'\]: give it as list\[int\]"), ("settings", {"ft": 3}, "settings is {'ft': 3}")],
)
def test_an_argument_of_another_kind_is_named(name, value, said):
    def endpoint(sizes: list[int], settings: dict[str, dict[str, Any]]) -> None: ...

    with pytest.raises(EditingError, match=said):
        check_kinds(endpoint, **{name: value})
    check_kinds(endpoint, sizes=[], settings={"ft": {"steps": 3}})
