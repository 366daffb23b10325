"""The numbers beside a picture agree with full decompositions in float64."""

import numpy as np
import pytest
import torch

from engine.geometry import (
    GRAM_WIDTH,
    OfFewRows,
    Regularised,
    closeness,
    condition_number,
    effective_rank,
    inner,
    singular_values,
)


@pytest.mark.parametrize("row_count", (1, 150, 1000))
def test_numbers_of_a_large_matrix_agree_with_a_full_decomposition(row_count):
    random = torch.Generator().manual_seed(0)
    keys = torch.randn(row_count, 700, generator=random) * torch.logspace(1, -2, 700)
    matrix = Regularised(keys.T @ keys, 0.05, row_count)
    full = (keys.double().T @ keys.double() + 0.05 * torch.eye(700)).numpy()
    factor = torch.linalg.cholesky(torch.from_numpy(full).float())
    eigenvalues, vectors = np.linalg.eigh(full)
    found = condition_number(matrix, lambda v: torch.cholesky_solve(v, factor))
    assert found == pytest.approx(eigenvalues[-1] / eigenvalues[0], rel=2e-3)
    assert effective_rank(matrix) == pytest.approx(eigenvalues.sum() ** 2 / (eigenvalues**2).sum(), rel=1e-6)
    targets = keys.T @ torch.randn(row_count, 520, generator=random)
    shift = torch.cholesky_solve(targets, factor)
    own, other = targets.double().numpy(), shift.double().numpy()
    gram, lengths = own @ own.T, np.linalg.norm(own) * np.linalg.norm(other)
    near = closeness(matrix, targets, shift)
    assert near.cosine == pytest.approx((own * other).sum() / lengths, rel=1e-6)
    assert near.distance == pytest.approx(np.linalg.norm(own - other) / np.linalg.norm(own), rel=1e-6)
    expected = (full * gram).sum() / (np.linalg.norm(full) * np.linalg.norm(gram))
    assert near.alignment == pytest.approx(expected, rel=1e-5)
    assert tuple(closeness(matrix, torch.zeros(700, 520), shift)) == (0, 0, 0)
    for at in (-1, 0):  # of one direction the alignment is that direction's share of M
        one = torch.from_numpy(np.ascontiguousarray(vectors[:, [at]])).float()
        expected = eigenvalues[at] / np.linalg.norm(full)
        assert closeness(matrix, one, one).alignment == pytest.approx(expected, rel=1e-3, abs=1e-8)


@pytest.mark.parametrize("row_count", (6, 24, 30))
def test_condition_number_of_few_rows_is_that_of_the_whole_matrix(row_count):
    keys = torch.randn(row_count, 24, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    whole = keys.T @ keys + 0.5 * torch.eye(24, dtype=torch.float64)
    assert OfFewRows(keys, 0.5).condition_number == pytest.approx(float(torch.linalg.cond(whole)), rel=1e-9)


def test_two_matrices_all_but_alike_are_told_apart():
    random = torch.Generator().manual_seed(0)
    one = torch.randn(600, 40, generator=random)
    other = one + 1e-4 * torch.randn(600, 40, generator=random)
    matrix, length = Regularised(torch.eye(600), 0.0, 600), torch.linalg.vector_norm(one.double())
    found = closeness(matrix, one, other).distance
    assert found == pytest.approx(float(torch.linalg.vector_norm(one.double() - other.double()) / length), rel=1e-6)
    least = 1e-6 * one  # as Δθ is to HᵀG
    assert 1 - closeness(matrix, one, least).distance == pytest.approx(1e-6, rel=1e-6)
    assert inner(one, one) == pytest.approx(float(one.double().square().sum()), rel=1e-7)


@pytest.mark.parametrize("shape", ((1200, 300), (300, 1200)))
def test_singular_values_of_a_matrix_that_fits_are_those_of_its_decomposition(shape):
    random = torch.Generator().manual_seed(0)
    flat = torch.randn(shape, generator=random)
    exact = np.linalg.svd(flat.double().numpy(), compute_uv=False)[:32]
    np.testing.assert_allclose(singular_values(flat), exact, rtol=1e-8)
    left, right = torch.randn(1200, 20, generator=random).double(), torch.randn(300, 20, generator=random).double()
    steep = (torch.linalg.qr(left)[0] * 10.0 ** -torch.arange(20)) @ torch.linalg.qr(right)[0].T
    found = singular_values(steep if shape == (1200, 300) else steep.T)
    np.testing.assert_allclose(found[:7], 10.0 ** -np.arange(7), rtol=1e-3)
    assert max(found[8:]) < 1e-7 and list(found) == sorted(found, reverse=True)


def test_singular_values_of_a_wider_matrix_are_found_from_random_directions():
    random = torch.Generator().manual_seed(0)
    width = GRAM_WIDTH + 100
    flat = torch.randn(width + 300, width, generator=random)
    exact = torch.linalg.svdvals(flat.double()).numpy()[:32]
    found = np.array(singular_values(flat))
    assert (found <= exact * 1.0001).all() and (found > 0.9 * exact).all()
    assert singular_values(flat) == tuple(found)
    turned = torch.linalg.qr(torch.randn(width, width, generator=random))[0]
    decaying = flat @ (torch.logspace(0, -2, width)[:, None] * turned)
    exact = torch.linalg.svdvals(decaying.double()).numpy()[:32]
    np.testing.assert_allclose(singular_values(decaying), exact, rtol=0.02)
    low = flat[:, :40] @ torch.randn(40, width, generator=random)
    exact = torch.linalg.svdvals(low.double()).numpy()[:32]
    np.testing.assert_allclose(singular_values(low), exact, rtol=1e-4)
