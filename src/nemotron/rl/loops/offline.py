"""Training on a fixed data set: what the loops of dpo, rm and sft have in common.

Each of these loops says what a step learns (`train_step` around its own `forward`) and what its validation measures;
the course of the run is here: steps over epochs, validation, samples and metrics, checkpoints, reasons to end.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence, Sized
from typing import Any, Protocol, TypeVar

import torch
from torch import Tensor

from nemotron.config.schema.training import Course
from nemotron.data.stream import RowStream
from nemotron.errors import EngineError
from nemotron.rl.loops.recorder import Recorder
from nemotron.rl.losses import merge_metrics
from nemotron.rl.optim import Optimization
from nemotron.rl.saving import Progress, Saver
from nemotron.rl.stopping import Deadline, stop_reason
from nemotron.rl.timing import Timings

Row = TypeVar("Row")

_NOT_FINITE_HINT = "lower the learning rate or use `policy.precision=float32`; the last checkpoint is unharmed"


class Setup(Protocol[Row]):
    """What every such loop works with; the loops' own classes say more about each."""

    @property
    def config(self) -> Course: ...
    @property
    def micro_batch_size(self) -> int: ...
    @property
    def save_period(self) -> int | None: ...
    @property
    def optimization(self) -> Optimization: ...
    @property
    def stream(self) -> RowStream[Row]: ...
    @property
    def validation(self) -> Sized: ...
    @property
    def saver(self) -> Saver: ...
    @property
    def recorder(self) -> Recorder: ...
    @property
    def deadline(self) -> Deadline | None: ...


def run(
    setup: Setup[Row],
    progress: Progress,
    *,
    update: Callable[[Sequence[Row]], tuple[dict[str, float], list[dict[str, Any]]]],
    validate: Callable[[], dict[str, float]],
    before_save: Callable[[Timings], dict[str, float]] = lambda _: {},
) -> Progress:
    """Run a loop from ``progress`` until ``max_num_steps`` or ``max_num_epochs``; returns where it ended.

    Args:
        update: an optimizer step on a global batch: its metrics, with ``global_valid_toks``, and its samples.
        validate: metrics under the names of the metrics file; called only where there are validation rows.
        before_save: what is measured of the model only when a checkpoint is written; added to the step's metrics.

    Raises:
        EngineError: the loss or gradient is not finite.
        OutOfTimeError: `checkpointing.checkpoint_must_save_by` leaves no time for another step; a checkpoint is there.
        OutputError: a metric or checkpoint cannot be written.
    """
    course = setup.config
    steps = course.max_num_steps if course.max_num_steps > 0 else math.inf
    if course.val_at_start and progress.step == 0 and setup.validation:
        setup.recorder.write(0, validate())

    while progress.step < steps and setup.stream.next_epoch < course.max_num_epochs:
        step = progress.step + 1
        timings = Timings()

        rows = setup.stream.next_batch()
        with timings.phase("policy_training"):
            trained, samples = update(rows)

        last = step == steps or setup.stream.next_epoch >= course.max_num_epochs
        validation: dict[str, float] = {}
        if setup.validation and ((course.val_period and step % course.val_period == 0) or (last and course.val_at_end)):
            with timings.phase("validation"):
                validation = validate()

        stop = stop_reason(step, {}, max_kl=None, deadline=setup.deadline, may_end=bool(setup.save_period) and not last)
        saves = setup.save_period is not None and (step % setup.save_period == 0 or last or stop is not None)
        if saves:
            trained |= before_save(timings)

        progress = progress.after_step(setup.stream.next_epoch, len(rows), trained["global_valid_toks"])
        metrics = {**{f"train/{name}": value for name, value in trained.items()}, **validation}
        # Before the checkpoint: a resumed run drops the rows after its last checkpoint; none before it may be missing.
        setup.recorder.samples(step, samples)
        setup.recorder.step(step, {**metrics, **timings.metrics()})
        if saves:
            setup.recorder.checkpoint(setup.saver.save(progress, {**metrics, **_ranked(validation)}))
        if stop:
            raise stop
    return progress


def train_step(
    setup: Setup[Row],
    rows: Sequence[Row],
    forward: Callable[[Sequence[Row]], tuple[Tensor, dict[str, float], Tensor]],
) -> tuple[dict[str, float], Tensor]:
    """One optimizer step on a global batch, a micro-batch at a time.

    ``forward`` gives of a micro-batch its share of the loss, its share of the metrics, and a value of each of its
    rows [n]. Returns the batch's metrics with ``grad_norm`` and ``lr``, and all rows' values.

    Raises:
        EngineError: the loss or the gradient is not finite; the weights are as before the step.
    """
    reports: list[dict[str, float]] = []
    found: list[Tensor] = []
    for part in in_parts(rows, setup.micro_batch_size):
        loss, metrics, values = forward(part)
        if not torch.isfinite(loss):
            raise EngineError("the loss is not finite", hint=_NOT_FINITE_HINT)
        loss.backward()  # type: ignore[no-untyped-call]
        reports.append(metrics)
        found.append(values)
    grad_norm = setup.optimization.clip_and_step()
    if not math.isfinite(grad_norm):
        raise EngineError("the gradient is not finite", hint=_NOT_FINITE_HINT)
    lr = setup.optimization.learning_rate
    setup.optimization.step_scheduler()
    return {**merge_metrics(reports), "grad_norm": grad_norm, "lr": lr}, torch.cat(found)


@torch.no_grad()
def validate_pairs(
    validation: Mapping[str, Sequence[Row]],
    size: int,
    forward: Callable[[Sequence[Row], int], tuple[Tensor, dict[str, float], Tensor]],
) -> dict[str, float]:
    """``validation-<name>_<metric>`` of every validation set of pairs: means over it, ``size`` pairs at a time.

    ``forward`` gives the metrics of a part, divided by the number of pairs that is its second argument.
    """
    found: dict[str, float] = {}
    for name, pairs in validation.items():
        reports = [forward(part, len(pairs))[1] for part in in_parts(pairs, size)]
        for metric, value in with_margin(merge_metrics(reports)).items():
            found[f"validation-{name}_{metric}"] = value
    return found


def with_margin(metrics: dict[str, float]) -> dict[str, float]:
    """Add by how much the chosen answers of pairs lead."""
    return {**metrics, "margin": metrics["rewards_chosen_mean"] - metrics["rewards_rejected_mean"]}


def in_parts(rows: Sequence[Row], size: int) -> Iterator[Sequence[Row]]:
    """``rows`` in runs of ``size``."""
    for start in range(0, len(rows), size):
        yield rows[start : start + size]


def _ranked(validation: Mapping[str, float]) -> dict[str, float]:
    """Validation metrics under the names that the saver turns into those of ``checkpointing.metric_name``:
    ``val:<name>``."""
    return {name if name.startswith("validation/") else f"validation/{name}": v for name, v in validation.items()}
