"""What is cancelled while it waits for the model is found in the history too, with its facts."""

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
def studio(tmp_path, tiny_model):
    """A studio over a tiny model that is busy until the test ends."""
    studio = Studio(Store(tmp_path / "studio.db"))
    studio.cache, studio.model = tmp_path / "cache", tiny_model("llama")
    go = threading.Event()
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


@pytest.mark.parametrize(
    "begin, kind, facts", [(begin_edit, "edit", FACTS), (begin_comparison, "compare", FACTS), (begin_training, "train", ())]
)
def test_work_that_is_cancelled_while_it_waits_is_a_row(studio, begin, kind, facts):
    job = begin(studio)
    assert job.snapshot().state == "queued" and not studio.store.runs()
    studio.jobs.cancel(job.id)
    assert job.snapshot().state == "cancelled"
    [row] = studio.store.runs()
    assert (row["kind"], row["status"]) == (kind, "cancelled")
    assert tuple(studio.store.run(row["id"]).facts) == tuple(facts)
