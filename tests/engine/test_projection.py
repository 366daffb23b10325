"""Known geometry in, known geometry out: clusters, rotations, one basis, seeds, densities, and what cannot be drawn."""

import subprocess
import time
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file
from scipy.spatial.distance import cdist, pdist

from engine import embedding
from engine.cloud import gather, neighbours
from engine.density import margin
from engine.embedding import MANY_POINTS, clamped, embed, keep_compiled, nearest
from engine.errors import Cancelled, EditingError
from engine.projection import ProjectionSettings, fit_basis, project
from tests.engine.test_recorder import recorded

WIDTH, EACH = 24, 40


@pytest.fixture(scope="module")
def clusters() -> list[np.ndarray]:
    """Three clusters of 40 rows, far apart in 24 dimensions."""
    random = np.random.default_rng(0)
    centres = 12 * np.eye(3, WIDTH)
    return [(centre + random.standard_normal((EACH, WIDTH))).astype(np.float32) for centre in centres]


def settings(**changes) -> ProjectionSettings:
    return ProjectionSettings(**{"method": "pca", "scaling": "none", "components": 10} | changes)


def apart(points: list[np.ndarray]) -> float:
    """The least distance between two clusters' centres, in radii of the widest cluster."""
    centres = np.array([own.mean(0) for own in points])
    radius = max(np.linalg.norm(own - own.mean(0), axis=1).max() for own in points)
    return pdist(centres).min() / radius


def drawn(clusters: list[np.ndarray], method: str) -> list[np.ndarray]:
    chosen = settings(method=method, seed=3)
    return project(fit_basis(clusters, "abc", chosen), chosen).points


def test_planted_clusters_stay_apart_by_pca(clusters):
    assert apart(drawn(clusters, "pca")) > 2


@pytest.mark.parametrize("method", ("tsne", "umap"))
def test_planted_clusters_stay_apart_and_seeded_runs_repeat_exactly(clusters, method):
    one, other = drawn(clusters, method), drawn(clusters, method)
    assert apart(one) > 2
    for a, b in zip(one, other):
        np.testing.assert_array_equal(a, b)


def test_umap_of_many_points_is_given_their_exact_neighbours(monkeypatch, tmp_path):
    from umap import umap_

    random = np.random.default_rng(0)
    clusters = [(centre + random.standard_normal((MANY_POINTS // 3 + 1, 3))) for centre in 12 * np.eye(3)]
    rows = np.concatenate(clusters).astype(np.float32)
    indices, distances = nearest(rows, 5)
    every = cdist(rows[:50].astype(np.float64), rows.astype(np.float64))
    np.testing.assert_allclose(distances[:50], np.sort(every)[:, :5], atol=1e-5)
    np.testing.assert_array_equal(indices[:, 0], np.arange(len(rows)))

    monkeypatch.setattr(umap_, "nearest_neighbors", lambda *_, **__: pytest.fail("UMAP searched by itself."))
    options = {name: np.array([value]) for name, value in {"neighbours": 15, "min_dist": 0.1, "seed": 0}.items()}
    save_file({"rows": rows, **options}, tmp_path / "rows")
    embedding._compute("umap", tmp_path / "rows", tmp_path / "points")
    assert apart(np.split(load_file(tmp_path / "points")["points"], 3)) > 1


def test_what_is_compiled_of_umap_is_kept_for_the_next_process():
    from umap import layouts, umap_

    keep_compiled("umap")
    for function in (umap_.smooth_knn_dist, umap_.compute_membership_strengths, layouts.rdist):
        assert Path(function.stats.cache_path).is_dir()


@pytest.mark.parametrize("own", (None, "active"))
def test_its_process_waits_without_spinning_unless_told_otherwise(monkeypatch, own):
    monkeypatch.delenv("OMP_WAIT_POLICY", raising=False)
    if own:
        monkeypatch.setenv("OMP_WAIT_POLICY", own)
    given = []

    def begin(*_: object, env: dict[str, str], **__: object) -> None:
        given.append(env["OMP_WAIT_POLICY"])
        raise Cancelled

    monkeypatch.setattr(subprocess, "Popen", begin)
    with pytest.raises(Cancelled):
        embed(np.eye(30, 4, dtype=np.float32), "tsne", {"perplexity": 5, "seed": 0})
    assert given == [own or "passive"]


def test_the_randomised_pca_repeats_exactly():
    wide = [np.random.default_rng(1).standard_normal((60, 1500)).astype(np.float32)]  # the randomised PCA
    one, other = (fit_basis(wide, "a", settings(seed=5)) for _ in range(2))
    np.testing.assert_array_equal(one.scores[0], other.scores[0])


@pytest.mark.parametrize("scaling", ("none", "quantity"))
def test_a_rotation_changes_no_distance(clusters, scaling):
    rotation, _ = np.linalg.qr(np.random.default_rng(2).standard_normal((WIDTH, WIDTH)))
    turned = [(own @ rotation).astype(np.float32) for own in clusters]
    before = np.concatenate(fit_basis(clusters, "abc", settings(scaling=scaling)).linear)
    after = np.concatenate(fit_basis(turned, "abc", settings(scaling=scaling)).linear)
    np.testing.assert_allclose(pdist(after), pdist(before), rtol=1e-3, atol=1e-3 * pdist(before).max())


def test_all_dimensions_kept_keep_every_distance(clusters):
    rows = np.concatenate(clusters).astype(np.float64)
    basis = fit_basis(clusters, "abc", settings(components=WIDTH))
    np.testing.assert_allclose(pdist(np.concatenate(basis.scores)), pdist(rows), rtol=1e-4)
    assert basis.explained == {WIDTH: pytest.approx(1)}
    centred = rows - rows.mean(0)
    variance = np.linalg.svd(centred, compute_uv=False) ** 2
    assert basis.shares == pytest.approx(variance[:2] / variance.sum(), rel=1e-4)


@pytest.mark.parametrize("scaling", ("none", "quantity", "columns"))
def test_the_same_matrix_twice_lands_on_itself(clusters, scaling):
    matrices = [clusters[0], clusters[1], clusters[0].copy()]
    basis = fit_basis(matrices, ("HᵀG", "Δθ", "HᵀG"), settings(scaling=scaling))
    np.testing.assert_array_equal(basis.linear[0], basis.linear[2])
    np.testing.assert_array_equal(basis.scores[0], basis.scores[2])


def test_before_and_after_share_a_scale_and_quantities_are_made_equal(clusters):
    matrices = [clusters[0], 0.5 * clusters[0], 1e-6 * clusters[0]]
    scores = fit_basis(matrices, ("HᵀG", "HᵀG", "Δθ"), settings(scaling="quantity", components=WIDTH)).scores
    sizes = [np.linalg.norm(pdist(score)) for score in scores]
    assert sizes[1] / sizes[0] == pytest.approx(0.5, rel=1e-4)  # Eq. 4's shortening is seen
    assert sizes[2] / sizes[0] == pytest.approx(np.sqrt(1.25 / 2), rel=1e-3)  # Δθ is not a dot


def test_widths_that_differ_are_each_reduced_and_the_plot_says_so(clusters):
    wide = np.random.default_rng(3).standard_normal((EACH, 30)).astype(np.float32)
    basis = fit_basis([wide, clusters[0]], ("M", "HᵀG"), settings(components=50))
    assert {rows.shape[1] for rows in basis.scores} == {WIDTH}  # k: no more than the narrower one has
    assert set(basis.explained) == {30, WIDTH}
    assert any("30 and 24 columns" in note for note in basis.notes)
    assert any("instead of 50" in note for note in basis.notes)


def test_perplexity_and_neighbours_are_clamped_with_a_note():
    options = {"perplexity": 30, "neighbours": 15, "min_dist": 0.1, "seed": 0}
    chosen, notes = clamped("tsne", 10, options)
    assert chosen["perplexity"] == 3 and "Perplexity 3 instead of 30" in notes[0]
    chosen, notes = clamped("umap", 10, options)
    assert chosen["neighbours"] == 9 and "n_neighbors 9 instead of 15" in notes[0]
    assert clamped("tsne", 1000, options) == (options, []) == clamped("umap", 1000, options)


def test_few_points_are_still_drawn():
    rows = np.random.default_rng(0).standard_normal((6, 4)).astype(np.float32)
    points, notes = embed(rows, "tsne", {"perplexity": 30, "neighbours": 15, "min_dist": 0.1, "seed": 0})
    assert points.shape == (6, 2) and np.isfinite(points).all() and notes


def test_a_cancel_ends_the_process_at_once(monkeypatch):
    started = []

    class Seen(subprocess.Popen):
        def __init__(self, *arguments, **options):
            super().__init__(*arguments, **options)
            started.append(self)

    monkeypatch.setattr(embedding.subprocess, "Popen", Seen)
    rows = np.random.default_rng(0).standard_normal((4000, 50)).astype(np.float32)
    asked = []

    def cancel(stage, _done, _total):
        asked.append(stage)
        if len(asked) == 3:
            raise Cancelled

    begun = time.monotonic()
    with pytest.raises(Cancelled):
        embed(rows, "tsne", {"perplexity": 30, "neighbours": 15, "min_dist": 0.1, "seed": 0}, cancel)
    assert started[0].poll() is not None and time.monotonic() - begun < 10


def test_what_cannot_be_drawn_is_said(clusters):
    with pytest.raises(EditingError, match="no point to draw"):
        fit_basis([], [], settings())
    with pytest.raises(EditingError, match="one point to draw"):
        fit_basis([clusters[0][:1]], "a", settings())
    with pytest.raises(EditingError, match="All rows are the same"):
        fit_basis([np.ones((5, 3), np.float32)] * 2, "ab", settings())
    broken = clusters[0].copy()
    broken[3, 3] = np.nan
    with pytest.raises(EditingError, match="not finite"):
        fit_basis([broken], "a", settings())
    with pytest.raises(EditingError, match="needs 5 points"):
        embed(clusters[0][:4], "umap", {"perplexity": 30, "neighbours": 15, "min_dist": 0.1, "seed": 0})
    wrong = {"method": "pie", "scaling": "rows", "components": 1, "perplexity": float("nan"), "min_dist": 2}
    for name, value in wrong.items():
        with pytest.raises(EditingError, match=name.capitalize()):
            settings(**{name: value}).check()


def test_densities_are_those_of_the_points():
    random = np.random.default_rng(0)
    left, right = random.normal(-3, 1, 4000), random.normal(3, 0.5, 4000)
    found = margin([left, right, np.full(5, 2.0), np.array([1.0])])
    assert found.curves[2] is None and found.curves[3] is None
    step = found.grid[1] - found.grid[0]
    for curve, centre in ((found.curves[0], -3), (found.curves[1], 3)):
        assert curve.sum() * step == pytest.approx(1, abs=0.02)
        assert found.grid[curve.argmax()] == pytest.approx(centre, abs=0.5)
    assert found.curves[1].max() == pytest.approx(2 * found.curves[0].max(), rel=0.15)


def test_clouds_of_a_record_and_its_neighbours(tiny_model, tmp_path):
    _, record, _ = recorded(tiny_model("llama"), tmp_path / "record.safetensors")
    clouds = [
        cloud
        for run in (0, 1)
        for cloud in gather(record, "features", [1, 2], ["HtG_before", "HtG", "M"], sample=10, run=run)
    ]
    assert [(one.run, one.module, one.kind) for one in clouds][:4] == [
        (0, 1, "HtG_before"), (0, 1, "HtG"), (0, 1, "M"), (0, 2, "HtG_before"),
    ]  # fmt: skip
    np.testing.assert_array_equal(clouds[0].units, clouds[1].units)
    unit = clouds[0].units[3]
    assert record.card.facts[np.abs(record.matrix("H", 1)[:, unit]).argmax()] == clouds[0].facts[3]
    nearest = neighbours(clouds, 1, 3, 5)
    assert len(nearest) == 5 and nearest[0][:2] == (7, 3) and nearest[0][2] == 0  # the same row of the other run
    every = np.concatenate([one.rows for one in clouds if one.rows.shape[1] == clouds[1].rows.shape[1]])
    distances = np.sort(np.linalg.norm(every - clouds[1].rows[3], axis=1))
    assert [one[2] for one in nearest] == pytest.approx(distances[1:6], rel=1e-5)


def test_a_smaller_sample_has_the_same_tokens_of_every_module(tiny_model, tmp_path):
    _, record, _ = recorded(tiny_model("llama"), tmp_path / "record.safetensors")
    clouds = gather(record, "tokens", [0, 1, 2], ["H", "G"], sample=4)
    assert all(len(one.rows) == 4 for one in clouds)
    assert len({(*one.facts.tolist(), *one.positions.tolist()) for one in clouds}) == 1


def test_runs_that_have_nothing_to_draw_say_why(tiny_model, tmp_path):
    model = tiny_model("llama")
    _, record, _ = recorded(model, tmp_path / "malmen.safetensors", "malmen")
    with pytest.raises(EditingError, match="without Eq. 4"):
        gather(record, "features", [0], ["HtG_before"], 10)
    with pytest.raises(EditingError, match="in training only"):
        gather(record, "tokens", [0], ["P"], 10)
    for kinds, modules, family, words in (
        ([], [0], "features", "No matrix"),
        (["M"], [], "features", "No module"),
        (["M"], [7], "features", "no module 8"),
        (["M"], [0], "tokens", "M has no rows that are tokens"),
        (["W"], [0], "features", "no matrix 'W'"),
    ):
        with pytest.raises(EditingError, match=words):
            gather(record, family, modules, kinds, 10)
