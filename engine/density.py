"""Density margins: a Gaussian kernel density estimate of each matrix along each axis of a plot."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

GRID_POINTS = 200
# Beyond the outermost points, as a share of the range: the curves come down to nothing.
OVERHANG = 0.08


@dataclass(frozen=True)
class Margin:
    """Densities along one axis: grid (g,), and a curve (g,) a matrix, or None where its points all lie in one place."""

    grid: np.ndarray
    curves: list[np.ndarray | None]


def margin(coordinates: Sequence[np.ndarray]) -> Margin:
    """The curves of matrices (n_i,) on one shared grid; bandwidth by Scott's rule (Parzen 1962; Scott 1992)."""
    together = np.concatenate(coordinates) if coordinates else np.empty(0)
    if not len(together):
        return Margin(np.empty(0), [None] * len(coordinates))
    low, high = float(together.min()), float(together.max())
    room = OVERHANG * (high - low)
    grid = np.linspace(low - room, high + room, GRID_POINTS)
    return Margin(grid, [_curve(own, grid) for own in coordinates])


def _curve(points: np.ndarray, grid: np.ndarray) -> np.ndarray | None:
    from scipy.stats import gaussian_kde  # a second, which only a picture should cost

    if len(points) < 2 or np.ptp(points) <= 1e-12 * max(np.abs(points).max(), 1e-300):
        return None
    return gaussian_kde(points.astype(np.float64))(grid)
