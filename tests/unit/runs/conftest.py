"""Run folders as an engine would leave them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from run_records import MakeRun

from nemotron.runs import lock
from nemotron.runs.folder import RunFolder


@pytest.fixture
def make_run(tmp_path: Path) -> Iterator[MakeRun]:
    """Create runs under ``tmp_path/runs``, released at the end of the test."""
    made: list[RunFolder] = []

    def make(*, run_id: str | None = None, **job: Any) -> RunFolder:
        job = {"config": {"limits": {"max_kl": 0.5}}, "engine": "embedded", "fingerprint": "f" * 64, **job}
        run = RunFolder.create(tmp_path / "runs", step="rl/nemo_rl/rlhf", config_name="tiny", job=job, run_id=run_id)
        made.append(run)
        return run

    yield make
    for run in made:
        lock.release(run.path)
