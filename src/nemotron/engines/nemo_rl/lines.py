"""Lines that ``entry.py`` appends, put together to the rows of a run: one per step, under NeMo-RL's names."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

Metrics = dict[str, float]


@dataclass(frozen=True, slots=True)
class StepRow:
    """What is known of a step."""

    step: int
    metrics: Metrics
    trained: bool
    """A training step that has ended; else a validation, or a step that was cut off."""


@dataclass
class MetricLines:
    """Reads a file that grows, and says of each step what it measured, once, when that is all."""

    path: Path
    _offset: int = 0
    _step: int = 0
    _open: Metrics = field(default_factory=dict)
    _ended: bool = False

    def read(self) -> Iterator[StepRow]:
        """The steps that have become complete since the last call."""
        for line in self._lines():
            try:
                told = json.loads(line)
                step, prefix, metrics = int(told["step"]), str(told["prefix"]), dict(told["metrics"])
            except (ValueError, KeyError, TypeError):
                continue  # of a script that writes there itself; what is missing is noticed at the end
            if step != self._step:
                yield from self.rest()
                self._step = step
            self._open |= {named(prefix, name): value for name, value in metrics.items() if value is not None}
            # Some trainers say when a step is finished; with all of them its times come last.
            if told.get("finished") or prefix == "timing/train":
                self._ended = True
                yield from self.rest()

    def rest(self) -> Iterator[StepRow]:
        """What is still open."""
        if self._open:
            yield StepRow(self._step, self._open, self._ended)
        self._open, self._ended = {}, False

    @property
    def size(self) -> int:
        """Bytes that have been read; they grow while the script lives."""
        return self._offset

    def _lines(self) -> Iterator[bytes]:
        """Whole lines; half of one stays for the next look."""
        try:
            with self.path.open("rb") as file:
                file.seek(self._offset)
                content = file.read()
        except FileNotFoundError:
            return
        whole = content.rfind(b"\n") + 1
        self._offset += whole
        yield from content[:whole].splitlines()


def named(prefix: str, name: str) -> str:
    """The name of a metric. Trainers on pairs call a validation set's metrics ``validation-<set>_<metric>`` where they
    rank checkpoints, and so does every run of ours."""
    if prefix.startswith("validation-"):
        return f"{prefix}_{name}"
    return f"{prefix}/{name}" if prefix else name


NOISE = (
    *("(pid=", "(raylet", "(autoscaler", "INFO worker.py", "WARNING worker.py", "E0000", "W0000", "I0000"),
    *("[repeated ", "Ray dedups"),
)


def last_words(log: Path, count: int = 8, size: int = 1 << 16) -> str:
    """The end of a log without what Ray says, on lines of their own; empty when there is nothing."""
    try:
        with log.open("rb") as file:
            file.seek(max(0, os.fstat(file.fileno()).st_size - size))
            text = file.read().decode(errors="replace")
    except FileNotFoundError:
        return ""
    lines = [line.rstrip() for line in text.splitlines() if line.strip() and not any(word in line for word in NOISE)]
    return "".join(f"\n  {line}" for line in lines[-count:])
