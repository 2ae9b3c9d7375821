"""The loss of a reward model: the preference loss of NeMo-RL v0.7.0 on two scores, with an optional margin and
centring.

    loss = mean over pairs of -log sigmoid(r_chosen - r_rejected - margin) + centring * (r_chosen + r_rejected)^2

The margin is that of Llama 2 (Touvron et al. 2023, equation 2), the centring that of Eisenstein et al. 2023, both in
the form of TRL's RewardTrainer; NeMo-RL has neither. Legend: B pairs of a micro-batch.
"""

from __future__ import annotations

from torch import Tensor

from nemotron.rl.losses import Count, masked_mean
from nemotron.rl.preference import preference_loss


def reward_model_loss(
    scores: Tensor,
    sample_mask: Tensor,
    *,
    global_valid_seqs: Count,
    margins: Tensor | None = None,
    centring: float = 0.0,
) -> tuple[Tensor, dict[str, float]]:
    """Loss (scalar, differentiable in ``scores``) and NeMo-RL's metrics of one micro-batch.

    Sums are divided by the pairs of the *global* batch, so losses, gradients and metrics of micro-batches add up.

    Args:
        scores: [2B], even rows are the chosen answers, odd ones the rejected.
        sample_mask: [2B] 1.0 on rows that count; that of the chosen row decides for the pair.
        global_valid_seqs: sum of ``sample_mask`` over the global batch, twice its pairs.
        margins: [B] by how much the chosen score should at least lead; None: 0.
        centring: weight of the squared sum of a pair's scores, which holds their level at 0.

    Returns:
        The loss, and ``loss``, ``accuracy`` (a tie counts as wrong), ``rewards_chosen_mean``,
        ``rewards_rejected_mean``, ``num_valid_samples`` (pairs).
    """
    loss, metrics = preference_loss(scores, sample_mask, beta=1.0, global_valid_seqs=global_valid_seqs, margins=margins)
    if centring:
        sums = scores[::2] + scores[1::2]
        mask = sample_mask[::2].to(scores.dtype)
        loss = loss + centring * masked_mean(sums.square(), mask, global_valid_seqs / 2)
    return loss, {"loss": float(loss.detach()), **{name: float(value) for name, value in metrics.items()}}
