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

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from nemotron.config.schema.dpo import DpoConfig
from nemotron.data.stream import RowStream
from nemotron.errors import EngineError
from nemotron.rl.loops.recorder import Recorder
from nemotron.rl.losses import merge_metrics
from nemotron.rl.optim import Optimization
from nemotron.rl.pairs import TokenPair, answer_mask, reference_rows
from nemotron.rl.policy import Policy
from nemotron.rl.preference import answer_rewards, dpo_loss
from nemotron.rl.saving import Progress, Saver
from nemotron.rl.stopping import Deadline, stop_reason
from nemotron.rl.timing import Timings

_NOT_FINITE_HINT = "lower the learning rate or use `policy.precision=float32`; the last checkpoint is unharmed"


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
    """Run the loop from ``progress`` until ``max_num_steps`` or ``max_num_epochs``; returns where it ended.

    Raises:
        EngineError: the loss or gradient is not finite.
        LimitError: the time limit leaves no room for another step; a checkpoint is written before.
        OutputError: a metric or checkpoint cannot be written.
    """
    config = setup.config
    if config.val_at_start and progress.step == 0 and setup.validation:
        setup.recorder.write(0, validate(setup))

    while progress.step < config.max_num_steps and setup.stream.next_epoch < config.max_num_epochs:
        step = progress.step + 1
        timings = Timings()

        pairs = setup.stream.next_batch()
        with timings.phase("policy_training"):
            trained, samples = update(setup, pairs)

        last = step == config.max_num_steps or setup.stream.next_epoch >= config.max_num_epochs
        validation: dict[str, float] = {}
        if setup.validation and ((config.val_period and step % config.val_period == 0) or (last and config.val_at_end)):
            with timings.phase("validation"):
                validation = validate(setup)

        progress = progress.after_step(setup.stream.next_epoch, len(pairs), trained["global_valid_toks"])
        metrics = {**{f"train/{name}": value for name, value in trained.items()}, **validation}
        stop = stop_reason(
            step, metrics, max_kl=None, deadline=setup.deadline, may_end=bool(setup.save_period) and not last
        )
        # Before the checkpoint: a resumed run drops the rows after its last checkpoint; none before it may be missing.
        setup.recorder.samples(step, samples)
        setup.recorder.step(step, {**metrics, **timings.metrics()})
        if setup.save_period and (step % setup.save_period == 0 or last or stop):
            setup.recorder.checkpoint(setup.saver.save(progress, {**metrics, **monitored(validation)}))
        if stop:
            raise stop
    return progress


def update(setup: Dpo, pairs: Sequence[TokenPair]) -> tuple[dict[str, float], list[dict[str, Any]]]:
    """One optimizer step on a global batch: metrics under NeMo-RL's names, and what each pair looked like before it.

    Raises:
        EngineError: the loss or the gradient is not finite; the weights are as before the step.
    """
    reports: list[dict[str, float]] = []
    samples: list[dict[str, Any]] = []
    for part in in_parts(pairs, setup.micro_batch_size):
        loss, metrics, rewards = forward(setup, part, len(pairs))
        if not torch.isfinite(loss):
            raise EngineError("the loss is not finite", hint=_NOT_FINITE_HINT)
        loss.backward()  # type: ignore[no-untyped-call]
        reports.append(metrics)
        samples += sample_rows(part, rewards)
    grad_norm = setup.optimization.clip_and_step()
    if not math.isfinite(grad_norm):
        raise EngineError("the gradient is not finite", hint=_NOT_FINITE_HINT)
    lr = setup.optimization.learning_rate
    setup.optimization.step_scheduler()
    answers = [answer for pair in pairs for answer in pair.group.completions]
    tokens = sum(len(answer.token_ids) for answer in answers)
    return {
        **with_margin(merge_metrics(reports)),
        "grad_norm": grad_norm,
        "lr": lr,
        "global_valid_seqs": float(len(answers)),
        "global_valid_toks": float(tokens),
        "mean_gen_tokens_per_sample": tokens / len(answers),
    }, samples


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


@torch.no_grad()
def validate(setup: Dpo) -> dict[str, float]:
    """``validation-<name>_<metric>`` of every validation set: means over its pairs."""
    found: dict[str, float] = {}
    for name, pairs in setup.validation.items():
        reports = [forward(setup, part, len(pairs))[1] for part in in_parts(pairs, setup.config.val_micro_batch_size)]
        for metric, value in with_margin(merge_metrics(reports)).items():
            found[f"validation-{name}_{metric}"] = value
    return found


def monitored(validation: Mapping[str, float]) -> dict[str, float]:
    """Validation metrics under the names that the saver turns into those of ``checkpointing.metric_name``:
    ``val:validation-<name>_<metric>``."""
    return {f"validation/{name}": value for name, value in validation.items()}


def with_margin(metrics: dict[str, float]) -> dict[str, float]:
    """Add how much more the chosen answers have gained than the rejected ones."""
    return {**metrics, "margin": metrics["rewards_chosen_mean"] - metrics["rewards_rejected_mean"]}


def in_parts(pairs: Sequence[TokenPair], size: int) -> Iterator[Sequence[TokenPair]]:
    """``pairs`` in runs of ``size``."""
    for start in range(0, len(pairs), size):
        yield pairs[start : start + size]


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
