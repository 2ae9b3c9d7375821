"""One attempt at a training run, the same for every algorithm: set the scene, measure, record, report."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from nemotron.engines.base import Attempt
from nemotron.engines.recorder import RunRecorder, recording
from nemotron.processes import garbage
from nemotron.reports.report import report_or_warn
from nemotron.rl.evaluate import HeldOut
from nemotron.rl.threads import ThreadPlan, apply_threads, crowded
from nemotron.runs.summary import print_summary

Measure = Callable[[], HeldOut]


@dataclass
class Session:
    """What an attempt knows of the run."""

    recorder: RunRecorder
    first: bool
    """Nothing is done yet: no checkpoint to go on from."""
    measured: bool
    """An earlier attempt has measured the held-out metric before training."""
    step: int
    """Finished steps."""

    def before(self, measure: Measure | None) -> None:
        """All is loaded. Measure the held-out metric before training, unless an earlier attempt has; ``None`` measures
        nothing."""
        garbage.started()
        if measure is not None and (self.first or not self.measured):
            self.recorder.phase("held-out before")
            self.recorder.heldout("before", 0, measure())

    def after(self, step: int, measure: Measure | None) -> None:
        """Training has ended with ``step``: measure again."""
        self.step = step
        if measure is not None:
            self.recorder.phase("held-out after")
            self.recorder.heldout("after", step, measure())


@contextmanager
def session(attempt: Attempt, threads: ThreadPlan, *, seed: int, total: int, done: int) -> Iterator[Session]:
    """Work on the run of ``attempt`` inside; when that ends well the run is finished: report written, summary printed.

    Args:
        seed: of torch's own generator. Nothing of ours draws from it, but what a library draws is the same in every
            run; checkpoints keep its state.
        total: steps when the run is finished.
        done: steps that the checkpoint has which this attempt goes on from; 0 starts over.
    """
    import torch

    run = attempt.run
    apply_threads(threads.policy)

    torch.manual_seed(seed)
    _quiet_transformers()
    measured = run.status().heldout_before is not None
    with recording(run, total=total, done=done) as recorder:
        if not torch.cuda.is_available() and (warning := crowded(threads)):
            recorder.note(warning)
        work = Session(recorder, first=done == 0, measured=measured, step=done)
        yield work
        recorder.phase("report")
        run.write_status(state="finished", phase=None, steps_done=work.step, wall_s=recorder.wall_s)
        report_or_warn(run)
    print_summary(run)


def _quiet_transformers() -> None:
    """No warnings and no progress bars between the lines of the live view."""
    from transformers.utils import logging as transformers_logging

    logging.getLogger("transformers").setLevel(logging.ERROR)
    transformers_logging.disable_progress_bar()  # type: ignore[no-untyped-call]
