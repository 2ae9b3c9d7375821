"""Token log-probs, KL estimates and log-prob error masking against NeMo-RL's."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

import pytest
import torch

from nemotron.rl.kl import calculate_kl
from nemotron.rl.logprobs import mask_out_neg_inf, mask_sequence_errors, next_token_logprobs
from tests.golden.golden_vectors import Case
from tests.golden.tensors import assert_close, tensor

RTOL = 1e-5
# Near 0 a value is a difference of float32 numbers of size about 1, whose last bit is 6e-8.
FLOOR = 1e-7


@pytest.mark.golden("token_logprobs")
def test_token_logprobs(case: Case) -> None:
    """Temperature, top-k, top-p; tokens that were cut off are -inf, then 0 and out of the mask."""
    inputs = {**case.file["inputs"], **{name: case.data[name] for name in ("logits", "input_ids") if name in case.data}}
    ids = tensor(inputs["input_ids"], torch.int64)
    logprobs = next_token_logprobs(
        tensor(inputs["logits"]),
        ids,
        temperature=case.data["temperature"],
        top_k=case.data["top_k"],
        top_p=case.data["top_p"],
    )
    assert_close(logprobs, case.data["logprobs"], rtol=RTOL, atol=FLOOR, what="logprobs")
    cleaned, mask = mask_out_neg_inf(logprobs, torch.ones_like(logprobs))
    assert_close(cleaned, case.data["after_mask_out_neg_inf"], rtol=RTOL, atol=FLOOR, what="after_mask_out_neg_inf")
    assert torch.equal(mask == 0, torch.isneginf(tensor(case.data["logprobs"])))


@pytest.mark.golden("calculate_kl")
def test_calculate_kl(case: Case) -> None:
    """k1, k2, k3 with clamps and, where the case has them, importance weights."""
    data = case.data
    weights = [data[name] for name in data if "weights" in name and data[name] is not None]
    kl = calculate_kl(
        tensor(data["logprobs"]),
        tensor(data["logprobs_reference"]),
        kl_type=data["kl_type"],
        input_clamp=data["input_clamp_value"],
        output_clamp=data["output_clamp_value"],
        weights=tensor(weights[0]) if weights else None,
    )
    assert_close(kl, data["kl"], rtol=RTOL, atol=FLOOR, what="kl")


@pytest.mark.golden("seq_logprob_error_masking")
def test_sequence_error_masking(case: Case) -> None:
    """New sample mask and every statistic."""
    inputs: dict[str, Any] = {**case.file["inputs"], **case.data}
    sample_mask, stats = mask_sequence_errors(
        tensor(inputs["prev_logprobs"]),
        tensor(inputs["generation_logprobs"]),
        tensor(inputs["token_mask"]),
        tensor(inputs["sample_mask_in"]),
        tensor(inputs["rewards"]),
        threshold=inputs["threshold"],
    )
    assert_close(sample_mask, inputs["sample_mask_out"], rtol=0, atol=0, what="sample_mask_out")
    ours = asdict(stats)
    assert ours.keys() == inputs["result"].keys()
    for name, value in inputs["result"].items():
        assert_close(ours[name], value, rtol=RTOL, atol=0, what=name)
