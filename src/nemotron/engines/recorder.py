"""The loop reports here; the run folder and the live view listen. What they show: :mod:`nemotron.runs.views`."""

from __future__ import annotations

import math
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Protocol

from nemotron.engines.sinks import MetricSink, close_all, finite, open_sinks
from nemotron.errors import OutputError
from nemotron.runs.folder import RunFolder
from nemotron.runs.health import Herald
from nemotron.runs.live import LiveView
from nemotron.runs.metrics import by_step
from nemotron.runs.views import JUDGED_GRPO, view_of

_TELL_EVERY_S = 1.0
"""How often ``status.json`` says how far the run is; every row of a step is in the metrics at once."""


class Measured(Protocol):
    """A held-out evaluation; ``rl.evaluate.HeldOut`` is one."""

    @property
    def shares(self) -> Mapping[str, float]:
        """Property -> share of answers (0 to 1) that have it."""

    @property
    def samples(self) -> Iterable[Mapping[str, Any]]:
        """One record an answer: ``row_id``, ``prompt``, ``response``, and its properties as booleans."""


@contextmanager
def recording(run: RunFolder, *, total: int, done: int, copies: bool = True) -> Iterator[RunRecorder]:
    """Record an attempt at ``run``: status set to running, rows after step ``done`` dropped, live view open, and
    the loggers that the config asks for; they are written out and closed however the attempt ends.

    Args:
        run: the run, which this process holds.
        total: steps when the run is finished.
        done: steps that the checkpoint has which this attempt goes on from; 0 starts over.
        copies: open the loggers; an engine that writes to them itself needs no copies.

    Raises:
        NemotronError: a logger cannot be opened; see :func:`nemotron.engines.sinks.open_sinks`.
    """
    wall_s = run.status().wall_s or 0.0
    # Without a checkpoint the run starts over, rows of step 0 included.
    run.truncate_metrics(done or -1)
    run.truncate_samples(done or -1)
    run.write_status(state="running", steps_total=total, steps_done=done, error=None, exit_code=None)
    with LiveView(total, start_step=done, view=view_of(run.job()) or JUDGED_GRPO) as live:
        sinks = open_sinks(run) if copies else []
        for sink in sinks:
            live.note(sink.place)
        recorder = RunRecorder(run, live, wall_s, sinks, done=done)
        try:
            yield recorder
        except BaseException:
            close_all(sinks, failed=True)
            with suppress(OutputError):  # a full disk ended it, and what ended it is said
                recorder.tell()
            raise
        close_all(sinks, failed=False)


class RunRecorder:
    """Writes metrics, samples and status of one run and keeps the live view up to date."""

    def __init__(
        self, run: RunFolder, view: LiveView, wall_s_before: float, sinks: Sequence[MetricSink] = (), *, done: int = 0
    ) -> None:
        """Nothing is written yet.

        Args:
            wall_s_before: seconds that earlier attempts of a resumed run worked.
            done: steps that they did.
        """
        self._run = run
        self._sinks = sinks
        self._view = view
        self._began = time.monotonic() - wall_s_before
        self._herald = Herald(by_step(run.read_metrics()))
        self._done = done
        self._told = -math.inf

    @property
    def wall_s(self) -> float:
        """Seconds at work, earlier attempts included."""
        return time.monotonic() - self._began

    def phase(self, text: str) -> None:
        """Say what the run does now."""
        self._view.phase(text)
        self._run.write_status(phase=text, steps_done=self._done, wall_s=self.wall_s)

    def tell(self) -> None:
        """Have the status say how far the run is. Raises OutputError: it cannot be written."""
        self._told = time.monotonic()
        self._run.write_status(steps_done=self._done, wall_s=self.wall_s)

    def note(self, text: str) -> None:
        """Say something that stays on the screen. For any thread."""
        self._view.note(text)

    def write(self, step: int, metrics: Mapping[str, float]) -> None:
        """Keep a metrics row."""
        row = {"wall_s": self.wall_s, **metrics}
        self._run.append_metrics({"step": step, **row})
        for sink in self._sinks:
            sink.log(step, finite(row))

    def samples(self, step: int, rows: Iterable[Mapping[str, Any]]) -> None:
        """Keep samples of a step: any fields.

        The report shows ``prompt``, ``response``, ``reward``, ``advantage`` and ``truncated``.
        """
        self._run.append_samples({"step": step, "phase": "train", **row} for row in rows)

    def step(self, step: int, metrics: Mapping[str, float]) -> None:
        """Keep the metrics of a finished step and show them."""
        self.write(step, metrics)
        self._done = step
        if time.monotonic() - self._told >= _TELL_EVERY_S:
            self.tell()
        row = {"step": step, **metrics}
        self._view.step(row)
        for sign in self._herald.see(row):
            self._view.note(f"step {step}: {sign.text}: {sign.hint}")

    def checkpoint(self, path: Path) -> None:
        """Note the newest checkpoint."""
        inside = path.is_relative_to(self._run.path)
        self._run.write_status(checkpoint=str(path.relative_to(self._run.path) if inside else path))

    def heldout(self, when: str, step: int, result: Measured) -> None:
        """Keep a held-out evaluation; ``when`` is ``before`` or ``after`` training."""
        phase = f"heldout_{when}"
        self._run.append_samples({"step": step, "phase": phase, **sample} for sample in result.samples)
        if when == "before":
            self._run.write_status(heldout_before=dict(result.shares))
        else:
            self._run.write_status(heldout_after=dict(result.shares))
        self.write(step, {f"heldout/{name}": share for name, share in result.shares.items()})
