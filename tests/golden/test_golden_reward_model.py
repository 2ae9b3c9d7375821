"""The reward model's loss, its metrics and gradients."""

from __future__ import annotations

import pytest

from nemotron.rl.reward_loss import reward_model_loss
from tests.golden.golden_vectors import Case
from tests.golden.tensors import assert_close, tensor

RTOL = 1e-5
FLOOR = 1e-7


@pytest.mark.golden("rm_preference_loss")
def test_reward_model_loss(case: Case) -> None:
    """Loss, every metric of the vector, and d loss / d logits."""
    given, data = {**case.file.get("inputs", {}), **case.data.get("inputs", {})}, case.data
    logits = tensor({**given, **data}["logits"]).requires_grad_()
    mask = tensor({**given, **data}["sample_mask"])
    loss, metrics = reward_model_loss(logits.flatten(), mask, global_valid_seqs=data["global_valid_seqs"])
    loss.backward()  # type: ignore[no-untyped-call]
    assert_close(loss, data["loss"], rtol=RTOL, atol=FLOOR, what="loss")
    for name, expected in data["metrics"].items():
        assert_close([metrics[name]], [expected], rtol=RTOL, atol=FLOOR, what=name)
    assert_close(logits.grad, data["grad_logits"], rtol=RTOL, atol=1e-8, what="gradient")
