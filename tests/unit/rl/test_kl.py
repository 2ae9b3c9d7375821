"""KL estimates: values, clamps, gradients."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from nemotron.rl.kl import KlType, calculate_kl, importance_weight, score_function_weight

LOGPROBS = st.lists(st.floats(-30, 0, width=32), min_size=1, max_size=6)


@pytest.mark.parametrize(("kl_type", "expected"), [("k1", -0.5), ("k2", 0.125), ("k3", math.exp(0.5) - 1.5)])
def test_values(kl_type: KlType, expected: float) -> None:
    assert calculate_kl(torch.tensor([-1.5]), torch.tensor([-1.0]), kl_type=kl_type).item() == pytest.approx(expected)


@settings(deadline=None)
@given(LOGPROBS, LOGPROBS, st.sampled_from(["k2", "k3"]))
def test_k2_and_k3_are_never_negative(policy: list[float], reference: list[float], kl_type: KlType) -> None:
    n = min(len(policy), len(reference))
    kl = calculate_kl(torch.tensor(policy[:n]), torch.tensor(reference[:n]), kl_type=kl_type)
    # k3 near 0 is a difference of numbers near 1, so it may miss 0 by their last bit.
    assert float(kl.min()) >= -2e-7


@settings(deadline=None)
@given(LOGPROBS, st.sampled_from(["k1", "k2", "k3"]))
def test_equal_policies_have_no_divergence(logprobs: list[float], kl_type: KlType) -> None:
    assert not calculate_kl(torch.tensor(logprobs), torch.tensor(logprobs), kl_type=kl_type).any()


def test_k3_is_unbiased() -> None:
    p, q = torch.tensor([0.6, 0.3, 0.1]).log(), torch.tensor([0.2, 0.5, 0.3]).log()
    expected = float((p.exp() * (p - q)).sum())
    assert float((p.exp() * calculate_kl(p, q)).sum()) == pytest.approx(expected, rel=1e-5)


def test_clamps() -> None:
    far = torch.tensor([-50.0])
    near = torch.tensor([0.0])
    assert calculate_kl(near, far, kl_type="k1", output_clamp=None).item() == 20
    assert calculate_kl(near, far, kl_type="k1").item() == 10
    assert calculate_kl(far, near, kl_type="k1").item() == -10
    assert calculate_kl(near, far, kl_type="k1", input_clamp=None, output_clamp=None).item() == 50


def test_score_function_weight_has_value_one_and_adds_the_kl_to_its_gradient() -> None:
    logprobs = torch.tensor([-1.5], requires_grad=True)
    weights = score_function_weight(logprobs)
    assert weights.item() == 1
    calculate_kl(logprobs, torch.tensor([-1.0]), weights=weights).sum().backward()
    assert logprobs.grad is not None
    # k3(x) + k3'(x) with x = 0.5 and dx = -1
    assert logprobs.grad.item() == pytest.approx((math.exp(0.5) - 1.5) + (1 - math.exp(0.5)))


def test_weights_are_constants_where_the_input_clamp_is_active() -> None:
    logprobs = torch.tensor([-3.0], requires_grad=True)
    kl = calculate_kl(
        logprobs, torch.tensor([-1.0]), input_clamp=0.5, output_clamp=None, weights=score_function_weight(logprobs)
    )
    kl.sum().backward()
    assert kl.item() == pytest.approx(math.exp(0.5) - 1.5)
    assert logprobs.grad is not None
    assert logprobs.grad.item() == 0


def test_importance_weight_counts_lost_probabilities_as_zero() -> None:
    inf = float("inf")
    new = torch.tensor([-1.0, -1.0, -inf, 200.0])
    old = torch.tensor([-2.0, -inf, -inf, 0.0])
    assert importance_weight(new, old).tolist() == pytest.approx([math.e, 0, 0, 0])
