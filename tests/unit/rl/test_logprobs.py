"""Log-probs of tokens: temperature, top-k, top-p, cut-off tokens, sampler against trainer."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from nemotron.rl.logprobs import (
    filter_logits,
    mask_out_neg_inf,
    mask_sequence_errors,
    next_token_logprobs,
    token_logprobs,
)

# Probabilities 1/2, 1/4, 1/8, 1/8.
LOGITS = torch.log(torch.tensor([0.5, 0.25, 0.125, 0.125]))


def test_token_logprobs_of_known_distribution() -> None:
    got = token_logprobs(LOGITS.expand(4, 4), torch.arange(4))
    assert got.tolist() == pytest.approx([math.log(p) for p in (0.5, 0.25, 0.125, 0.125)])


def test_temperature_divides_the_logits() -> None:
    # At temperature 1/2 probabilities are squared and normalised again: 1/4 of 22/64.
    got = token_logprobs(LOGITS[None], torch.tensor([0]), temperature=0.5)
    assert got.item() == pytest.approx(math.log(0.25 / (0.25 + 0.0625 + 2 / 64)))


def test_top_k_keeps_the_largest_and_normalises_again() -> None:
    got = token_logprobs(LOGITS.expand(4, 4), torch.arange(4), top_k=2)
    assert got[:2].exp().tolist() == pytest.approx([2 / 3, 1 / 3])
    assert torch.isneginf(got[2:]).all()


def test_top_k_keeps_all_that_tie_with_the_last() -> None:
    assert torch.isfinite(filter_logits(LOGITS, top_k=3)).all()


@pytest.mark.parametrize("top_k", [None, 0, -1, 4, 100])
def test_top_k_off(top_k: int | None) -> None:
    assert torch.equal(filter_logits(LOGITS, top_k=top_k), LOGITS)


@pytest.mark.parametrize(("top_p", "kept"), [(0.0, 1), (0.4, 1), (0.6, 2), (0.8, 3), (1.0, 4)])
def test_top_p_keeps_the_smallest_set_that_reaches_it(top_p: float, kept: int) -> None:
    logits = torch.log(torch.tensor([0.5, 0.25, 0.15, 0.1]))
    assert int(torch.isfinite(filter_logits(logits, top_p=top_p)).sum()) == kept


def test_top_p_looks_at_what_top_k_left() -> None:
    # After top_k=2 the first token has 2/3 of the mass, enough for top_p 0.6; without top_k it has 1/2, not enough.
    assert int(torch.isfinite(filter_logits(LOGITS, top_k=2, top_p=0.6)).sum()) == 1


@settings(deadline=None, max_examples=50)
@given(
    seed=st.integers(0, 10_000),
    temperature=st.floats(0.2, 3.0),
    top_k=st.none() | st.integers(1, 12),
    top_p=st.floats(0.05, 1.0),
)
def test_distribution_sums_to_one(seed: int, temperature: float, top_k: int | None, top_p: float) -> None:
    logits = torch.randn(3, 8, generator=torch.Generator().manual_seed(seed)) * 3
    every_token = torch.arange(8).expand(3, 8)
    logprobs = token_logprobs(
        logits[:, None].expand(3, 8, 8), every_token, temperature=temperature, top_k=top_k, top_p=top_p
    )
    assert logprobs.exp().sum(-1).tolist() == pytest.approx([1.0] * 3, abs=1e-5)


def test_next_token_logprobs_are_shifted_by_one() -> None:
    logits = torch.randn(2, 5, 7, generator=torch.Generator().manual_seed(0))
    ids = torch.tensor([[1, 2, 3, 4, 5], [6, 5, 4, 3, 2]])
    got = next_token_logprobs(logits, ids)
    assert got.shape == (2, 4)
    assert got[1, 2].item() == pytest.approx(logits[1, 2].log_softmax(-1)[3].item(), abs=1e-6)


def test_bfloat16_logits_give_float32() -> None:
    assert token_logprobs(LOGITS[None].bfloat16(), torch.tensor([1])).dtype == torch.float32


def test_cut_off_token_gets_no_gradient() -> None:
    logits = LOGITS[None].clone().requires_grad_()
    logprobs, mask = mask_out_neg_inf(token_logprobs(logits, torch.tensor([3]), top_k=2), torch.ones(1))
    logprobs.sum().backward()
    assert logprobs.item() == 0
    assert mask.item() == 0
    assert logits.grad is not None
    assert not logits.grad.any()


def _errors(threshold: float | None, sample_mask: list[float]) -> tuple[list[float], dict[str, float]]:
    """Three responses, off by factors 1, 2 and 4 per token between sampler and trainer; the last column is padding."""
    prev = torch.zeros(3, 4)
    generation = torch.tensor([0.0, math.log(2), math.log(4)])[:, None].expand(3, 4)
    token_mask = torch.tensor([[1, 1, 1, 0]] * 3)
    mask, stats = mask_sequence_errors(
        prev, generation, token_mask, torch.tensor(sample_mask), torch.tensor([1.0, 1.0, 0.0]), threshold=threshold
    )
    return mask.tolist(), {name: getattr(stats, name) for name in stats.__slots__}


def test_sequence_errors_without_threshold_mask_nothing() -> None:
    mask, stats = _errors(None, [1, 1, 1])
    assert mask == [1, 1, 1]
    assert stats["max_seq_mult_prob_error"] == pytest.approx(4)
    assert stats["mean_seq_mult_prob_error_after_mask"] == pytest.approx(7 / 3)
    assert stats["num_masked_seqs"] == 0


def test_sequence_errors_above_the_threshold_are_masked() -> None:
    mask, stats = _errors(1.5, [1, 1, 1])
    assert mask == [1, 0, 0]
    assert stats["num_masked_seqs"] == 2
    assert stats["masked_correct_pct"] == 0.5
    assert stats["max_seq_mult_prob_error_after_mask"] == pytest.approx(1)


def test_sequence_errors_ignore_responses_masked_before() -> None:
    mask, stats = _errors(3.0, [1, 1, 0])
    assert mask == [1, 1, 0]
    assert stats["num_masked_seqs"] == 0
    assert stats["max_seq_mult_prob_error"] == pytest.approx(2)


def test_sequence_errors_of_an_empty_batch_are_zero() -> None:
    mask, stats = _errors(None, [0, 0, 0])
    assert mask == [0, 0, 0]
    assert set(stats.values()) == {0}
