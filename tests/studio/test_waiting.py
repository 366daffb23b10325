"""What waits for the model and is cancelled, or finds another one loaded, is in the history too, with its facts."""

import threading

import pytest

from engine.comparison import Entry
from engine.facts import FactBatch
from engine.train_settings import TrainSettings
from studio.compare_job import start_comparison
from studio.comparisons import CompareRequest
from studio.edit_job import start_edit
from studio.runs import EditRequest
from studio.store import Store
from studio.studio import Studio
from studio.training_job import new_request, start_training
from tests.engine.tiny import FACTS

BATCH = FactBatch(FACTS, "tiny facts.csv", "studio")


@pytest.fixture
def go():
    return threading.Event()


@pytest.fixture
def studio(tmp_path, tiny_model, go):
    """A studio over a tiny model that is busy until `go` is set or the test ends."""
    studio = Studio(Store(tmp_path / "studio.db"))
    studio.cache, studio.model = tmp_path / "cache", tiny_model("llama")
    studio.jobs.submit("Something else", lambda job: go.wait(60), model=studio.model.sha256)
    yield studio
    go.set()
    studio.close()


def begin_edit(studio: Studio):
    return start_edit(studio, studio.workspace("w"), EditRequest(BATCH, "ft"))


def begin_comparison(studio: Studio):
    return start_comparison(studio, studio.workspace("w"), CompareRequest(BATCH, (Entry("ft"),)))


def begin_training(studio: Studio):
    settings = TrainSettings(steps=2, rank=4)
    return start_training(studio, studio.workspace("w"), new_request(studio, [BATCH], [], 0.4, settings, "first"))


WORK = pytest.mark.parametrize(
    "begin, kind, facts", [(begin_edit, "edit", FACTS), (begin_comparison, "compare", FACTS), (begin_training, "train", ())]
)


@WORK
def test_work_that_is_cancelled_while_it_waits_is_a_row(studio, begin, kind, facts):
    job = begin(studio)
    assert job.snapshot().state == "queued" and not studio.store.runs()
    studio.jobs.cancel(job.id)
    assert job.snapshot().state == "cancelled"
    [row] = studio.store.runs()
    assert (row["kind"], row["status"]) == (kind, "cancelled")
    assert tuple(studio.store.run(row["id"]).facts) == tuple(facts)


@WORK
def test_work_for_a_model_that_was_replaced_while_it_waited_is_not_done(studio, go, tiny_model, begin, kind, facts):
    job, asked = begin(studio), studio.model
    studio.model = tiny_model("gpt2")
    go.set()
    assert job.ended.wait(60)
    shot, [row] = job.snapshot(), studio.store.runs()
    assert shot.state == row["status"] == "failed" and shot.error == row["error"]
    assert shot.error.startswith("Another model was loaded meanwhile: nothing was ")
    assert (row["kind"], row["model_sha"]) == (kind, asked.sha256)
    assert tuple(studio.store.run(row["id"]).facts) == tuple(facts)
    assert not list(studio.hypernet_folders[0].glob("*"))
