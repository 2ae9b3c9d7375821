"""Signs that a run goes wrong: when they are seen, said and stopped by, whole or resumed."""

from __future__ import annotations

from typing import Any

import pytest

from nemotron.config.schema.extras import LimitsConfig
from nemotron.runs.health import BEFORE, DEAD_GROUPS, DRIFT, ENTROPY, GRAD_NORM, WINDOW, Bounds, Herald, Watch, troubles

Rows = list[dict[str, Any]]


def rows(metric: str, values: list[float]) -> Rows:
    return [{"step": step, metric: value} for step, value in enumerate(values, 1)]


BAD: dict[str, tuple[Rows, str]] = {
    "dead groups": (rows(DEAD_GROUPS, [0.6] * WINDOW), "60% of the groups of the last 10 steps"),
    "entropy": (rows(ENTROPY, [2.0] * WINDOW + [0.05] * WINDOW), "0.05 nats a token (mean of 10 steps), 2 at"),
    "gradient spike": (rows(GRAD_NORM, [1.0] * 6 + [30.0]), "30 times the median of the 6 steps before"),
    "sampler drift": (rows(DRIFT, [1.2]), "by a factor of 1.200"),
}
GOOD: dict[str, Rows] = {
    "dead groups": rows(DEAD_GROUPS, [1.0, *[0.4] * 2 * WINDOW]),
    "entropy": rows(ENTROPY, [2.0] * WINDOW + [0.5] * 2 * WINDOW),
    "gradient spike": rows(GRAD_NORM, [30.0, *[1.0] * BEFORE, 9.0, 1.0]),
    "sampler drift": rows(DRIFT, [1.05] * WINDOW),
}
LIMITS: dict[str, tuple[str, float, float]] = {
    "dead groups": ("max_dead_groups", 0.59, 0.61),
    "entropy": ("min_entropy", 0.06, 0.04),
    "gradient spike": ("max_grad_spike", 29.0, 31.0),
    "sampler drift": ("max_sampler_drift", 1.19, 1.21),
}


@pytest.mark.parametrize("kind", BAD)
def test_a_sign_is_seen_and_says_what_to_do(kind: str) -> None:
    seen, text = BAD[kind]
    watch = Watch()
    *before, last = [watch.see(row) for row in seen]
    assert not any(before)
    (sign,) = last
    assert (sign.kind, sign.step, sign.limit) == (kind, len(seen), None)
    assert text in sign.text
    assert "`" in sign.hint


@pytest.mark.parametrize("kind", GOOD)
def test_what_is_usual_is_no_sign(kind: str) -> None:
    watch = Watch()
    assert not [sign for row in GOOD[kind] for sign in watch.see(row)]
    assert not troubles(GOOD[kind])


@pytest.mark.parametrize("kind", LIMITS)
def test_a_limit_is_crossed_where_it_says(kind: str) -> None:
    name, crossed, kept = LIMITS[kind]
    assert name in LimitsConfig.model_fields
    for value, expected in ((crossed, f"limits.{name}"), (kept, None)):
        limits = LimitsConfig(max_kl=None, max_missing_share=0.5, **{name: value})
        watch = Watch(Bounds.of(limits))
        (sign,) = [watch.see(row) for row in BAD[kind][0]][-1]
        assert sign.limit == expected


@pytest.mark.parametrize("kind", BAD)
@pytest.mark.parametrize("cut", range(1, 2 * WINDOW, 3))
def test_a_run_that_goes_on_sees_what_it_would_have_seen(kind: str, cut: int) -> None:
    seen = BAD[kind][0]
    whole = Watch()
    expected = [whole.see(row) for row in seen][cut:]
    resumed = Watch(None, seen[:cut])
    assert [resumed.see(row) for row in seen[cut:]] == expected


def test_a_sign_is_said_when_it_begins_and_again_after_it_was_gone() -> None:
    herald = Herald()
    said = [bool(herald.see(row)) for row in rows(DRIFT, [1.0, 1.2, 1.3, 1.0, 1.2])]
    assert said == [False, True, False, False, True]
    assert not Herald(rows(DRIFT, [1.2])).see({"step": 2, DRIFT: 1.3})


def test_a_run_is_summed_up_by_kind() -> None:
    drift, spike = rows(DRIFT, [1.2, 1.0, 1.3]), rows(GRAD_NORM, [1.0] * 6 + [30.0])
    first, second = troubles([*drift, *spike])
    assert (first.last.kind, first.first_step, first.steps, first.last.step) == ("sampler drift", 1, 2, 3)
    assert (second.last.kind, second.steps) == ("gradient spike", 1)


def test_rows_without_such_metrics_or_with_odd_values_are_passed_over() -> None:
    odd = {"step": 1, DEAD_GROUPS: None, ENTROPY: "low", GRAD_NORM: float("inf"), DRIFT: True}
    assert not troubles([{"step": 0}, {}, odd])
