"""What the golden vectors do not show of the reward model's loss: margins, centring, micro-batches."""

from __future__ import annotations

import pytest
import torch
from torch.nn.functional import logsigmoid

from nemotron.rl.reward_loss import reward_model_loss

SCORES = torch.tensor([0.4, -0.3, 2.0, 2.5, -1.0, -1.0])


def test_a_margin_is_taken_off_the_lead() -> None:
    margins = torch.tensor([1.0, 0.0, 0.5])
    loss, metrics = reward_model_loss(SCORES, torch.ones(6), global_valid_seqs=6, margins=margins)
    lead = torch.tensor([0.7, -0.5, 0.0])
    assert float(loss) == pytest.approx(float(-logsigmoid(lead - margins).mean()), rel=1e-6)
    assert metrics["accuracy"] == pytest.approx(1 / 3)


def test_centring_pulls_the_sum_of_a_pair_to_zero() -> None:
    plain, _ = reward_model_loss(SCORES, torch.ones(6), global_valid_seqs=6)
    centred, _ = reward_model_loss(SCORES, torch.ones(6), global_valid_seqs=6, centring=0.1)
    assert float(centred - plain) == pytest.approx(0.1 * (0.1**2 + 4.5**2 + 2.0**2) / 3, rel=1e-5)


def test_micro_batches_add_up_to_the_global_batch() -> None:
    mask = torch.tensor([1.0, 1.0, 0.0, 0.0, 1.0, 1.0])
    whole, metrics = reward_model_loss(SCORES, mask, global_valid_seqs=4, centring=0.2)
    parts = [
        reward_model_loss(SCORES[i : i + 2], mask[i : i + 2], global_valid_seqs=4, centring=0.2) for i in (0, 2, 4)
    ]
    assert float(sum(loss for loss, _ in parts)) == pytest.approx(float(whole), rel=1e-6)
    for name, value in metrics.items():
        assert sum(part[name] for _, part in parts) == pytest.approx(value, rel=1e-6)
