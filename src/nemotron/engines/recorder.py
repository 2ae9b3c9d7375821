"""The loop reports here; the run folder and the live view listen."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nemotron.runs.folder import RunFolder
from nemotron.runs.live import LiveView

if TYPE_CHECKING:
    from torch import Tensor

    from nemotron.rl.evaluate import HeldOut
    from nemotron.rl.rollout import Sample


class RunRecorder:
    """Writes metrics, samples and status of one run and keeps the live view up to date."""

    def __init__(self, run: RunFolder, view: LiveView, wall_s_before: float) -> None:
        """``wall_s_before``: seconds that earlier attempts of a resumed run worked."""
        self._run = run
        self._view = view
        self._began = time.monotonic() - wall_s_before

    @property
    def wall_s(self) -> float:
        """Seconds at work, earlier attempts included."""
        return time.monotonic() - self._began

    def phase(self, text: str) -> None:
        """Say what the run does now."""
        self._view.phase(text)
        self._run.write_status(phase=text, wall_s=self.wall_s)

    def write(self, step: int, metrics: Mapping[str, float]) -> None:
        """Keep a metrics row."""
        self._run.append_metrics({"step": step, "wall_s": self.wall_s, **metrics})

    def samples(self, step: int, samples: Sequence[Sample], advantages: Tensor | None = None) -> None:
        """Keep the samples of a step; ``advantages`` is [N,S]."""
        first = [None] * len(samples) if advantages is None else advantages[:, 0].tolist()
        self._run.append_samples(_sample_row(step, s, a) for s, a in zip(samples, first, strict=True))

    def step(self, step: int, metrics: Mapping[str, float]) -> None:
        """Keep the metrics of a finished step and show them."""
        self.write(step, metrics)
        self._view.step({"step": step, **metrics})

    def checkpoint(self, path: Path) -> None:
        """Note the newest checkpoint."""
        inside = path.is_relative_to(self._run.path)
        self._run.write_status(checkpoint=str(path.relative_to(self._run.path) if inside else path))

    def heldout(self, when: str, step: int, result: HeldOut) -> None:
        """Keep a held-out evaluation; ``when`` is ``before`` or ``after`` training."""
        phase = f"heldout_{when}"
        self._run.append_samples({"step": step, "phase": phase, **sample} for sample in result.samples)
        if when == "before":
            self._run.write_status(heldout_before=result.shares)
        else:
            self._run.write_status(heldout_after=result.shares)
        self.write(step, {f"heldout/{name}": share for name, share in result.shares.items()})


def _sample_row(step: int, sample: Sample, advantage: float | None) -> dict[str, Any]:
    return {
        "step": step,
        "phase": "train",
        "row_id": sample.source.id,
        "prompt": sample.source.messages[-1]["content"],
        "response": sample.text,
        "reward": sample.judged,
        "advantage": advantage,
        "truncated": sample.completion.truncated,
        **sample.details,
    }
