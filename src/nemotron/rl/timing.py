"""Where the time of a step goes."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager


class Timings:
    """Seconds per named phase of one step; a phase may be entered several times."""

    def __init__(self) -> None:
        self._began = time.perf_counter()
        self._seconds: dict[str, float] = {}

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Add the time of the block to ``name``."""
        began = time.perf_counter()
        try:
            yield
        finally:
            self._seconds[name] = self._seconds.get(name, 0.0) + time.perf_counter() - began

    def metrics(self) -> dict[str, float]:
        """``timing/train/<phase>`` of every phase, and ``total_step_time`` since the timer was made."""
        total = time.perf_counter() - self._began
        return {f"timing/train/{name}": value for name, value in {**self._seconds, "total_step_time": total}.items()}
