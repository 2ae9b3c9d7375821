"""Reward model training, one story from top to bottom.

Per step: take a global batch of preference pairs, score both answers (what they have in common computed once), and
raise the score of the chosen answer over that of the rejected one.

Differences from NeMo-RL v0.7.0's loop; the formula is the same (tests/golden):

1. A pair that is too long is left out and counted; NeMo-RL cuts it and masks the remains.
2. An optional margin per pair, and an optional pull of the scores towards 0.
3. Every checkpoint is a model that `AutoModelForSequenceClassification` loads, with mean and standard deviation of the
   training set's rewards in its `config.json`: what a user of the model needs to put its scores on a known scale.
4. The data order follows from the seed and the epoch, so a resumed run repeats the bits.

Batch sizes count pairs, as NeMo-RL's config does. Legend: B pairs, scores [2B] with even rows chosen.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from nemotron.config.schema.rm import RmConfig
from nemotron.data.stream import RowStream
from nemotron.rl.chat import Chat
from nemotron.rl.loops import offline
from nemotron.rl.loops.recorder import Recorder
from nemotron.rl.optim import Optimization
from nemotron.rl.reward_loss import reward_model_loss
from nemotron.rl.reward_pairs import RewardPair, groups_of
from nemotron.rl.saving import Progress, Saver
from nemotron.rl.scalar_model import ScalarModel
from nemotron.rl.stopping import Deadline
from nemotron.rl.timing import Timings


@dataclass(frozen=True)
class RewardTraining:
    """What the loop works with; ``engines/embedded/rm.py`` builds it from the compiled job."""

    config: RmConfig
    centring: float
    """Weight of the pull of scores towards 0."""
    global_batch_size: int
    """Pairs per optimizer step."""
    micro_batch_size: int
    """Pairs per forward and backward pass."""
    save_period: int | None
    """``None``: no checkpoints."""
    model: ScalarModel
    optimization: Optimization
    chat: Chat
    stream: RowStream[RewardPair]
    """Training pairs, a global batch at a time."""
    validation: Mapping[str, Sequence[RewardPair]]
    """Validation pairs of each data set by its name, as many as one validation uses."""
    statistics: Sequence[RewardPair]
    """Training pairs whose rewards give the mean and standard deviation stored with the model."""
    saver: Saver
    recorder: Recorder
    deadline: Deadline | None = None
    """``None``: the run may take its time."""


def train(setup: RewardTraining, progress: Progress) -> Progress:
    """Run the loop from ``progress``; returns where it ended. It ends and raises as :func:`offline.run`."""

    def statistics(timings: Timings) -> dict[str, float]:
        with timings.phase("reward_statistics"):
            return measure_rewards(setup)

    return offline.run(
        setup,
        progress,
        update=lambda pairs: update(setup, pairs),
        validate=lambda: validate(setup),
        before_save=statistics,
    )


def update(setup: RewardTraining, pairs: Sequence[RewardPair]) -> tuple[dict[str, float], list[dict[str, Any]]]:
    """One optimizer step on a global batch: metrics under NeMo-RL's names, and each answer's score before it.

    Raises:
        EngineError: the loss or the gradient is not finite; the weights are as before the step.
    """
    metrics, scores = offline.train_step(setup, pairs, lambda part: forward(setup, part, len(pairs)))
    lengths = torch.tensor([float(length) for pair in pairs for length in pair.row_lengths])
    return {
        **offline.with_margin(metrics),
        "reward_std": float(scores.std(unbiased=False)),
        "reward_length_correlation": correlation(scores, lengths),
        "global_valid_seqs": float(2 * len(pairs)),
        "global_valid_toks": float(lengths.sum()),
    }, sample_rows(setup.chat, pairs, scores)


def forward(
    setup: RewardTraining, pairs: Sequence[RewardPair], all_pairs: int
) -> tuple[Tensor, dict[str, float], Tensor]:
    """Loss and metrics of a micro-batch, divided by the ``all_pairs`` of its global batch; its scores [2B]."""
    scores = setup.model.sequence_scores(groups_of(pairs))
    loss, metrics = reward_model_loss(
        scores,
        torch.ones_like(scores),
        global_valid_seqs=2.0 * all_pairs,
        margins=torch.tensor([pair.margin for pair in pairs], device=scores.device),
        centring=setup.centring,
    )
    return loss, metrics, scores.detach().cpu()


def validate(setup: RewardTraining) -> dict[str, float]:
    """Metrics of every validation set."""
    return offline.validate_pairs(
        setup.validation, setup.config.val_micro_batch_size, lambda part, pairs: forward(setup, part, pairs)
    )


def measure_rewards(setup: RewardTraining) -> dict[str, float]:
    """Mean and standard deviation (of all, not of a sample) of the training set's rewards, kept with the model."""
    scores = score_pairs(setup.model, setup.statistics, setup.config.val_micro_batch_size).double()
    mean, std = float(scores.mean()), float(scores.std(unbiased=False))
    setup.model.set_reward_statistics(mean, std)
    return {"reward_mean_of_set": mean, "reward_std_of_set": std}


@torch.no_grad()
def score_pairs(model: ScalarModel, pairs: Sequence[RewardPair], micro_batch_size: int) -> Tensor:
    """Scores [2B] of pairs, chosen and rejected interleaved, on the CPU."""
    parts = offline.in_parts(pairs, micro_batch_size)
    return torch.cat([model.sequence_scores(groups_of(part)).cpu() for part in parts])


def correlation(a: Tensor, b: Tensor) -> float:
    """Pearson; 0 where one of them does not vary."""
    if a.numel() < 2 or a.std() == 0 or b.std() == 0:
        return 0.0
    return float(torch.corrcoef(torch.stack([a, b]))[0, 1])


def sample_rows(chat: Chat, pairs: Sequence[RewardPair], scores: Tensor) -> list[dict[str, Any]]:
    """One record per answer: its text and its score."""
    rows: list[dict[str, Any]] = []
    values = iter(scores.tolist())
    for pair in pairs:
        prompt, *answers = pair.texts(chat)
        for side, text in zip(("chosen", "rejected"), answers, strict=True):
            rows.append({"row_id": pair.id, "prompt": prompt, "side": side, "response": text, "reward": next(values)})
    return rows
