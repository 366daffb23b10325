"""Means and 95 % intervals: Wilson for indicators, a seeded bootstrap for shares and for the Editing Score."""

from collections.abc import Sequence

import numpy as np

RESAMPLES = 1000


def harmonic_mean(values: Sequence[float]) -> float:
    """n / Σ 1/v; 0 if one value is 0."""
    return 0.0 if min(values) <= 0 else len(values) / sum(1 / value for value in values)


def wilson(values: np.ndarray) -> tuple[float, float]:
    """Wilson's interval for the mean of indicators (n,) in {0, 1}."""
    from scipy.stats import binomtest  # a second to import

    interval = binomtest(int(values.sum()), len(values)).proportion_ci(method="wilson")
    return float(interval.low), float(interval.high)


def bootstrap_mean(values: np.ndarray) -> tuple[float, float]:
    """The percentile bootstrap interval for the mean of (n,) shares."""
    return _percentiles(_resample_means(values[:, None])[:, 0])


def bootstrap_score(instances: Sequence, success: str, locality: str) -> tuple[float, float]:
    """The bootstrap interval of the Editing Score: facts are resampled, with all their instances.

    A resample without a single equivalent or unrelated prompt has no Score, and is left out.
    """
    protocols = {"edit": success, "equivalent": success, "unrelated": locality}
    count = max(one.fact for one in instances) + 1
    sums, sizes = np.zeros((count, 3)), np.zeros((count, 3))
    for one in instances:
        value = one.success[protocols[one.kind]]
        if value is not None:
            column = list(protocols).index(one.kind)
            sums[one.fact, column] += value
            sizes[one.fact, column] += 1
    counts = _resample_means(sizes)
    whole = (counts > 0).all(1)
    means = _resample_means(sums)[whole] / counts[whole]
    with np.errstate(divide="ignore"):
        scores = np.where((means > 0).all(1), 3 / (1 / np.maximum(means, 1e-12)).sum(1), 0.0)
    return _percentiles(scores)


def _resample_means(columns: np.ndarray) -> np.ndarray:
    """(n, c) → (RESAMPLES, c): means over the same seeded resamples of the rows, whatever the columns."""
    generator = np.random.default_rng(0)
    count = len(columns)
    weights = generator.multinomial(count, np.full(count, 1 / count), size=RESAMPLES)
    return weights @ columns / count


def _percentiles(values: np.ndarray) -> tuple[float, float]:
    low, high = np.percentile(values, [2.5, 97.5])
    return float(low), float(high)
