"""Means and 95 % intervals: Wilson for indicators, a seeded bootstrap for shares and for the Editing Score.

The bootstrap knows no more than it was given: of a few values, and of values that are all alike, its resamples are
alike, and it would tell of certainty where nothing is known. Then there is no interval: (None, None).
"""

from collections.abc import Sequence

import numpy as np

Interval = tuple[float, float] | tuple[None, None]
RESAMPLES = 1000
FEWEST = 5  # values, or facts, that a resample is drawn from
NARROWEST = 1e-9  # what is narrower is one value, but for rounding


def harmonic_mean(values: Sequence[float]) -> float:
    """n / Σ 1/v; 0 if one value is 0."""
    return 0.0 if min(values) <= 0 else len(values) / sum(1 / value for value in values)


def wilson(values: np.ndarray) -> tuple[float, float]:
    """Wilson's interval for the mean of indicators (n,) in {0, 1}."""
    from scipy.stats import binomtest  # a second to import

    interval = binomtest(int(values.sum()), len(values)).proportion_ci(method="wilson")
    return float(interval.low), float(interval.high)


def bootstrap_mean(values: np.ndarray) -> Interval:
    """The percentile bootstrap interval for the mean of (n,) shares; none of fewer than FEWEST or of equal ones."""
    return _percentiles(_resample_means(values[:, None])[:, 0]) if len(values) >= FEWEST else (None, None)


def bootstrap_score(instances: Sequence, success: str, locality: str) -> Interval:
    """The bootstrap interval of the Editing Score: facts are resampled, with all their instances.

    A resample without a single equivalent or unrelated prompt has no Score, and is left out. There is no interval
    where fewer than FEWEST facts have prompts of one kind, or where all resamples have the same Score.
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
    if (sizes > 0).sum(0).min() < FEWEST:
        return None, None
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
    drawn = (np.bincount(generator.integers(count, size=count), minlength=count) for _ in range(RESAMPLES))
    return np.stack([times @ columns for times in drawn]) / count  # one at a time: all at once are a gigabyte of 80,000


def _percentiles(values: np.ndarray) -> Interval:
    low, high = np.percentile(values, [2.5, 97.5])
    return (float(low), float(high)) if high - low > NARROWEST else (None, None)
