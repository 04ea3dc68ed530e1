"""How sure a mean over users is: Wilson's interval for shares, the bootstrap over users for the
rest and for differences. Knows no metric.
"""

import numpy as np

CONFIDENCE = 0.95
_BLOCK = 50  # resamples in memory at a time
_Z = 1.959963984540054  # of the normal distribution's 97.5 % quantile


def wilson(hits, n):
    """Wilson's score interval (1927) of a share: (low, high); (0, 1) for n = 0.

    It stays within 0..1, and has a width when nobody hit, where the bootstrap says [0, 0].
    """
    if not n:
        return 0.0, 1.0
    share, z2 = hits / n, _Z * _Z
    middle = (share + z2 / (2 * n)) / (1 + z2 / n)
    if not 0 < hits < n:  # exact ends, whatever rounding makes of them
        return (0.0, float(2 * middle)) if not hits else (float(2 * middle - 1), 1.0)
    half = _Z * np.sqrt(share * (1 - share) / n + z2 / (4 * n * n)) / (1 + z2 / n)
    return float(middle - half), float(middle + half)


def bootstrap_means(values, resamples=1000, seed=0):
    """Means of resampled users (Efron, 1979): each resample draws n users with replacement, the
    same ones for all columns, so that the difference of two columns is a paired one.

    Args:
      values: float64 [n, M], NaN where a user is left out of a column's mean.

    Returns:
      float64 [resamples, M]; NaN where a resample has no user that counts.
    """
    n = len(values)
    generator = np.random.default_rng(seed)
    known = ~np.isnan(values)
    both = np.concatenate([np.where(known, values, 0.0), known], axis=1)
    sums = []
    for first in range(0, resamples, _BLOCK):
        drawn = [generator.integers(n, size=n) for _ in range(min(_BLOCK, resamples - first))]
        times = np.stack([np.bincount(own, minlength=n) for own in drawn])
        sums.append(times.astype(np.float64) @ both)
    total, number = np.split(np.concatenate(sums), 2, axis=1)
    return np.divide(total, number, out=np.full_like(total, np.nan), where=number > 0)


def percentile_interval(samples):
    """(low, high) of bootstrap samples, float64 [resamples]; (nan, nan) when none is a number."""
    samples = samples[~np.isnan(samples)]
    if not len(samples):
        return float("nan"), float("nan")
    tail = (1 - CONFIDENCE) / 2
    low, high = np.quantile(samples, [tail, 1 - tail])
    return float(low), float(high)
