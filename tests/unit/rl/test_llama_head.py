"""The output layer block by block against all logits at once, with torch's own log-softmax and autograd."""

from __future__ import annotations

import math
from dataclasses import dataclass

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from nemotron.compile import estimate
from nemotron.rl import llama_head, pieces
from nemotron.rl.llama_head import Logprobs, Question, Rows, reading

WORDS = 600


@dataclass(frozen=True)
class Case:
    head: Tensor
    states: Tensor
    question: Question
    grad: Tensor

    @classmethod
    def of(cls, rows: int, followers: list[int] | None, seed: int, spread: float = 1.0) -> Case:
        """``followers``: how many tokens follow each row; None: one each."""
        generator = torch.Generator().manual_seed(seed)
        source = None
        if followers is not None:
            source = torch.arange(rows).repeat_interleave(torch.tensor(followers))
        asked = rows if source is None else len(source)
        # Few words, so that two that follow one row are often the same.
        tokens = torch.randint(0, 5, (asked,), generator=generator) * (WORDS // 4 - 1)
        return cls(
            head=torch.randn(WORDS, 16, generator=generator) * spread,
            states=torch.randn(rows, 16, generator=generator),
            question=Question(tokens, source),
            grad=torch.randn(asked, generator=generator),
        )


def by_autograd(case: Case, temperature: float, cap: float | None) -> tuple[Tensor, Tensor, Tensor]:
    """Values, gradient of the states, gradient of the head, in float64."""
    head, states = case.head.double().requires_grad_(), case.states.double().requires_grad_()
    logits = states @ head.t()
    if cap is not None:
        logits = torch.tanh(logits / cap) * cap
    found = (logits / temperature).log_softmax(-1)
    if case.question.source is not None:
        found = found[case.question.source]
    found = found.gather(1, case.question.tokens[:, None])[:, 0]
    return found.detach(), *torch.autograd.grad(found, (states, head), case.grad.double())


def computed(case: Case, how: Logprobs | Rows) -> tuple[Tensor, Tensor, Tensor]:
    head_grad = torch.zeros_like(case.head, dtype=torch.float32)
    with torch.no_grad():
        values, kept = how.forward(case.head, case.states, case.question)
        states_grad = how.backward(case.head, case.states, case.question, case.grad, kept, head_grad)
    return values, states_grad, head_grad


def near(found: tuple[Tensor, ...], expected: tuple[Tensor, ...], of_largest: float = 2e-6) -> None:
    for a, b in zip(found, expected, strict=True):
        error = float((a.double() - b.double()).abs().max())
        assert error <= of_largest * max(1.0, float(b.abs().max()))


@settings(max_examples=60, deadline=None)
@given(
    followers=st.lists(st.integers(0, 4), min_size=1, max_size=6).filter(any) | st.none(),
    temperature=st.sampled_from([1.0, 0.7, 2.5]),
    cap=st.sampled_from([None, 3.0]),
    block=st.sampled_from([1, 64 * 7, WORDS * 100]),
    seed=st.integers(0, 100),
)
def test_blocks_give_what_all_logits_give(
    followers: list[int] | None, temperature: float, cap: float | None, block: int, seed: int
) -> None:
    case = Case.of(6 if followers is None else len(followers), followers, seed)
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(llama_head._BLOCK, "cpu", block)
        patch.setattr(llama_head, "_NARROWEST", 64)
        found = computed(case, Logprobs(temperature, cap))
    near(found, by_autograd(case, temperature, cap))


def test_both_readings_agree_and_the_filters_choose_between_them() -> None:
    case = Case.of(5, [1, 0, 3, 2, 1], 1)
    blocks, rows = reading(0.7, None, 1.0, None), reading(0.7, WORDS, 1.0, None)
    assert isinstance(blocks, Logprobs)
    assert isinstance(rows, Rows)
    near(computed(case, blocks), computed(case, rows))
    assert isinstance(reading(0.0, -1, 1.0, None), Logprobs)  # vLLM's "off"
    assert isinstance(reading(1.0, None, 0.9, None), Rows)


@pytest.mark.parametrize("spread", [1e3, 1e5])
def test_large_logits_overflow_nowhere(spread: float) -> None:
    case = Case.of(6, None, 3, spread)
    found = computed(case, Logprobs(1.0, None))
    assert all(bool(part.isfinite().all()) for part in found)
    near(found, by_autograd(case, 1.0, None), 1e-5)


def test_a_head_that_is_not_trained_gets_no_gradient() -> None:
    case = Case.of(6, None, 3)
    how = Logprobs(1.0, None)
    kept = how.forward(case.head, case.states, case.question)[1]
    alone = how.backward(case.head, case.states, case.question, case.grad, kept, None)
    assert torch.equal(alone, computed(case, how)[1])


@pytest.mark.parametrize("kind", [torch.bfloat16, torch.float16])
def test_half_precision_sums_in_float32(kind: torch.dtype) -> None:
    exact = Case.of(64, None, 5)
    case = Case(exact.head.to(kind), exact.states.to(kind), exact.question, exact.grad)
    values, states_grad, head_grad = computed(case, Logprobs(1.0, None))
    assert values.dtype == head_grad.dtype == torch.float32
    assert states_grad.dtype == kind
    ends = by_autograd(Case(case.head.float(), case.states.float(), case.question, case.grad), 1.0, None)
    near((values, states_grad, head_grad), ends, 0.02)


def test_the_same_bits_every_time() -> None:
    case = Case.of(200, [7] * 200, 9)
    first, *others = (computed(case, Logprobs(0.9, None)) for _ in range(4))
    assert all(torch.equal(a, b) for other in others for a, b in zip(first, other, strict=True))


def test_a_word_that_cannot_be_is_minus_infinity() -> None:
    case = Case.of(2, None, 1)
    case.head[case.question.tokens[0]] = -math.inf
    case.states.abs_()
    values = computed(case, Logprobs(1.0, None))[0]
    assert values[0] == -math.inf


def test_the_estimate_of_the_dry_run_counts_the_same_block() -> None:
    assert llama_head._BLOCK["cpu"] == estimate.BLOCK
    assert pieces.LOGITS["cpu"] == estimate.PIECE
