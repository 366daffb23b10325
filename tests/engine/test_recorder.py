"""What an edit leaves to be looked into: rows that it computed, a sample that chunks do not change, true numbers."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file, save_file

from engine import editing
from engine.edit_record import BEFORE, KINDS, EditRecord
from engine.editing import run_edit
from engine.editors import EDITORS
from engine.errors import CheckpointError, EditingError
from engine.facts import Fact
from engine.prompts import encode_facts
from engine.recorder import STAGE, Recorder
from engine.train_settings import TrainSettings
from engine.trainer import Trainer
from tests.engine import tiny
from tests.engine.test_editors import chunked, make

FACTS = tiny.FACTS
MODULES = range(3)


def recorded(model, path: Path, method: str = "agrade", rows: int = 400, seed: int = 0, **settings):
    """The edit of the tiny facts, and its record."""
    recorder = Recorder(path, rows, seed)
    editor = make(method, model, **settings)
    edit = editor.edit(model, FACTS, recorder=recorder)
    return edit, recorder.write(model), editor


@pytest.fixture(params=("llama", "gpt2"))
def model(request, tiny_model):
    return tiny_model(request.param)


def whole(record: EditRecord, l: int, lam: float, old_keys: list[torch.Tensor]) -> dict[str, np.ndarray]:
    """The matrices of module l in float64, from its token rows, all of which are in the record, and the old keys."""
    rows = {name: record.matrix(name, l).astype(np.float64) for name in record.kinds("tokens")}
    before = rows["G_before"] if "G_before" in rows else rows["G"]
    matrix = rows["H"].T @ rows["H"] + np.exp(lam) * np.eye(rows["H"].shape[1])
    if old_keys:
        matrix += old_keys[l].double().numpy().T @ old_keys[l].double().numpy()
    found = {"M": matrix, "HtG": rows["H"].T @ rows["G"], "HtG_before": rows["H"].T @ before}
    return found | {
        "shift": np.linalg.solve(matrix, found["HtG"]),
        "shift_before": np.linalg.solve(matrix, found["HtG_before"]),
    }


@pytest.mark.parametrize("facts", (FACTS, FACTS[:2]), ids=("summed", "fewer rows than D_h"))
@pytest.mark.parametrize("directions", (0, 3), ids=("", "old keys"))
@pytest.mark.parametrize("method", ("agrade", "malmen"))
def test_the_kept_rows_are_those_of_the_equations_and_the_numbers_are_theirs(
    model, method, directions, facts, tmp_path
):
    checkpoint = tiny.random_checkpoint(model, method)
    hypernet = tiny.random_hypernet(model, directions=directions).requires_grad_(False)
    recorder = Recorder(tmp_path / "record.safetensors")
    editor = make(method, model, replace(checkpoint, hypernet=hypernet))
    edit = editor.edit(model, facts, recorder=recorder)
    record = recorder.write(model)
    card = record.card
    assert len(card.facts) == card.rows == sum(len(item) for item in _answers(model)[: len(facts)])
    few = card.rows + directions < min(module.d_h for module in card.modules)
    assert few == (facts is not FACTS)
    assert card.projection == ("scaled" if method == "agrade" else "off")
    for l in MODULES:
        name, lam = card.modules[l].name, float(editor.checkpoint.hypernet.lam[l])
        direct, units = whole(record, l, lam, hypernet.old_keys), list(card.units[l])
        for kind in record.kinds("features"):
            scale = np.abs(direct[kind]).max()
            np.testing.assert_allclose(record.matrix(kind, l), direct[kind][units], atol=2e-5 * scale)
        np.testing.assert_array_equal(record.matrix("shift", l), edit.delta.shifts[name][units].numpy())
        own = card.numbers[l]
        for at, suffix in enumerate(("_before", "")):
            target, shift = direct["HtG" + suffix], direct["shift" + suffix]
            lengths = np.linalg.norm(target), np.linalg.norm(shift)
            assert own.cosine[at] == pytest.approx((target * shift).sum() / (lengths[0] * lengths[1]), rel=1e-4)
            assert own.distance[at] == pytest.approx(np.linalg.norm(target - shift) / lengths[0], rel=1e-4)
            gram = target @ target.T
            expected = (direct["M"] * gram).sum() / (np.linalg.norm(direct["M"]) * np.linalg.norm(gram))
            assert own.alignment[at] == pytest.approx(expected, rel=1e-4)
        eigenvalues = np.linalg.eigvalsh(direct["M"])
        assert own.condition_number == pytest.approx(eigenvalues[-1] / eigenvalues[0], rel=1e-3)
        assert own.effective_rank == pytest.approx(eigenvalues.sum() ** 2 / (eigenvalues**2).sum(), rel=1e-4)
        expected = np.linalg.svd(direct["shift"], compute_uv=False)
        np.testing.assert_allclose(own.singular_values, expected[:32], atol=1e-4 * expected[0])
        weight = float(torch.linalg.vector_norm(model.weight(card.modules[l])))
        assert own.relative_norm == pytest.approx(np.linalg.norm(direct["shift"]) / weight, rel=1e-4)
        scaled = record.matrix("G_before", l).astype(np.float64)
        assert own.kept == pytest.approx(np.linalg.norm(record.matrix("G", l)) / np.linalg.norm(scaled), rel=1e-4)
        if l:
            previous = record.matrix("G_before", l - 1).astype(np.float64)
            expected = (scaled * previous).sum() / (np.linalg.norm(scaled) * np.linalg.norm(previous))
            assert own.cosine_to_previous == pytest.approx(expected, rel=1e-3, abs=1e-6)


def test_of_several_rounds_the_first_is_kept(tiny_model, tmp_path):
    model = tiny_model("llama")
    edit, record, _ = recorded(model, tmp_path / "two.safetensors", rounds=2)
    once, alone, _ = recorded(model, tmp_path / "one.safetensors")
    assert any("show the first round" in note for note in edit.notes) and not once.notes
    assert edit.delta.norm != pytest.approx(once.delta.norm, rel=1e-3)
    for family in ("features", "tokens"):
        for kind in alone.kinds(family):
            np.testing.assert_array_equal(record.matrix(kind, 2), alone.matrix(kind, 2))
    assert record.card.numbers == alone.card.numbers


def test_of_a_single_row_eq4_changes_no_direction_and_rounding_is_told_as_nothing(tiny_model, tmp_path):
    model = tiny_model("llama")
    recorder = Recorder(tmp_path / "record.safetensors")
    [target, *_] = (text for text in map(chr, range(33, 127)) if len(model.tokenizer(" " + text)["input_ids"]) == 1)
    make("agrade", model).edit(model, [Fact("Paris is in", target)], recorder=recorder)
    record = recorder.write(model)
    assert record.card.rows == 1 and record.card.unchanged == (0,)
    for own in record.card.numbers:
        assert own.cosine[0] == own.cosine[1] == pytest.approx(1) and own.alignment[0] == own.alignment[1]
        assert own.distance[0] == own.distance[1]
        assert own.singular_values[1] < 1e-5 * own.singular_values[0]


def test_a_recorder_says_what_it_holds_and_lets_go_of_it(tiny_model, tmp_path):
    model = tiny_model("llama")
    recorder = Recorder(tmp_path / "record.safetensors", rows=6)
    assert recorder.held_bytes == 0
    make("agrade", model).edit(model, FACTS, recorder=recorder)
    shapes = [(module.d_h, module.d_g) for module in recorder.state.modules]
    rows = 6 * 4 * sum(d_h + d_g for d_h, d_g in shapes)
    products = sum((1 + (l > 0)) * d_h * d_g for l, (d_h, d_g) in enumerate(shapes))
    assert recorder.row_bytes == rows
    assert recorder.held_bytes == rows + 4 * (products + sum(d_h * d_h for d_h, _ in shapes))
    recorder.write(model)
    assert recorder.held_bytes == rows


@pytest.mark.parametrize("limit", (0, 10**9))
def test_an_edit_too_large_to_be_held_through_the_scoring_is_written_before_it(
    tiny_model, tmp_path, monkeypatch, limit
):
    monkeypatch.setattr(editing, "LIMIT_BYTES", limit)
    stages, recorder = [], Recorder(tmp_path / "record.safetensors")
    progress = lambda stage, _done, _total: stages.append(stage)  # noqa: E731
    run_edit(tiny_model("llama"), FACTS, "ultraedit", generate=0, progress=progress, recorder=recorder)
    assert "Scoring" in stages
    if limit:
        assert STAGE not in stages and not recorder.path.exists() and recorder.held_bytes > recorder.row_bytes
    else:
        assert stages.index(STAGE) < stages.index("Scoring") and recorder.path.is_file() and recorder.state is None


def test_eq4_left_no_share_of_the_previous_modules_gradient(tiny_model, tmp_path):
    _, record, _ = recorded(tiny_model("llama"), tmp_path / "record.safetensors")
    assert record.card.unchanged == (0,) and record.card.numbers[0].kept == pytest.approx(1)
    np.testing.assert_array_equal(record.matrix("G_before", 0), record.matrix("G", 0))
    for l in (1, 2):
        previous = record.matrix("G_before", l - 1)
        assert abs((record.matrix("G_before", l) * previous).sum()) > 1e-3 * np.linalg.norm(previous) ** 2
        lengths = np.linalg.norm(record.matrix("G", l)) * np.linalg.norm(previous)
        assert abs((record.matrix("G", l) * previous).sum()) < 1e-5 * lengths


def test_an_edit_is_the_same_with_a_recorder_and_without(model, tmp_path):
    edit, _, _ = recorded(model, tmp_path / "record.safetensors")
    plain = make("agrade", model).edit(model, FACTS)
    for name, shift in plain.delta.shifts.items():
        assert torch.equal(shift, edit.delta.shifts[name])


def test_the_sample_is_the_same_however_the_facts_are_chunked(tiny_model, tmp_path):
    model = tiny_model("llama")
    samples = []
    for tokens in (8, 40, 96):
        _, record, _ = recorded(chunked(model, tokens), tmp_path / f"{tokens}.safetensors", rows=6)
        samples.append(list(zip(record.card.facts, record.card.positions)))
        assert len(samples[-1]) == 6 < record.card.rows
        assert record.matrix("H", 1).shape[0] == 6 and record.matrix("M", 1).shape[0] == 6
    assert samples[0] == samples[1] == samples[2] == sorted(samples[0])
    _, other, _ = recorded(model, tmp_path / "other.safetensors", rows=6, seed=1)
    assert list(zip(other.card.facts, other.card.positions)) != samples[0]


def test_a_sampled_row_is_the_row_it_says_it_is(tiny_model, tmp_path):
    model = tiny_model("llama")
    _, few, _ = recorded(model, tmp_path / "few.safetensors", rows=6)
    _, every, _ = recorded(model, tmp_path / "all.safetensors")
    places = {pair: at for at, pair in enumerate(zip(every.card.facts, every.card.positions))}
    at = [places[pair] for pair in zip(few.card.facts, few.card.positions)]
    for kind in few.kinds("tokens"):
        np.testing.assert_allclose(few.matrix(kind, 2), every.matrix(kind, 2)[at], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("scope", ("answer", "all"))
def test_labels_name_the_token_there_and_the_one_after_it(tiny_model, tmp_path, scope):
    model = tiny_model("gpt2")
    _, record, _ = recorded(model, tmp_path / "record.safetensors", scope=scope)
    card = record.card
    for index, fact in enumerate(FACTS):
        own = [at for at, owner in enumerate(card.facts) if owner == index]
        said = "".join(card.predicted[at] for at in own)
        every = (fact.prompt + " " + fact.target)[len(card.tokens[own[0]]) :]
        assert said == (" " + fact.target if scope == "answer" else every)
        assert all(card.tokens[b] == card.predicted[a] for a, b in zip(own, own[1:]))
    assert card.prompts == tuple((index, fact.prompt, fact.target) for index, fact in enumerate(FACTS))
    assert card.fact_count == len(FACTS)


def test_rows_of_subjects_are_labelled_by_their_last_tokens(tiny_model, tmp_path):
    model = tiny_model("gpt2")
    _, record, _ = recorded(model, tmp_path / "record.safetensors", scope="subject")
    card, encoded = record.card, encode_facts(model, FACTS, "subject")
    assert card.facts == tuple(range(len(FACTS)))
    assert list(card.positions) == [item.rows("subject")[0] for item in encoded]
    assert any(position < item.start for position, item in zip(card.positions, encoded))


def test_row_by_row_nothing_before_eq4_was_summed(tiny_model, tmp_path):
    _, record, _ = recorded(tiny_model("llama"), tmp_path / "record.safetensors", projection="per_token")
    assert record.kinds("features") == ["M", "HtG", "shift"]
    assert "G_before" in record.kinds("tokens")
    assert record.card.numbers[1].kept is None and record.card.numbers[1].cosine[0] is None
    with pytest.raises(CheckpointError, match="HᵀG before Eq. 4"):
        record.matrix("HtG_before", 1)


def test_malmen_has_no_before(tiny_model, tmp_path):
    _, record, _ = recorded(tiny_model("llama"), tmp_path / "record.safetensors", "malmen")
    assert not set(BEFORE.values()) & set(record.kinds("features") + record.kinds("tokens"))
    assert record.card.unchanged == (0, 1, 2)


def test_without_a_regulariser_the_numbers_are_those_of_what_is_inverted(tiny_model, tmp_path):
    _, record, _ = recorded(tiny_model("llama"), tmp_path / "record.safetensors", regularisation=False)
    rows = record.matrix("H", 1).astype(np.float64)
    kept = np.linalg.svd(rows, compute_uv=False) ** 2
    kept = kept[kept > kept[0] * rows.shape[1] * np.finfo(np.float32).eps]
    assert record.card.numbers[1].condition_number == pytest.approx(kept[0] / kept[-1], rel=1e-2)


def test_what_cannot_be_read_is_said(tiny_model, tmp_path):
    path = tmp_path / "record.safetensors"
    with pytest.raises(CheckpointError, match="no longer"):
        EditRecord(path)
    path.write_bytes(b"nonsense")
    with pytest.raises(CheckpointError, match="damaged"):
        EditRecord(path)
    _, record, _ = recorded(tiny_model("llama"), path)
    save_file(load_file(path), path)
    with pytest.raises(CheckpointError, match="not a record"):
        EditRecord(path)
    with pytest.raises(EditingError, match="too few"):
        Recorder(path, rows=1)
    with pytest.raises(EditingError, match="keeps nothing"):
        Recorder(path).write(tiny_model("llama"))


def test_a_training_keeps_its_last_step_with_p(tiny_model, tmp_path):
    model = tiny_model("llama")
    chosen = TrainSettings(
        steps=2, layers="1-3", rank=4, smallest_batch=3, largest_batch=3, cache_gb=0.01, validate_every=9, warmup=1
    )
    trainer = Trainer(model, {"tiny": FACTS}, {}, chosen, tmp_path / "training")
    recorder = Recorder(tmp_path / "record.safetensors")
    before = []
    trainer.run(on_step=lambda _record: before.append(trainer.hypernet.lam.detach().clone()), recorder=recorder)
    record = EditRecord(recorder.path)
    card = record.card
    assert card.fact_count == 3 == len(set(card.facts)) == len(card.prompts)
    lam = float(before[0][1])  # the second step solves with what the first one learned
    direct = whole(record, 1, lam, [])
    np.testing.assert_allclose(record.matrix("M", 1), direct["M"][list(card.units[1])], rtol=1e-4, atol=1e-4)
    # P = H M⁻¹ g: in the span of H's rows M⁻¹, so that it is a linear function of H.
    keys, found = (record.matrix(kind, 1).astype(np.float64) for kind in ("H", "P"))
    direction = np.linalg.lstsq(keys, found, rcond=None)[0]
    np.testing.assert_allclose(keys @ direction, found, atol=1e-5 * np.abs(found).max())
    assert np.abs(found).max() > 0


def test_a_full_disk_costs_the_record_and_nothing_else(tiny_model, tmp_path):
    model = tiny_model("llama")
    (tmp_path / "full").write_text("no folder")
    recorder = Recorder(tmp_path / "full" / "record.safetensors")
    run = run_edit(model, FACTS, "ultraedit", generate=0, recorder=recorder)
    [note] = recorder.try_write(model)
    assert run.delta.shifts and "for the Projections tab" in note and recorder.state is None
    chosen = TrainSettings(
        steps=1, layers="1-3", rank=4, smallest_batch=3, largest_batch=3, cache_gb=0.01, validate_every=9, warmup=1
    )
    steps = []
    trainer = Trainer(model, {"tiny": FACTS}, {}, chosen, tmp_path / "training")
    trainer.run(on_step=steps.append, recorder=Recorder(tmp_path / "full" / "record.safetensors"))
    assert trainer.step == 1 and "for the Projections tab" in steps[0]["notes"][0]


def test_every_editor_that_records_names_its_matrices(tiny_model, tmp_path):
    recording = [name for name, editor in EDITORS.items() if editor.records]
    assert {"agrade", "malmen", "ultraedit"} <= set(recording) and "mend" not in recording
    for name in recording:
        _, record, _ = recorded(tiny_model("llama"), tmp_path / f"{name}.safetensors", name)
        assert set(record.kinds("features") + record.kinds("tokens")) <= set(KINDS)
        assert {"M", "HtG", "shift"} <= set(record.kinds("features")) and {"H", "G"} <= set(record.kinds("tokens"))
        # What the sampled rows say is what was summed, whatever the method.
        direct = record.matrix("H", 2).astype(np.float64).T @ record.matrix("G", 2)
        found = record.matrix("HtG", 2)
        np.testing.assert_allclose(found, direct[list(record.card.units[2])], atol=2e-5 * np.abs(direct).max())


def _answers(model):
    return [model.tokenizer(" " + fact.target, add_special_tokens=False)["input_ids"] for fact in FACTS]
