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

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from nemotron.config.schema.rm import RmConfig
from nemotron.data.stream import RowStream
from nemotron.errors import EngineError
from nemotron.rl.chat import Chat
from nemotron.rl.loops.recorder import Recorder
from nemotron.rl.losses import merge_metrics
from nemotron.rl.optim import Optimization
from nemotron.rl.reward_loss import reward_model_loss
from nemotron.rl.reward_pairs import RewardPair, groups_of
from nemotron.rl.saving import Progress, Saver
from nemotron.rl.scalar_model import ScalarModel
from nemotron.rl.stopping import Deadline, stop_reason
from nemotron.rl.timing import Timings

_NOT_FINITE_HINT = "lower the learning rate or use `policy.precision=float32`; the last checkpoint is unharmed"


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
    """Run the loop from ``progress`` until ``max_num_steps`` or ``max_num_epochs``; returns where it ended.

    Raises:
        EngineError: the loss or gradient is not finite.
        OutOfTimeError: `checkpointing.checkpoint_must_save_by` leaves no time for another step; a checkpoint is there.
        OutputError: a metric or checkpoint cannot be written.
    """
    config = setup.config
    steps = config.max_num_steps if config.max_num_steps > 0 else math.inf
    if config.val_at_start and progress.step == 0 and setup.validation:
        setup.recorder.write(0, validate(setup))

    while progress.step < steps and setup.stream.next_epoch < config.max_num_epochs:
        step = progress.step + 1
        timings = Timings()

        pairs = setup.stream.next_batch()
        with timings.phase("policy_training"):
            trained, scores = update(setup, pairs)

        last = step == steps or setup.stream.next_epoch >= config.max_num_epochs
        validation: dict[str, float] = {}
        if setup.validation and ((config.val_period and step % config.val_period == 0) or (last and config.val_at_end)):
            with timings.phase("validation"):
                validation = validate(setup)

        stop = stop_reason(step, {}, max_kl=None, deadline=setup.deadline, may_end=bool(setup.save_period) and not last)
        saves = setup.save_period is not None and (step % setup.save_period == 0 or last or stop is not None)
        if saves:
            with timings.phase("reward_statistics"):
                trained |= measure_rewards(setup)

        progress = progress.after_step(setup.stream.next_epoch, len(pairs), trained["global_valid_toks"])
        metrics = {**{f"train/{name}": value for name, value in trained.items()}, **validation}
        # Before the checkpoint: a resumed run drops the rows after its last checkpoint; none before it may be missing.
        setup.recorder.samples(step, sample_rows(setup.chat, pairs, scores))
        setup.recorder.step(step, {**metrics, **timings.metrics()})
        if saves:
            # `checkpointing.metric_name` writes `val:validation-default_loss`.
            monitored = {f"validation/{name}": value for name, value in validation.items()}
            setup.recorder.checkpoint(setup.saver.save(progress, {**metrics, **monitored}))
        if stop:
            raise stop
    return progress


def update(setup: RewardTraining, pairs: Sequence[RewardPair]) -> tuple[dict[str, float], Tensor]:
    """One optimizer step on a global batch: metrics under NeMo-RL's names, and the scores [2B] before it.

    Raises:
        EngineError: the loss or the gradient is not finite; the weights are as before the step.
    """
    reports: list[dict[str, float]] = []
    found: list[Tensor] = []
    for part in in_parts(pairs, setup.micro_batch_size):
        loss, metrics, scores = forward(setup, part, len(pairs))
        if not torch.isfinite(loss):
            raise EngineError("the loss is not finite", hint=_NOT_FINITE_HINT)
        loss.backward()  # type: ignore[no-untyped-call]
        reports.append(metrics)
        found.append(scores)
    grad_norm = setup.optimization.clip_and_step()
    if not math.isfinite(grad_norm):
        raise EngineError("the gradient is not finite", hint=_NOT_FINITE_HINT)
    lr = setup.optimization.learning_rate
    setup.optimization.step_scheduler()
    scores = torch.cat(found)
    lengths = torch.tensor([float(length) for pair in pairs for length in pair.row_lengths])
    return {
        **with_margin(merge_metrics(reports)),
        "reward_std": float(scores.std(unbiased=False)),
        "reward_length_correlation": correlation(scores, lengths),
        "grad_norm": grad_norm,
        "lr": lr,
        "global_valid_seqs": float(2 * len(pairs)),
        "global_valid_toks": float(lengths.sum()),
    }, scores


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


@torch.no_grad()
def validate(setup: RewardTraining) -> dict[str, float]:
    """``validation-<name>_<metric>`` of every validation set: means over its pairs."""
    found: dict[str, float] = {}
    for name, pairs in setup.validation.items():
        reports = [forward(setup, part, len(pairs))[1] for part in in_parts(pairs, setup.config.val_micro_batch_size)]
        for metric, value in with_margin(merge_metrics(reports)).items():
            found[f"validation-{name}_{metric}"] = value
    return found


def measure_rewards(setup: RewardTraining) -> dict[str, float]:
    """Mean and standard deviation (of all, not of a sample) of the training set's rewards, kept with the model."""
    scores = score_pairs(setup.model, setup.statistics, setup.config.val_micro_batch_size).double()
    mean, std = float(scores.mean()), float(scores.std(unbiased=False))
    setup.model.set_reward_statistics(mean, std)
    return {"reward_mean_of_set": mean, "reward_std_of_set": std}


@torch.no_grad()
def score_pairs(model: ScalarModel, pairs: Sequence[RewardPair], micro_batch_size: int) -> Tensor:
    """Scores [2B] of pairs, chosen and rejected interleaved, on the CPU."""
    parts = in_parts(pairs, micro_batch_size)
    return torch.cat([model.sequence_scores(groups_of(part)).cpu() for part in parts])


def with_margin(metrics: dict[str, float]) -> dict[str, float]:
    """Add by how much the chosen answers lead."""
    return {**metrics, "margin": metrics["rewards_chosen_mean"] - metrics["rewards_rejected_mean"]}


def correlation(a: Tensor, b: Tensor) -> float:
    """Pearson; 0 where one of them does not vary."""
    if a.numel() < 2 or a.std() == 0 or b.std() == 0:
        return 0.0
    return float(torch.corrcoef(torch.stack([a, b]))[0, 1])


def in_parts(pairs: Sequence[RewardPair], size: int) -> Iterator[Sequence[RewardPair]]:
    """``pairs`` in runs of ``size``."""
    for start in range(0, len(pairs), size):
        yield pairs[start : start + size]


def sample_rows(chat: Chat, pairs: Sequence[RewardPair], scores: Tensor) -> list[dict[str, Any]]:
    """One record per answer: its text and its score."""
    rows: list[dict[str, Any]] = []
    values = iter(scores.tolist())
    for pair in pairs:
        prompt, *answers = pair.texts(chat)
        for side, text in zip(("chosen", "rejected"), answers, strict=True):
            rows.append({"row_id": pair.id, "prompt": prompt, "side": side, "response": text, "reward": next(values)})
    return rows
