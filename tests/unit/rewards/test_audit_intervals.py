"""Confidence intervals against published values, and the cases where a formula would divide by zero."""

from __future__ import annotations

import math
import random

import pytest

from nemotron.audit import intervals as i


@pytest.mark.parametrize(
    ("hits", "n", "low", "high"),
    # Newcombe (1998), Two-sided confidence intervals for the single proportion, table I, method 3.
    [(81, 263, 0.2553, 0.3662), (15, 148, 0.0624, 0.1605), (0, 20, 0.0, 0.1611), (1, 29, 0.0061, 0.1718)],
)
def test_wilson(hits: int, n: int, low: float, high: float) -> None:
    assert i.wilson(hits / n, n) == (pytest.approx(low, abs=5e-5), pytest.approx(high, abs=5e-5))
    mirrored = i.wilson(1 - hits / n, n)
    assert mirrored == (pytest.approx(1 - high, abs=5e-5), pytest.approx(1 - low, abs=5e-5))


@pytest.mark.parametrize(
    ("a", "m", "b", "n", "low", "high"),
    # Newcombe (1998), Interval estimation for the difference between independent proportions, table II, method 10.
    [
        (56, 70, 48, 80, 0.0524, 0.3339),
        (9, 10, 3, 10, 0.1705, 0.8090),
        (5, 56, 0, 29, -0.0381, 0.1926),
        (10, 10, 0, 20, 0.6791, 1.0),
    ],
)
def test_difference_of_shares(a: int, m: int, b: int, n: int, low: float, high: float) -> None:
    found = i.difference(i.share([1.0] * a + [0.0] * (m - a)), i.share([1.0] * b + [0.0] * (n - b)))
    assert found is not None
    assert (found.low, found.high) == (pytest.approx(low, abs=5e-5), pytest.approx(high, abs=5e-5))
    assert (found.value, found.n) == (pytest.approx(a / m - b / n), m + n)
    assert i.difference(None, i.share([1.0])) is None


@pytest.mark.parametrize(
    ("degrees", "value", "tolerance"),
    [(2, 4.3027, 0.01), (4, 2.7764, 0.001), (10, 2.2281, 1e-4), (30, 2.0423, 1e-4), (1000, 1.9623, 1e-4)],
)
def test_student(degrees: int, value: float, tolerance: float) -> None:
    assert i.t_quantile(degrees) == pytest.approx(value, rel=tolerance)


def test_mean() -> None:
    found = i.mean_of([4.0, 6.0, 8.0, 10.0, 12.0])
    # sd = sqrt(10), t(4) = 2.7764: half width 3.9265
    assert found is not None
    assert (found.value, found.low, found.high) == (
        8,
        pytest.approx(4.0735, abs=5e-3),
        pytest.approx(11.9265, abs=5e-3),
    )
    assert i.mean_of([]) is None
    assert i.mean_of([3.0]) == i.Estimate(3.0, -math.inf, math.inf, 1)


def test_effective_rows() -> None:
    values = [1.0, 0.0, 1.0, 1.0, 0.0, 0.0, 1.0, 0.0]
    assert i.effective_rows(values, range(8)) == 8
    # Every row twice: the mean is known no better, so about half of the rows count (G/(G-1) takes one more).
    doubled = i.effective_rows(values * 2, [*range(8), *range(8)])
    assert doubled == pytest.approx(7)
    # Opposite rows in a cluster would even help; that is not relied upon.
    assert i.effective_rows([1.0, 0.0] * 5, [k // 2 for k in range(10)]) == 10
    assert i.effective_rows([1.0] * 10, [k // 5 for k in range(10)]) == 2
    assert i.effective_rows([1.0, 0.0], ["a", "a"]) == 1


def test_the_interval_of_clustered_rows_holds_what_it_promises() -> None:
    """Ten rows per cluster that agree: Wilson with effective rows covers 95%, with plain rows far less."""
    source = random.Random(1)
    covered = {"clustered": 0, "plain": 0}
    for _ in range(300):
        clusters = [source.random() < 0.6 for _ in range(40)]
        values = [float(right) for right in clusters for _ in range(10)]
        names = [k for k in range(40) for _ in range(10)]
        for kind, groups in (("clustered", names), ("plain", None)):
            found = i.share(values, groups)
            assert found is not None
            covered[kind] += found.low <= 0.6 <= found.high
    assert covered["clustered"] / 300 > 0.92
    assert covered["plain"] / 300 < 0.6


def test_balance() -> None:
    found = i.balance([1.0] * 60 + [-1.0] * 40)
    assert found is not None
    # Only wins and losses: twice the share of wins, less one, and so is its interval.
    low, high = i.wilson(0.6, 100)
    assert (found.value, found.low, found.high) == tuple(pytest.approx(2 * x - 1) for x in (0.6, low, high))
    sure, none = i.balance([1.0] * 10), i.balance([0.0] * 200)
    assert sure is not None
    assert none is not None
    assert 0.5 < sure.low < sure.high == 1.0
    assert (none.value, none.low) == (0, -none.high)
    assert 0.015 < none.high < 0.03
    assert i.balance([]) is None


def test_cluster_means_cosine_entropy() -> None:
    assert i.cluster_means([1.0, 3.0, 5.0], ["b", "a", "b"]) == [3.0, 3.0]
    assert i.cosine([1.0, -2.0], [2.0, -4.0]) == pytest.approx(1)
    assert i.cosine([1.0, 1.0], [1.0, -1.0]) == pytest.approx(0)
    assert i.cosine([0.0], [1.0]) is None
    # Turning a pair round changes nothing.
    assert i.cosine([1.0, -2.0, 3.0], [1.0, 5.0, 2.0]) == pytest.approx(i.cosine([1.0, 2.0, 3.0], [1.0, -5.0, 2.0]))
    assert i.entropy([1, 1, 1, 1]) == 2
    assert i.entropy([7]) == 0
    assert i.entropy([]) == 0
