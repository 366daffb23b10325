"""A hypernetwork comes back from its folder as it went; damaged and foreign folders are named."""

import json
from pathlib import Path

import pytest
import torch

from engine import checkpoint as checkpoints
from engine.checkpoint import Checkpoint, find_checkpoints, load_checkpoint, outline, read_card
from engine.errors import CheckpointError
from engine.hypernet import HyperNet, Normaliser
from engine.model import EditModule
from tests.engine import tiny

MODULES = [EditModule("a", 2, 40, 24, True), EditModule("b", 3, 40, 24, True), EditModule("c", 4, 32, 16, False)]
SETTINGS = {"method": "agrade", "projection": "scaled", "scope": "answer"}
CARD = {"model": "a model", "model_sha256": "ab" * 32, "settings": SETTINGS, "steps": 3}


def random_network(rank: int = 33, directions: int = 0) -> HyperNet:
    hypernet = HyperNet(MODULES, rank, seed=1, directions=directions)
    for keys in hypernet.old_keys:
        keys += torch.randn(keys.shape)
    for parameter in hypernet.parameters():
        parameter.data += 0.1 * torch.randn(parameter.shape)
    for normaliser, module in zip(hypernet.normalisers, MODULES):
        normaliser.update(torch.randn(9, module.d_h + module.d_g) * 3 + 5)
    return hypernet


def rows(module: EditModule) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.randn(6, module.d_h), torch.randn(6, module.d_g)


@pytest.mark.parametrize("fails", ("write_text", "replace"))
def test_a_checkpoint_that_cannot_be_written_leaves_the_one_before(tmp_path, monkeypatch, fails):
    folder = Checkpoint("mine", random_network(), CARD).save(tmp_path / "mine")
    before = {path.name: path.read_bytes() for path in folder.iterdir()}

    def full(path, *_, **__):
        path.write_bytes(b"{")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, fails, full)
    with pytest.raises(OSError, match="No space"):
        Checkpoint("mine", random_network(), CARD | {"steps": 9}).save(folder)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before


@pytest.mark.parametrize("directions", (0, 5))
def test_float32_round_trip_is_exact(tmp_path, directions):
    hypernet = random_network(directions=directions)
    folder = Checkpoint("mine", hypernet, CARD).save(tmp_path / "mine", torch.float32)
    loaded = load_checkpoint(str(folder))
    assert loaded.name == "mine" and loaded.hypernet.modules_edited == tuple(MODULES)
    assert CARD.items() <= loaded.card.items()
    state = loaded.hypernet.state_dict()
    assert state.keys() == hypernet.state_dict().keys()
    assert all(torch.equal(state[name], tensor) for name, tensor in hypernet.state_dict().items())
    assert [keys.shape for keys in loaded.hypernet.old_keys] == [(5, one.d_h) for one in MODULES if directions]
    assert not any(parameter.requires_grad for parameter in loaded.hypernet.parameters())
    for l, module in enumerate(MODULES):
        H, dG = rows(module)
        assert torch.equal(loaded.hypernet.scaled_gradient(l, H, dG), hypernet.scaled_gradient(l, H, dG))


@pytest.mark.parametrize("directions", (0, 5))
def test_an_outline_knows_everything_but_the_weights(tmp_path, directions):
    folder = Checkpoint("mine", random_network(directions=directions), CARD).save(tmp_path / "mine")
    drawn, whole = outline(folder), load_checkpoint(folder)
    assert (drawn.card, drawn.name) == (whole.card, whole.name)
    assert drawn.hypernet.modules_edited == whole.hypernet.modules_edited
    assert drawn.hypernet.directions == whole.hypernet.directions == directions
    assert {one.device.type for one in drawn.hypernet.parameters()} == {"meta"}
    (folder / "hypernet.safetensors").write_bytes(b"torn")
    assert outline(folder).hypernet.directions == 0, "what is wrong is said when they are loaded"


def test_bfloat16_rounds_the_large_matrices_only(tmp_path):
    hypernet = random_network(directions=32)
    small = Checkpoint("mine", hypernet, CARD).save(tmp_path / "small")
    large = Checkpoint("mine", hypernet, CARD).save(tmp_path / "large", torch.float32)
    assert (small / "hypernet.safetensors").stat().st_mode == (small / "card.json").stat().st_mode
    size = lambda folder: (folder / "hypernet.safetensors").stat().st_size  # noqa: E731
    assert size(small) < 0.65 * size(large)
    state = load_checkpoint(small).hypernet.state_dict()
    for name, tensor in hypernet.state_dict().items():
        assert state[name].dtype is torch.float32
        rounded = name.endswith((".A", ".B")) or name.startswith("old_keys")
        assert torch.equal(state[name], tensor.bfloat16().float() if rounded else tensor), name


def damage(what: str, folder) -> None:
    card, tensors = folder / "card.json", folder / "hypernet.safetensors"
    body = json.loads(card.read_text())
    if what == "no card":
        card.unlink()
    elif what == "no tensors":
        tensors.unlink()
    elif what == "tensors cut short":
        tensors.write_bytes(tensors.read_bytes()[:-1])
    elif what == "card is no JSON":
        card.write_text("hello")
    elif what == "card is no text":
        card.write_bytes(b"\xff\xfe\xfa")
    elif what == "card of another version":
        card.write_text(json.dumps(body | {"format": "agrade-studio hypernetwork 999"}))
    elif what == "card without its settings":
        del body["settings"]
        card.write_text(json.dumps(body))
    elif what == "settings that are a text":
        card.write_text(json.dumps(body | {"settings": "agrade"}))
    elif what == "settings without the method":
        card.write_text(json.dumps(body | {"settings": {"projection": "scaled", "scope": "answer"}}))
    elif what.startswith("step scales"):
        wrong = {"falling": [[8, 1.5], [2, 1.0]], "of no facts": [[0, 2.0]], "below 0": [[1, -1.0]], "a number": 2.0}
        card.write_text(json.dumps(body | {"step_scales": wrong[what.removeprefix("step scales ")]}))
    elif what == "other widths":
        body["modules"][0]["d_h"] = 41
        card.write_text(json.dumps(body))
    elif what == "unknown words in a module":
        body["modules"][0]["bias"] = True
        card.write_text(json.dumps(body))
    elif what == "no modules":
        card.write_text(json.dumps(body | {"modules": []}))


DAMAGES = ["no card", "card is no JSON", "card is no text", "card of another version", "card without its settings"]
DAMAGES += ["settings that are a text", "settings without the method", "step scales falling"]
DAMAGES += ["step scales of no facts", "step scales below 0", "step scales a number"]
DEEPER = ["no tensors", "tensors cut short", "other widths", "unknown words in a module", "no modules"]


@pytest.mark.parametrize("what", DAMAGES + DEEPER)
def test_damaged_checkpoint_is_named(tmp_path, what):
    folder = Checkpoint("mine", random_network(), CARD).save(tmp_path / "mine")
    damage(what, folder)
    with pytest.raises(CheckpointError, match=str(folder)):
        load_checkpoint(folder)


@pytest.mark.parametrize("what", DAMAGES)
def test_damaged_card_does_not_hide_the_other_checkpoints(tmp_path, monkeypatch, what):
    monkeypatch.setattr(checkpoints, "SHIPPED", tmp_path / "none")
    for name in ("bad", "good", "other"):
        Checkpoint(name, random_network(), CARD).save(tmp_path / name)
    damage(what, tmp_path / "bad")
    card = json.loads((tmp_path / "other" / "card.json").read_text()) | {"model_sha256": "0" * 64}
    (tmp_path / "other" / "card.json").write_text(json.dumps(card))
    assert [path.name for path, _ in find_checkpoints(folders=(tmp_path,))] == ["good", "other"]
    ((path, card),) = find_checkpoints(CARD["model_sha256"], (tmp_path,))
    assert path == tmp_path / "good" and card == read_card(path)


def test_the_step_of_few_facts_lies_between_those_of_the_card():
    scale = Checkpoint("mine", random_network(), CARD | {"step_scales": [[1, 2.0], [4, 1.5], [64, 1.0]]}).step_scale
    assert [scale(facts) for facts in (1, 2, 4, 16, 64, 2048)] == pytest.approx([2.0, 1.75, 1.5, 1.25, 1.0, 1.0])
    plain = Checkpoint("mine", random_network(), CARD)
    assert plain.step_scale(1) == plain.step_scale(999) == 1.0, "a card that says nothing"


def test_shipped_checkpoints_can_be_read_and_are_small():
    for folder, card in find_checkpoints():
        checkpoint = load_checkpoint(folder)
        assert checkpoint.card == card
        assert (folder / "hypernet.safetensors").stat().st_size <= 16 * 2**20


def test_untrained_network_is_the_identity_on_normalised_features():
    hypernet = HyperNet(MODULES, rank=4)
    for l, module in enumerate(MODULES):
        H, dG = rows(module)
        found = hypernet(l, H, dG)
        assert torch.equal(found[0], H) and torch.equal(found[1], dG)


def test_start_depends_on_the_seed_alone_and_leaves_the_generator_alone():
    torch.manual_seed(5)
    before = torch.get_rng_state()
    one, again, other = HyperNet(MODULES, 4, seed=3), HyperNet(MODULES, 4, seed=3), HyperNet(MODULES, 4, seed=4)
    assert torch.equal(torch.get_rng_state(), before)
    name = "blocks.40x24.0.A"
    assert torch.equal(one.state_dict()[name], again.state_dict()[name])
    assert not torch.equal(one.state_dict()[name], other.state_dict()[name])


def test_a_start_draws_nothing_from_the_common_generator(monkeypatch):
    """Another thread's LoRA draws from it meanwhile: a seed there would be put in its place."""
    monkeypatch.setattr(torch, "manual_seed", None)
    monkeypatch.setattr(torch, "set_rng_state", None)
    HyperNet(MODULES, 4, seed=3)


def test_modules_of_one_shape_share_a_network_and_keep_their_own_scale_and_shift():
    hypernet = HyperNet(MODULES, rank=4)
    assert set(hypernet.blocks) == {"40x24", "32x16"}
    assert hypernet.blocks["40x24"][0].s.shape == (2, 64)
    hypernet.blocks["40x24"][1].t.data[1] += 1
    H, dG = rows(MODULES[0])
    assert torch.equal(hypernet(0, H, dG)[0], H)
    assert torch.equal(hypernet(1, H, dG)[0], H + 1)


def test_normaliser_is_the_mean_and_deviation_of_all_rows_however_they_came():
    features = torch.randn(50, 7) * torch.linspace(0.1, 20, 7) + 100
    normaliser = Normaliser(7)
    assert torch.equal(normaliser(features), features)
    for part in features.split([1, 30, 2, 17]):
        normaliser.update(part)
    exact = features.double()
    wanted = (exact - exact.mean(0)) / exact.std(0)
    torch.testing.assert_close(normaliser(features).double(), wanted, rtol=1e-3, atol=2e-3)


def test_a_feature_that_never_changed_while_it_was_learned_from_says_nothing_later():
    normaliser = Normaliser(3)
    normaliser.update(torch.tensor([[1.0, 0.0, 5.0], [3.0, 0.0, 9.0]]))  # as a relu's unit that did not fire
    found = normaliser(torch.tensor([[2.0, 0.7, 9.0]]))
    torch.testing.assert_close(found, torch.tensor([[0.0, 0.0, 0.5**0.5]]))


def test_random_checkpoint_of_the_tests_is_no_identity(tiny_model):
    model = tiny_model("llama")
    hypernet = tiny.random_checkpoint(model).hypernet
    H, dG = torch.randn(4, 24), torch.randn(4, 16)
    features = hypernet.normalisers[1](torch.cat((H, dG), 1))
    assert (hypernet(1, H, dG)[0] - features[:, :24]).norm() > 1e-2 * features.norm()
