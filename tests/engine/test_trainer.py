"""A tiny training learns, is logged, outlives a cancel, and goes on where it stopped."""

import json
import shutil
from dataclasses import asdict, replace

import pytest
import torch
from safetensors.torch import load_file

from engine.checkpoint import load_checkpoint
from engine.editors import EDITORS
from engine.errors import Cancelled, CheckpointError, FactError, ModelError, NonFiniteError
from engine.facts import Fact, facts_sha256
from engine.old_keys import old_keys
from engine.train_settings import METHODS, TrainSettings
from engine.trainer import Trainer
from engine.training import gather_rows, outer_loss
from engine.training_state import STATE
from tests.engine import tiny
from tests.engine.test_model import assert_untouched, weights

SETTINGS = TrainSettings(
    layers="1-3",
    rank=4,
    eta=1e-3,
    learning_rate=3e-3,
    scalar_rate=0.1,
    warmup=2,
    steps=9,
    smallest_batch=2,
    largest_batch=5,
    validate_every=3,
    cache_gb=0.0,
)
PLAIN = {"step", "loss", "loss_equivalent", "loss_unrelated", "gradient_norm", "facts", "seconds"}


@pytest.fixture
def model(tiny_model):
    return tiny_model("llama")


def trainer(model, folder, facts=tiny.FACTS, valid=True, **changes) -> Trainer:
    settings = replace(SETTINGS, **changes)
    return Trainer(model, {"tiny": facts}, {"tiny": facts[:3]} if valid else {}, settings, folder)


def network(folder) -> dict[str, torch.Tensor]:
    """The float32 state that a training goes on from."""
    return load_file(folder / STATE)


def assert_same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor], tolerance: float = 0.0) -> None:
    assert one.keys() == other.keys()
    for name in one:
        torch.testing.assert_close(one[name], other[name], rtol=tolerance, atol=tolerance, msg=name)


class StopAt:
    """Cancels, or breaks with another error, when training has done so many steps."""

    def __init__(self, step: int, error: type[BaseException] = Cancelled):
        self.step, self.error = step, error

    def __call__(self, stage: str, done: int, _total: int) -> None:
        if stage == "Training" and done == self.step:
            raise self.error


@pytest.mark.parametrize("method", METHODS)
def test_training_lowers_its_loss_and_leaves_the_model_as_it_was(model, tmp_path, method):
    before, records = weights(model), []
    changes = {"method": method, "steps": 25, "smallest_batch": 5, "validate_every": 25}
    changes |= {"learning_rate": 3e-2, "scalar_rate": 0.5}
    best = trainer(model, tmp_path, **changes).run(on_step=records.append)
    assert_untouched(model, before)
    assert records[-1]["loss"] < 0.9 * records[0]["loss"]
    assert all(record["gradient_norm"] > 0 for record in records)
    checkpoint = load_checkpoint(best)
    assert checkpoint.card["settings"]["projection"] == ("scaled" if method == "agrade" else "off")
    cls = EDITORS[method]
    assert cls(cls.Settings(), checkpoint).edit(model, tiny.FACTS).delta.norm > 0


def test_every_part_of_the_hypernetwork_learns(model, tmp_path):
    run = trainer(model, tmp_path, steps=3, validate_every=3)
    before = {name: parameter.clone() for name, parameter in run.hypernet.named_parameters()}
    run.run()
    after = dict(run.hypernet.named_parameters())
    assert before and not [name for name in before if torch.equal(before[name], after[name])]


@pytest.mark.parametrize(
    "switch",
    [
        {"coefficient": False, "eta": 1e-2},
        {"regularisation": False},
        {"gradient_projection": False},
        {"projection": "off"},
        {"projection": "projected"},
        {"projection": "per_token"},
        {"scope": "all"},
        {"outer_facts": 1},
        {"rounds": 3},
    ],
    ids=str,
)
def test_every_switch_trains(model, tmp_path, switch):
    records = []
    trainer(model, tmp_path, steps=2, **switch).run(on_step=records.append)
    card = json.loads((tmp_path / "latest" / "card.json").read_text())
    assert switch.items() <= card["settings"].items()
    assert len(records) == 2 and all(record["gradient_norm"] > 0 for record in records)


def test_kept_trunk_changes_nothing_but_rounding(model, tmp_path):
    trainer(model, tmp_path / "plain", steps=6).run()
    kept = trainer(model, tmp_path / "kept", steps=6, cache_gb=0.1)
    with pytest.raises(Cancelled):
        kept.run(StopAt(4))
    kept = trainer(model, tmp_path / "kept", steps=6, cache_gb=0.1)
    kept.resume()
    kept.run()
    assert_same(network(tmp_path / "kept"), network(tmp_path / "plain"), 1e-3)


def test_cancelled_training_keeps_the_steps_done(model, tmp_path):
    before = weights(model)
    with pytest.raises(Cancelled):
        trainer(model, tmp_path).run(StopAt(7))
    assert_untouched(model, before)
    assert load_checkpoint(tmp_path / "latest").card["steps"] == 7
    assert load_checkpoint(tmp_path / "best").card["steps"] in (3, 6)
    assert len((tmp_path / "log.jsonl").read_text().splitlines()) == 7


def test_a_folder_taken_away_meanwhile_is_made_again(model, tmp_path):
    def take_away(stage: str, done: int, _total: int) -> None:
        if (stage, done) == ("Training", 4):
            shutil.rmtree(tmp_path / "own")

    trainer(model, tmp_path / "own", steps=6).run(take_away)
    assert load_checkpoint(tmp_path / "own" / "latest").card["steps"] == 6
    assert len((tmp_path / "own" / "log.jsonl").read_text().splitlines()) == 2


def test_log_and_on_step_tell_the_same(model, tmp_path):
    (tmp_path / "log.jsonl").write_text('{"step": 900}\n')  # of another training in this folder
    records, calls = [], []
    trainer(model, tmp_path).run(lambda *call: calls.append(call), records.append)
    assert [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()] == records
    assert [record["step"] for record in records] == list(range(1, 10))
    for record in records:
        scores = {f"tiny {name}" for name in ("ES", "GS", "LS", "Score")} if record["step"] % 3 == 0 else set()
        assert record.keys() == PLAIN | scores
        assert 2 <= record["facts"] <= 5 and record["seconds"] > 0
        assert record["loss"] == pytest.approx(record["loss_equivalent"] + record["loss_unrelated"])
    assert calls[0] == ("Training", 0, 9) and calls[-1] == ("Training", 9, 9)


def test_card_says_what_was_done(model, tmp_path):
    run = trainer(model, tmp_path)
    card = load_checkpoint(run.run()).card
    assert (card["model"], card["model_sha256"]) == ("tiny llama", model.sha256)
    assert card["settings"] == asdict(run.settings)
    assert card["data"] == {"tiny": {"train": 5, "valid": 3, "train_sha256": facts_sha256(tiny.FACTS[:5])}}
    assert card["steps"] in (3, 6, 9) and card["seconds"] > 0 and card["trained"].endswith("+00:00")
    assert card["validation"][0].keys() == {"step", "tiny ES", "tiny GS", "tiny LS", "tiny Score"}
    assert [module["layer"] for module in card["modules"]] == [1, 2, 3]


def test_best_checkpoint_is_the_one_with_the_highest_mean_score(model, tmp_path, monkeypatch):
    run = trainer(model, tmp_path)
    scores = iter([0.2, 0.6, 0.4])
    monkeypatch.setattr(run, "_validate", lambda _progress: run.scores.append({"a Score": next(scores)}) or {})
    assert run.run() == tmp_path / "best"
    assert load_checkpoint(tmp_path / "best").card["steps"] == 6
    assert load_checkpoint(tmp_path / "latest").card["steps"] == 9


def test_best_checkpoint_of_facts_without_equivalent_prompts_is_that_of_ES_and_LS(model, tmp_path, monkeypatch):
    values = iter([0.2, 0.9, 0.1])

    def measured(self, progress):
        self.scores.append({"step": self.step, "tiny ES": next(values), "tiny GS": None, "tiny LS": 0.5, "tiny Score": None})
        return self.scores[-1]

    monkeypatch.setattr(Trainer, "_validate", measured)
    assert load_checkpoint(trainer(model, tmp_path, steps=3, validate_every=1).run()).card["steps"] == 2


def test_without_validation_facts_the_last_is_the_best(model, tmp_path):
    best = trainer(model, tmp_path, valid=False).run()
    assert load_checkpoint(best).card["steps"] == 9


def test_facts_without_equivalent_prompts_train_on_themselves(model, tmp_path):
    facts = [replace(fact, equivalent=()) for fact in tiny.FACTS]
    records = []
    trainer(model, tmp_path, facts, outer_prompts="equivalent", steps=3).run(on_step=records.append)
    assert records[-1]["tiny GS"] is None and records[-1]["tiny Score"] is None
    assert records[-1]["tiny ES"] is not None


def test_data_sets_take_turns_and_an_empty_one_is_passed_over(model, tmp_path):
    parts = {"a": tiny.FACTS[:2], "none": (), "b": tiny.FACTS[2:]}
    run = Trainer(model, parts, {}, SETTINGS, tmp_path)
    drawn = []
    for run.step in range(20):
        drawn.append(set(run._draw().tolist()))
    assert all(facts <= {0, 1} for facts in drawn[::2]) and all(facts <= {2, 3, 4} for facts in drawn[1::2])
    assert set.union(*drawn) == {0, 1, 2, 3, 4}
    assert len({len(facts) for facts in drawn[1::2]}) > 1


def test_a_step_learns_one_of_the_rounds_after_those_before_it_have_run(model, tmp_path, monkeypatch):
    gathered = []
    real = gather_rows
    monkeypatch.setattr("engine.trainer.gather_rows", lambda *given: gathered.append(given[4]) or real(*given))
    trainer(model, tmp_path, steps=9, rounds=3, validate_every=9).run()
    rounds = []
    for before in gathered:  # a step begins where nothing was added before
        rounds = [*rounds, 1] if before is None else [*rounds[:-1], rounds[-1] + 1]
    assert len(rounds) == 9 and set(rounds) == {1, 2, 3}


def test_old_keys_are_those_of_the_training_facts_and_are_kept(model, tmp_path):
    plain = trainer(model, tmp_path / "plain", steps=2, validate_every=1)
    first = trainer(model, tmp_path / "old", old_keys=9.0, steps=2, validate_every=1)
    wanted = old_keys(model, first.modules, first.data, 9.0, SETTINGS.seed)
    for found, keys in zip(first.hypernet.old_keys, wanted, strict=True):
        torch.testing.assert_close(found, keys)
    assert plain.hypernet.old_keys == [] and first.train_step()["loss"] != plain.train_step()["loss"]
    with pytest.raises(Cancelled):
        trainer(model, tmp_path / "old", old_keys=9.0, steps=2, validate_every=1).run(StopAt(1))
    again = trainer(model, tmp_path / "old", old_keys=9.0, steps=2, validate_every=1)
    again.resume()
    again.run()
    trained = load_checkpoint(tmp_path / "old" / "latest")
    assert trained.card["settings"]["old_keys"] == 9.0 and len(trained.hypernet.old_keys) == 3
    with pytest.raises(CheckpointError, match="other settings: old_keys"):
        trainer(model, tmp_path / "old", old_keys=8.0).resume()
    other = trainer(model, tmp_path / "other", facts=tiny.FACTS[1:], old_keys=4.0)
    own = [keys.clone() for keys in other.hypernet.old_keys]
    other.start_from(trained)
    assert all(torch.equal(*pair) for pair in zip(own, other.hypernet.old_keys, strict=True))
    assert torch.equal(other.hypernet.lam, trained.hypernet.lam)
    assert trainer(model, tmp_path / "mend", method="mend", old_keys=9.0).hypernet.old_keys == []


def test_the_rates_rise_and_fall_and_the_gradient_is_clipped(model, tmp_path, monkeypatch):
    """After the warmup a rate falls by half a cosine from what was set to a tenth of it; η and λ have their own."""
    run = trainer(model, tmp_path, steps=4, warmup=2, clip=1e-3, valid=False)
    rates, norms, records, real = [], [], [], run.optimiser.step

    def step() -> None:
        rates.append([group["lr"] for group in run.optimiser.param_groups])
        norms.append(float(torch.cat([parameter.grad.flatten() for parameter in run.hypernet.parameters()]).norm()))
        real()

    monkeypatch.setattr(run.optimiser, "step", step)
    run.run(on_step=records.append)
    shares = [0.5, 0.55 + 0.45 * 0.5**0.5, 0.55, 0.55 - 0.45 * 0.5**0.5]
    for group, rate in enumerate((SETTINGS.learning_rate, SETTINGS.scalar_rate)):
        assert [both[group] for both in rates] == pytest.approx([share * rate for share in shares])
    assert {*run.optimiser.param_groups[1]["params"]} == {run.hypernet.log_eta, run.hypernet.lam}
    assert norms == pytest.approx([1e-3] * 4, rel=1e-2) and all(record["gradient_norm"] > 2e-3 for record in records)


def test_no_more_facts_than_asked_for_enter_the_outer_loss(model, tmp_path, monkeypatch):
    edited, asked = [], []
    monkeypatch.setattr("engine.trainer.gather_rows", lambda *given: edited.append(given[2]) or gather_rows(*given))
    monkeypatch.setattr("engine.trainer.outer_loss", lambda *given: asked.append(given[3]) or outer_loss(*given))
    trainer(model, tmp_path, steps=3, smallest_batch=4, outer_facts=2, valid=False).run()
    assert all(len(members) >= 4 for members in edited) and asked == [members[:2] for members in edited]
    asked.clear(), edited.clear()
    trainer(model, tmp_path / "all", steps=1, smallest_batch=4, valid=False).run()
    assert asked == edited and len(asked[0]) >= 4


def test_gradient_that_is_not_finite_is_named_and_the_checkpoint_kept(model, tmp_path, monkeypatch):
    run = trainer(model, tmp_path)
    monkeypatch.setattr(
        "engine.trainer.torch.nn.utils.clip_grad_norm_", lambda *_: torch.tensor(float("nan") if run.step == 4 else 1.0)
    )
    with pytest.raises(NonFiniteError, match="not finite at step 5. The last checkpoint is kept"):
        run.run()
    assert load_checkpoint(tmp_path / "latest").card["steps"] == 3


def test_unknown_method_and_layers_are_named(model, tmp_path):
    with pytest.raises(FactError, match="Unknown method 'memit': a hypernetwork is trained for agrade, malmen, mend"):
        trainer(model, tmp_path, method="memit")
    with pytest.raises(ModelError, match="layers 0 to 3"):
        trainer(model, tmp_path, layers="2-9")
    with pytest.raises(FactError, match="training set holds no facts"):
        trainer(model, tmp_path, ())
    with pytest.raises(FactError, match="Training set, Row 1, prompt"):
        trainer(model, tmp_path, (Fact("so " * 64, "it"),))
