"""Where every loop reports to."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Protocol


class Recorder(Protocol):
    """Keeps what a run says of itself (``engines/recorder.py``)."""

    def write(self, step: int, metrics: Mapping[str, float]) -> None:
        """Keep a metrics row."""

    def samples(self, step: int, rows: Iterable[Mapping[str, Any]]) -> None:
        """Keep the samples of a step."""

    def step(self, step: int, metrics: Mapping[str, float]) -> None:
        """Keep the metrics of a finished step and show them."""

    def checkpoint(self, path: Path) -> None:
        """Note the newest checkpoint."""
