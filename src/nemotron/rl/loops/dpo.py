"""DPO, one story from top to bottom.

Per step: take a global batch of preference pairs, compute the log-probabilities of both answers (the prompt once), and
move the policy so that the chosen answer gains more over the reference than the rejected one.

Differences from NeMo-RL v0.7.0's loop; the formulas are the same (tests/golden):

1. Reference log-probs are computed once for all pairs and kept on disk, not anew in every step.
2. A pair that is too long is left out and counted; NeMo-RL cuts it and masks the remains.
3. The data order follows from the seed and the epoch, so a resumed run repeats the bits.

Batch sizes count pairs, as NeMo-RL's config does.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from nemotron.config.schema.dpo import DpoConfig
from nemotron.data.stream import RowStream
from nemotron.rl.loops import offline
from nemotron.rl.loops.recorder import Recorder
from nemotron.rl.optim import Optimization
from nemotron.rl.pairs import TokenPair, answer_mask, reference_rows
from nemotron.rl.policy import Policy
from nemotron.rl.preference import answer_rewards, dpo_loss
from nemotron.rl.saving import Progress, Saver
from nemotron.rl.stopping import Deadline


@dataclass(frozen=True)
class Dpo:
    """What the loop works with; ``engines/embedded/dpo.py`` builds it from the compiled job."""

    config: DpoConfig
    global_batch_size: int
    """Pairs per optimizer step."""
    micro_batch_size: int
    """Pairs per forward and backward pass."""
    save_period: int | None
    """``None``: no checkpoints."""
    policy: Policy
    optimization: Optimization
    stream: RowStream[TokenPair]
    """Training pairs with their reference log-probs, a global batch at a time."""
    validation: Mapping[str, Sequence[TokenPair]]
    """Validation pairs of each data set by its name, as many as one validation uses."""
    saver: Saver
    recorder: Recorder
    deadline: Deadline | None = None
    """``None``: the run may take its time."""


def train(setup: Dpo, progress: Progress) -> Progress:
    """Run the loop from ``progress``; returns where it ended. It ends and raises as :func:`offline.run`."""
    return offline.run(setup, progress, update=lambda pairs: update(setup, pairs), validate=lambda: validate(setup))


def update(setup: Dpo, pairs: Sequence[TokenPair]) -> tuple[dict[str, float], list[dict[str, Any]]]:
    """One optimizer step on a global batch: metrics under NeMo-RL's names, and what each pair looked like before it.

    Raises:
        EngineError: the loss or the gradient is not finite; the weights are as before the step.
    """
    metrics, rewards = offline.train_step(setup, pairs, lambda part: forward(setup, part, len(pairs)))
    answers = [answer for pair in pairs for answer in pair.group.completions]
    tokens = sum(len(answer.token_ids) for answer in answers)
    return {
        **offline.with_margin(metrics),
        "global_valid_seqs": float(len(answers)),
        "global_valid_toks": float(tokens),
        "mean_gen_tokens_per_sample": tokens / len(answers),
    }, sample_rows(pairs, rewards)


def forward(setup: Dpo, pairs: Sequence[TokenPair], all_pairs: int) -> tuple[Tensor, dict[str, float], Tensor]:
    """Loss and metrics of a micro-batch, divided by the ``all_pairs`` of its global batch; rewards [2n] of its answers,
    without beta."""
    groups = [pair.group for pair in pairs]
    logprobs = setup.policy.response_logprobs(groups)
    width = logprobs.shape[1]
    reference = reference_rows(pairs, width).to(logprobs.device)
    mask = answer_mask(groups, width).to(logprobs.device)
    loss, metrics = dpo_loss(
        logprobs,
        reference,
        mask,
        torch.ones(2 * len(pairs), device=logprobs.device),
        setup.config,
        global_valid_seqs=2.0 * all_pairs,
    )
    with torch.no_grad():
        rewards = answer_rewards(logprobs, reference, mask, average=setup.config.preference_average_log_probs)
    return loss, metrics, rewards


def validate(setup: Dpo) -> dict[str, float]:
    """Metrics of every validation set."""
    return offline.validate_pairs(
        setup.validation, setup.config.val_micro_batch_size, lambda part, pairs: forward(setup, part, pairs)
    )


def sample_rows(pairs: Sequence[TokenPair], rewards: Tensor) -> list[dict[str, Any]]:
    """One record per answer: its text, and what it has gained over the reference (nats), as its reward."""
    values = iter(rewards.tolist())
    return [
        {
            "row_id": pair.source.id,
            "prompt": pair.source.messages[-1]["content"],
            "side": side,
            "response": text,
            "reward": next(values),
        }
        for pair in pairs
        for side, text in (("chosen", pair.source.chosen), ("rejected", pair.source.rejected))
    ]
