"""Token rewards, GAE and the value loss against NeMo-RL's."""

from __future__ import annotations

from typing import Any

import pytest

from nemotron.config.schema.grpo import LossFnConfig
from nemotron.config.schema.ppo import PpoEstimatorConfig, ValueLossConfig
from nemotron.rl.gae import estimate, token_kl, token_rewards
from nemotron.rl.value_loss import ValueBatch, value_loss
from tests.golden.golden_vectors import Case
from tests.golden.tensors import assert_close, tensor

RTOL = 1e-5
# Advantages near 0 are differences of float32 values of size about 1.
FLOOR = 5e-7


@pytest.mark.golden("gae")
def test_gae(case: Case) -> None:
    """Token rewards with KL, advantages, returns."""
    given = {**case.file.get("inputs", {}), **case.data.get("inputs", {})}
    mask, values, rewards = tensor(given["mask"]), tensor(given["values"]), tensor(given["rewards"])
    loss = LossFnConfig.model_validate(case.data["loss_config_overrides"])
    kl = None
    if loss.use_kl_in_reward:
        logprobs, reference = tensor(given["logprobs"]), tensor(given["reference_logprobs"])
        kl = token_kl(logprobs, reference, kl_type=loss.reference_policy_kl_type)
    per_token = token_rewards(rewards, mask, kl, loss.reference_policy_kl_penalty)
    config = PpoEstimatorConfig.model_validate(_floats(case.data["estimator_config"]))
    found = estimate(per_token, values, mask, config)
    assert_close(per_token, case.data["token_level_rewards"], rtol=RTOL, atol=FLOOR, what="token rewards")
    assert_close(found.advantages, case.data["advantages"], rtol=RTOL, atol=FLOOR, what="advantages")
    assert_close(found.returns, case.data["returns"], rtol=RTOL, atol=FLOOR, what="returns")


@pytest.mark.golden("value_loss")
def test_value_loss(case: Case) -> None:
    """Loss, metrics and the gradient with respect to the values."""
    given, data = {**case.file.get("inputs", {}), **case.data.get("inputs", {})}, case.data
    values = tensor(given["values_pred"]).requires_grad_()
    batch = ValueBatch(
        returns=tensor(given["returns"]),
        old_values=tensor(given["old_values"]),
        mask=tensor(given["token_mask"]) * tensor(data["sample_mask"])[:, None],
    )
    config = ValueLossConfig(scale=data["scale"], cliprange=data["cliprange"])
    loss, metrics = value_loss(values, batch, config, global_valid_toks=data["global_valid_toks"])
    loss.backward()  # type: ignore[no-untyped-call]
    assert_close(loss, data["loss"], rtol=RTOL, atol=FLOOR, what="loss")
    for name, expected in data["metrics"].items():
        assert_close([metrics[name]], [expected], rtol=RTOL, atol=FLOOR, what=name)
    assert_close(values.grad, data["grad_values"], rtol=RTOL, atol=1e-8, what="gradient")


def _floats(section: dict[str, Any]) -> dict[str, Any]:
    """JSON writes 1.0 as 1 when it feels like it."""
    return {k: float(v) if isinstance(v, int) and not isinstance(v, bool) else v for k, v in section.items()}
