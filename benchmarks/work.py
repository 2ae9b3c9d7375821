"""What one process of a comparison with TRL is asked, and how it reports. Imports nothing but the standard library."""

from __future__ import annotations

import json
import os
import random
import resource
import sys
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path

LEARNING_RATE = 1e-5
LORA_ALPHA = 32
WORDS = "words.json"
"""In a model's folder: words that are one token each, at the beginning of a text and within it."""


@dataclass(frozen=True)
class Asked:
    """One side's work: model folder, precision, and how much of it."""

    model: str
    precision: str
    steps: int
    """Measured steps; one more warms up."""
    threads: int
    variant: str = ""
    """A setting that the side's script knows."""
    device: str = "cpu"
    lora: int = 0
    """Rank of the adapters that are trained; 0 trains all weights."""
    sizes: dict[str, int] = field(default_factory=dict)
    """What differs from the sizes that a ``*_work.py`` names."""

    @classmethod
    def read(cls) -> Asked:
        """From the command line of this process."""
        return cls(**json.loads(sys.argv[1]))

    def written(self) -> str:
        """For the command line of a process."""
        return json.dumps(asdict(self))

    def text(self, source: random.Random, tokens: int) -> str:
        """So many tokens of text."""
        return " ".join(source.choices(_words(self.model), k=tokens))


_read: dict[str, list[str]] = {}


def _words(model: str) -> list[str]:
    if model not in _read:
        _read[model] = json.loads((Path(model) / WORDS).read_text())
    return _read[model]


class StepClock:
    """Wall seconds and CPU seconds from the end of one step to the end of the next, and what others took meanwhile."""

    def __init__(self) -> None:
        self.steps: list[dict[str, float]] = []
        self._last = self._now()

    @staticmethod
    def _now() -> tuple[float, float, float]:
        """Wall, own CPU, and the machine's busy CPU seconds (0 where /proc does not tell)."""
        busy = 0.0
        if Path("/proc/stat").exists():
            fields = [int(field) for field in Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:9]]
            busy = (sum(fields) - fields[3] - fields[4]) / os.sysconf("SC_CLK_TCK")
        return time.perf_counter(), time.process_time(), busy

    def begin(self) -> None:
        """What was before does not count."""
        self.steps.clear()
        self._last = self._now()

    def tick(self) -> None:
        """A step has ended."""
        now = self._now()
        wall, cpu, busy = (b - a for a, b in zip(self._last, now, strict=True))
        others = max(0.0, busy - cpu) / (wall * (os.cpu_count() or 1))
        self.steps.append({"wall_s": wall, "cpu_s": cpu, "others": others})
        self._last = now

    def report(self, *, tokens: int, device: str = "cpu", **extra: object) -> None:
        """Print the steps after the first (which warms up) as one JSON line, with the most memory ever held in MB.

        Args:
            tokens: of all steps; both sides must say the same.
            device: the memory is that of the process on ``cpu``, else what torch held on the device.
        """
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        if device != "cpu":
            import torch

            peak = torch.cuda.max_memory_allocated() / 2**20
        print(json.dumps({"steps": self.steps[1:], "tokens": tokens, "peak_mb": peak, **extra}))
