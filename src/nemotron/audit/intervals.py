"""Shares, means and their 95% confidence intervals, in plain Python.

Formulas: Wilson (1927) for a share; Newcombe (1998), method 10, for the difference of two shares; Student's t for a
mean, its quantile by the expansion 26.7.5 of Abramowitz and Stegun. Rows that belong together (pairs of one prompt) are
worth fewer than their number: the design effect of Kish (1965) says how many.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from statistics import NormalDist, fmean, pstdev, stdev

Z = NormalDist().inv_cdf(0.975)


@dataclass(frozen=True, slots=True)
class Estimate:
    """A figure, the interval that holds the true one in 95 of 100 samples, and the number of rows behind it."""

    value: float
    low: float
    high: float
    n: int


def wilson(share: float, n: float) -> tuple[float, float]:
    """Bounds of a share seen in ``n`` independent rows (``n`` may be an effective, fractional size above 0)."""
    z2 = Z * Z
    middle = (share + z2 / (2 * n)) / (1 + z2 / n)
    half = Z * math.sqrt(share * (1 - share) / n + z2 / (4 * n * n)) / (1 + z2 / n)
    # At 0 and 1 the bound is the share itself; rounding must not put it a hair beyond.
    return min(max(0.0, middle - half), share), max(min(1.0, middle + half), share)


def share(values: Sequence[float], clusters: Sequence[Hashable] | None = None) -> Estimate | None:
    """Mean of values in [0, 1] with Wilson's interval; None without rows.

    With ``clusters`` (one per value) the interval is that of the effective number of rows.
    """
    if not values:
        return None
    mean = fmean(values)
    low, high = wilson(mean, len(values) if clusters is None else effective_rows(values, clusters))
    return Estimate(mean, low, high, len(values))


def effective_rows(values: Sequence[float], clusters: Sequence[Hashable]) -> float:
    """Independent rows that would estimate the mean of a share as well as these do: at most their number, at least 1.

    The design effect is the variance of the mean between clusters, ``G/(G-1) sum_g (sum_i in g (x_i - mean))^2 / n^2``,
    over the variance ``p (1 - p) / n`` of independent rows. Where all values are equal it is unknown, and each of the
    G clusters counts once.
    """
    n, mean = len(values), fmean(values)
    residuals: dict[Hashable, float] = defaultdict(float)
    for value, cluster in zip(values, clusters, strict=True):
        residuals[cluster] += value - mean
    groups = len(residuals)
    independent = mean * (1 - mean) / n
    if groups == n:
        return float(n)
    if groups < 2 or independent == 0:
        return float(groups)
    clustered = groups / (groups - 1) * sum(r * r for r in residuals.values()) / (n * n)
    return max(1.0, n / max(clustered / independent, 1.0))


def mean_of(values: Sequence[float]) -> Estimate | None:
    """Mean of independent values with Student's interval; None without rows, unbounded for a single one."""
    if not values:
        return None
    mean, n = fmean(values), len(values)
    if n == 1:
        return Estimate(mean, -math.inf, math.inf, 1)
    half = t_quantile(n - 1) * stdev(values) / math.sqrt(n)
    return Estimate(mean, mean - half, mean + half, n)


def cluster_means(values: Sequence[float], clusters: Sequence[Hashable]) -> list[float]:
    """The mean of each cluster, in order of appearance: rows of their own where single values are not independent."""
    members: dict[Hashable, list[float]] = {}
    for value, cluster in zip(values, clusters, strict=True):
        members.setdefault(cluster, []).append(value)
    return [fmean(group) for group in members.values()]


def t_quantile(degrees: int) -> float:
    """97.5% quantile of Student's t (within 1% from 2 degrees of freedom on, 0.1% from 4)."""
    z, v = Z, float(degrees)
    g1 = (z**3 + z) / 4
    g2 = (5 * z**5 + 16 * z**3 + 3 * z) / 96
    g3 = (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384
    g4 = (79 * z**9 + 776 * z**7 + 1482 * z**5 - 1920 * z**3 - 945 * z) / 92160
    return z + g1 / v + g2 / v**2 + g3 / v**3 + g4 / v**4


def difference(first: Estimate | None, second: Estimate | None, correlation: float = 0.0) -> Estimate | None:
    """First share minus second, with Newcombe's interval from the intervals of both; None when either is unknown.

    ``correlation``: of the two values of one row, where both shares are of the same rows.
    """
    if first is None or second is None:
        return None
    delta = first.value - second.value
    down, up = first.value - first.low, second.high - second.value
    low = delta - math.sqrt(max(down * down - 2 * correlation * down * up + up * up, 0.0))
    up, down = first.high - first.value, second.value - second.low
    high = delta + math.sqrt(max(down * down - 2 * correlation * down * up + up * up, 0.0))
    return Estimate(delta, max(low, -1.0), min(high, 1.0), first.n + second.n)


def balance(values: Sequence[float]) -> Estimate | None:
    """Mean of independent values in [-1, 1]: what is above zero against what is below; None without rows.

    Unlike Student's interval it stays honest where all values are equal: ten times 1 do not prove that it is always 1.
    """
    above, below = [max(value, 0.0) for value in values], [max(-value, 0.0) for value in values]
    first, second = share(above), share(below)
    if first is None or second is None:
        return None
    # A row is never above and below zero at once, so the covariance is minus the product of the means.
    spread = pstdev(above) * pstdev(below)
    correlation = max(-first.value * second.value / spread, -1.0) if spread else 0.0
    found = difference(first, second, correlation)
    return found if found is None else Estimate(found.value, found.low, found.high, len(values))


def cosine(x: Sequence[float], y: Sequence[float]) -> float | None:
    """Correlation of two differences, ``sum xy / sqrt(sum x^2 sum y^2)``; None when either is zero throughout.

    Which answer of a pair comes first in a difference is arbitrary, so no mean is taken off: with both directions of
    every pair the means are zero, and this is Pearson's correlation.
    """
    norm = math.sqrt(sum(a * a for a in x) * sum(b * b for b in y))
    return sum(a * b for a, b in zip(x, y, strict=True)) / norm if norm else None


def entropy(counts: Sequence[int]) -> float:
    """Entropy of a distribution given by counts, in bits."""
    total = sum(counts)
    return -sum(c / total * math.log2(c / total) for c in counts if c) if total else 0.0
