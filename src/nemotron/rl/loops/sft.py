"""Supervised fine-tuning, one story from top to bottom.

Per step: take a global batch of conversations, compute the log-probability of every learned token, and make their mean
over the batch larger.

Differences from NeMo-RL v0.7.0's loop; the formula is the same (tests/golden):

1. A conversation that is too long is left out and counted; NeMo-RL cuts it and masks the remains.
2. Nothing is padded for the arithmetic: rows of similar length run together, so `policy.sequence_packing` has no
   counterpart here.
3. The data order follows from the seed and the epoch, so a resumed run repeats the bits.

Batch sizes count conversations.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from nemotron.config.schema.sft import SftConfig
from nemotron.data.stream import RowStream
from nemotron.rl.conversations import TokenConversation, learned_mask
from nemotron.rl.loops import offline
from nemotron.rl.loops.recorder import Recorder
from nemotron.rl.optim import Optimization
from nemotron.rl.policy import Policy
from nemotron.rl.preference import sft_nll_loss
from nemotron.rl.saving import Progress, Saver
from nemotron.rl.stopping import Deadline

VALIDATION_LOSS = "validation/val_loss"
"""NeMo-RL's name; `checkpointing.metric_name` writes `val:val_loss`."""


@dataclass(frozen=True)
class Sft:
    """What the loop works with; ``engines/embedded/sft.py`` builds it from the compiled job."""

    config: SftConfig
    global_batch_size: int
    """Conversations per optimizer step."""
    micro_batch_size: int
    """Conversations per forward and backward pass."""
    save_period: int | None
    """``None``: no checkpoints."""
    policy: Policy
    optimization: Optimization
    stream: RowStream[TokenConversation]
    """Training conversations, a global batch at a time."""
    validation: Sequence[TokenConversation]
    """Validation conversations, as many as one validation uses."""
    saver: Saver
    recorder: Recorder
    deadline: Deadline | None = None
    """``None``: the run may take its time."""


def train(setup: Sft, progress: Progress) -> Progress:
    """Run the loop from ``progress``; returns where it ended. It ends and raises as :func:`offline.run`."""
    return offline.run(setup, progress, update=lambda rows: update(setup, rows), validate=lambda: validate(setup))


def update(setup: Sft, rows: Sequence[TokenConversation]) -> tuple[dict[str, float], list[dict[str, Any]]]:
    """One optimizer step on a global batch: metrics under NeMo-RL's names, and how likely each row was before it.

    Raises:
        EngineError: the loss or the gradient is not finite; the weights are as before the step.
    """
    tokens = sum(sum(row.learned) for row in rows)
    metrics, likelihood = offline.train_step(setup, rows, lambda part: forward(setup.policy, part, tokens))
    counts = {"global_valid_seqs": float(len(rows)), "global_valid_toks": float(tokens)}
    return {**metrics, **counts}, sample_rows(rows, likelihood)


def forward(
    policy: Policy, rows: Sequence[TokenConversation], all_tokens: int
) -> tuple[Tensor, dict[str, float], Tensor]:
    """Loss and metrics of a micro-batch, divided by the ``all_tokens`` learned tokens of its global batch; mean
    log-probability [n] of the learned tokens of each row, nats."""
    logprobs = policy.response_logprobs([row.group for row in rows])
    mask = learned_mask(rows, logprobs.shape[1]).to(logprobs.device)
    everyone = torch.ones(len(rows), device=logprobs.device)
    loss, metrics = sft_nll_loss(logprobs, mask, everyone, global_valid_toks=float(all_tokens))
    with torch.no_grad():
        counted = mask[:, 1:]
        likelihood = (logprobs * counted).sum(-1) / counted.sum(-1)
    return loss, metrics, likelihood


@torch.no_grad()
def validate(setup: Sft) -> dict[str, float]:
    """Mean negative log-likelihood of the learned tokens of all validation conversations, nats."""
    tokens = sum(sum(row.learned) for row in setup.validation)
    parts = offline.in_parts(setup.validation, setup.config.val_micro_batch_size)
    losses = [forward(setup.policy, part, tokens)[1]["loss"] for part in parts]
    return {VALIDATION_LOSS: math.fsum(losses)}


def sample_rows(rows: Sequence[TokenConversation], likelihood: Tensor) -> list[dict[str, Any]]:
    """One record per conversation: its last exchange, and the mean log-probability of a learned token (nats)."""
    return [
        {
            "row_id": row.source.id,
            "prompt": row.source.messages[-2]["content"],
            "response": row.source.messages[-1]["content"],
            "reward": value,
        }
        for row, value in zip(rows, likelihood.tolist(), strict=True)
    ]
