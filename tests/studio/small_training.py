"""A training of three steps on a tiny model, as the Train tab sets it going: what several files of tests begin with."""

from pathlib import Path

from engine.facts import FactBatch
from engine.train_settings import TrainSettings
from studio.jobs import Snapshot
from studio.studio import Studio
from studio.training_job import new_request, start_training
from tests.engine.tiny import FACTS

SHORT = TrainSettings(
    steps=3, validate_every=2, rank=4, smallest_batch=1, largest_batch=4, valid_facts=4, cache_gb=0.01, warmup=1
)
BATCH = FactBatch(FACTS, "tiny facts.csv", "studio")


def root(studio: Studio) -> Path:
    return studio.hypernet_folders[0]


def begin(studio: Studio, settings: TrainSettings = SHORT, name: str = "first"):
    request = new_request(studio, [BATCH], [], 0.4, settings, name)
    return start_training(studio, studio.workspace("w"), request)


def wait(job) -> Snapshot:
    assert job.ended.wait(120)
    return job.snapshot()
