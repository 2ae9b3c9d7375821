"""DPO and SFT losses against NeMo-RL's: loss, every metric, gradients."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from nemotron.config.schema.dpo import DpoLossConfig
from nemotron.rl.preference import dpo_loss, sft_nll_loss
from tests.golden.golden_vectors import Case
from tests.golden.tensors import assert_close, tensor

# Sums of float32 terms of size about 1 whose order is ours; a value may be 0 by cancellation.
FLOOR = 1e-7


def _of(case: Case, name: str) -> Any:
    """A value of the case, or of the inputs that all cases of the file share."""
    if name in case.data:
        return case.data[name]
    return case.file.get("inputs", {})[name]


def _check(actual: dict[str, float], expected: dict[str, Any]) -> None:
    for name, value in expected.items():
        assert_close(actual[name], value, rtol=1e-6, atol=FLOOR, what=name)


@pytest.mark.golden("dpo_loss", part="cases")
def test_dpo_loss(case: Case) -> None:
    """Every combination of weights, averaging and masked pairs."""
    logprobs = tensor(_of(case, "next_token_logprobs")).requires_grad_()
    reference = tensor(_of(case, "reference_policy_logprobs_rolled"))[:, :-1]
    loss, metrics = dpo_loss(
        logprobs,
        reference,
        tensor(_of(case, "token_mask")),
        tensor(_of(case, "sample_mask")),
        DpoLossConfig.model_validate(_of(case, "config")),
        global_valid_seqs=float(_of(case, "global_valid_seqs")),
    )
    assert_close(loss, case.data["loss"], rtol=1e-6, atol=FLOOR, what="loss")
    _check(metrics, case.data["metrics"])
    (gradient,) = torch.autograd.grad(loss, logprobs)
    assert_close(gradient, case.data["grad_next_token_logprobs"], rtol=1e-5, atol=FLOOR, what="gradient")


@pytest.mark.golden("sft_nll_loss", part="cases")
def test_sft_nll_loss(case: Case) -> None:
    """Mean over the valid tokens of the global batch."""
    logprobs = tensor(_of(case, "next_token_logprobs")).requires_grad_()
    loss, metrics = sft_nll_loss(
        logprobs,
        tensor(_of(case, "token_mask")),
        tensor(_of(case, "sample_mask")),
        global_valid_toks=float(_of(case, "global_valid_toks")),
    )
    assert_close(loss, case.data["loss"], rtol=1e-6, atol=FLOOR, what="loss")
    _check(metrics, case.data["metrics"])
    (gradient,) = torch.autograd.grad(loss, logprobs)
    assert_close(gradient, case.data["grad_next_token_logprobs"], rtol=1e-5, atol=FLOOR, what="gradient")
