"""The clipped policy-gradient loss against NeMo-RL's: loss, every metric, gradients."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from nemotron.config.schema.grpo import LossFnConfig
from nemotron.rl.logprobs import next_token_logprobs
from nemotron.rl.losses import LossBatch, clipped_pg_loss
from tests.golden.golden_vectors import Case
from tests.golden.tensors import assert_close, tensor

# A relative bound has no meaning at a value that is 0 by cancellation. The vectors are float32 means of terms of size
# about 1, each rounded to 6e-8: their order of summation alone moves the result by about 1e-8.
FLOOR = 1e-8
OPTIONAL = ("prev_logprobs", "reference_policy_logprobs", "curr_logprobs_unfiltered", "rewards")


def _loss_batch(inputs: dict[str, Any]) -> LossBatch:
    """The batch of a vector file; everything it may leave out is optional in the loss too."""
    required = {
        name: tensor(inputs[name]) for name in ("token_mask", "sample_mask", "advantages", "generation_logprobs")
    }
    optional = {name: tensor(inputs[name]) for name in OPTIONAL if inputs.get(name) is not None}
    unfiltered = optional.get("curr_logprobs_unfiltered")
    if unfiltered is not None and unfiltered.shape == required["token_mask"].shape:  # un-shifted, like curr_logprobs
        optional["curr_logprobs_unfiltered"] = unfiltered[:, 1:]
    return LossBatch(**required, **optional)


def _config(values: dict[str, Any]) -> LossFnConfig:
    return LossFnConfig.model_validate(values)


def _check_metrics(metrics: dict[str, float], expected: dict[str, Any], rtol: float) -> None:
    assert metrics.keys() == expected.keys()
    for name, value in expected.items():
        assert_close(metrics[name], value, rtol=rtol, atol=FLOOR, what=name)


def _gradient(loss: Tensor, of: Tensor) -> Tensor:
    (gradient,) = torch.autograd.grad(loss, of)
    return gradient


@pytest.mark.golden("clipped_pg_loss", part="variants")
def test_clipped_pg_loss(case: Case) -> None:
    """Every variant: loss and metrics to 1e-6, the gradient by log-prob to 1e-5."""
    variant = case.data
    inputs = {**case.file["base_inputs"], **variant["input_overrides"]}
    logprobs = tensor(inputs["curr_logprobs"])[:, 1:].requires_grad_()
    loss, metrics = clipped_pg_loss(
        logprobs,
        _loss_batch(inputs),
        _config({**case.file["base_config"], **variant["config_overrides"]}),
        global_valid_seqs=variant["global_valid_seqs"],
        global_valid_toks=variant["global_valid_toks"],
    )
    assert_close(loss, variant["loss"], rtol=1e-6, atol=FLOOR, what="loss")
    _check_metrics(metrics, variant["metrics"], rtol=1e-6)
    assert_close(_gradient(loss, logprobs), variant["grad_next_token_logprobs"], rtol=1e-5, atol=FLOOR, what="gradient")


@pytest.mark.golden("pg_loss_from_logits", part=None)
def test_loss_from_logits(case: Case) -> None:
    """From logits through log-probs to the gradient by logit, to 1e-5."""
    file = case.file
    logits = tensor(file["logits"]).requires_grad_()
    batch = _loss_batch(file["data"])
    ids = tensor(file["data"]["input_ids"], torch.int64)
    logprobs = next_token_logprobs(logits, ids, temperature=file.get("temperature", 1.0))
    valid = batch.token_mask[:, 1:] * batch.sample_mask[:, None]
    loss, metrics = clipped_pg_loss(
        logprobs,
        batch,
        _config(file["config"]),
        global_valid_seqs=float(batch.sample_mask.sum()),
        global_valid_toks=float(valid.sum()),
    )
    assert_close(logprobs, file["next_token_logprobs"], rtol=1e-5, atol=FLOOR, what="next_token_logprobs")
    assert_close(loss, file["loss"], rtol=1e-5, atol=FLOOR, what="loss")
    _check_metrics(metrics, file["metrics"], rtol=1e-5)
    assert_close(_gradient(loss, logits), file["grad_logits"], rtol=1e-5, atol=FLOOR, what="gradient")
