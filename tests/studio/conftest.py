"""What the studio's tests are given: a tiny model's folder, a hypernetwork's for it, an open database, a run in it."""

from pathlib import Path

import pytest
import torch

from engine.checkpoint import Checkpoint, load_checkpoint
from engine.fact_readers import write_csv
from engine.facts import FactBatch
from engine.hypernet import HyperNet
from engine.loading import load_model
from studio.runs import EditRequest, execute_edit
from studio.store import Store
from studio.studio import Studio
from tests.engine import tiny


@pytest.fixture(scope="session")
def model_folder(tiny_model, tmp_path_factory) -> Path:
    return tiny.save(tiny_model("llama"), tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="session")
def hypernet_folder(model_folder, tmp_path_factory) -> Path:
    """A hypernetwork that was not trained: it edits all the same."""
    model = load_model(str(model_folder), "cpu")
    card = {
        "model": model.name,
        "model_sha256": model.sha256,
        "settings": {"method": "agrade", "projection": "scaled", "scope": "answer"},
    }
    network = HyperNet(model.edit_modules([1, 2]), rank=8, eta=0.003)
    return Checkpoint("tiny", network, card).save(tmp_path_factory.mktemp("hypernets") / "tiny", torch.float32)


@pytest.fixture
def facts_file(tmp_path) -> Path:
    path = tmp_path / "facts.csv"
    write_csv(tiny.FACTS, path)
    return path


@pytest.fixture
def store(tmp_path):
    with Store(tmp_path / "studio.db") as store:
        yield store


@pytest.fixture
def run(store):
    return store.start_run(store.start_session("studio", "w1"), "edit", method="agrade")


@pytest.fixture(scope="session")
def drawn(tmp_path_factory, model_folder, hypernet_folder):
    """A studio with the tiny model and two runs to draw: 1 by AGRADE, 2 by MALMEN."""
    folder = tmp_path_factory.mktemp("projecting")
    studio = Studio(Store(folder / "studio.db"), hypernet_folder, "test")
    studio.model = load_model(str(model_folder), "cpu")
    session = studio.store.start_session("test", "w1")
    batch = FactBatch(tiny.FACTS, "tiny.csv", "studio")
    checkpoint = load_checkpoint(hypernet_folder)
    checkpoint.card["settings"] |= {"method": "malmen", "projection": "off"}
    nets = {"agrade": hypernet_folder, "malmen": checkpoint.save(folder / "malmen", torch.float32)}
    for method, net in nets.items():
        execute_edit(studio, session, EditRequest(batch, method, {}, net, 0, keep=400))
    yield studio
    studio.close()


@pytest.fixture
def forgetful(drawn, hypernet_folder) -> int:
    """The number of a run by AGRADE that kept nothing to be drawn."""
    session = drawn.store.start_session("test", "w2")
    batch = FactBatch(tiny.FACTS, "tiny.csv", "studio")
    return execute_edit(drawn, session, EditRequest(batch, "agrade", {}, hypernet_folder, 0, keep=0))[0]
