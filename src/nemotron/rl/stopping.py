"""Reasons to end a run before its last step: a limit that is crossed, or time that runs out or is called.

A loop asks once per step, saves a checkpoint when there is a reason, and raises it::

    stop = stop_reason(step, metrics, max_kl=limits.max_kl, deadline=deadline, may_end=not last)
    ...
    if save_period and (step % save_period == 0 or last or stop):
        recorder.checkpoint(saver.save(progress, metrics))
    if stop:
        raise stop
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping

from nemotron.errors import LimitError, OutOfTimeError
from nemotron.processes import notice
from nemotron.runs.health import Watch


class Deadline:
    """``checkpointing.checkpoint_must_save_by``: the time after which no checkpoint may be outstanding.

    NeMo-RL stops when the mean step would pass the limit; here it is the longest step so far, checkpoint included,
    because a late checkpoint is a lost one.
    """

    def __init__(self, limit_s: float, clock: Callable[[], float] = time.monotonic) -> None:
        """The time runs from now on."""
        self._limit_s = limit_s
        self._clock = clock
        self._began = self._last = clock()
        self._longest = 0.0

    @classmethod
    def parse(cls, text: str | None) -> Deadline | None:
        """``DD:HH:MM:SS`` as the config has checked it; None without a limit."""
        if text is None:
            return None
        days, hours, minutes, seconds = (int(part) for part in text.split(":"))
        return cls(((days * 24 + hours) * 60 + minutes) * 60 + seconds)

    def after_step(self) -> bool:
        """Whether another step might end too late. Ask once after each step, before its checkpoint is written."""
        now = self._clock()
        self._longest = max(self._longest, now - self._last)
        self._last = now
        return now - self._began + self._longest >= self._limit_s


def stop_reason(
    step: int,
    metrics: Mapping[str, float],
    *,
    max_kl: float | None,
    deadline: Deadline | None,
    may_end: bool,
    watch: Watch | None = None,
) -> LimitError | None:
    """What ends the run after this step, to be raised once its checkpoint is written; None to go on.

    Args:
        step: the step that is done.
        metrics: its metrics; a step without ``train/kl_penalty`` has no KL to limit.
        max_kl: ``limits.max_kl``, nats per token.
        deadline: None without a limit of time.
        watch: the other limits; it is shown the metrics here.
        may_end: whether time may end it here: not after the last step, and not where no checkpoint would be written.
    """
    kl = metrics.get("train/kl_penalty")
    if max_kl is not None and kl is not None and kl > max_kl:
        return LimitError(
            f"the KL to the reference is {kl:.3f} nats per token in step {step}, the limit is {max_kl}",
            hint="lower the learning rate or raise `loss_fn.reference_policy_kl_penalty` or `limits.max_kl`",
        )
    crossed = next((sign for sign in watch.see({"step": step, **metrics}) if sign.limit), None) if watch else None
    if crossed is not None:
        return LimitError(
            f"stopped after step {step} by `{crossed.limit}`: {crossed.text}",
            hint=f"{crossed.hint}; or change `{crossed.limit}`",
        )
    if not may_end:
        return None
    if notice.given():
        return OutOfTimeError(
            f"stopped after step {step}: the scheduler says that the time of the job ends",
            hint="the checkpoint is written; go on with `--resume` or `nemotron runs resume`",
        )
    if deadline is not None and deadline.after_step():
        return OutOfTimeError(
            f"stopped after step {step}: `checkpointing.checkpoint_must_save_by` leaves no time for another step",
            hint="the checkpoint is written; go on with `--resume` or `nemotron runs resume`",
        )
    return None
