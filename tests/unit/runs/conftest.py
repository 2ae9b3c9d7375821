"""Run folders as an engine would leave them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from nemotron.disk import lock
from nemotron.runs.folder import LOCK, RunFolder
from tests.compiled_jobs import compiled
from tests.unit.runs.run_records import MakeRun


@pytest.fixture
def make_run(tmp_path: Path) -> Iterator[MakeRun]:
    """Create runs under ``tmp_path/runs``, released at the end of the test."""
    made: list[RunFolder] = []

    def make(*, run_id: str | None = None, **job: Any) -> RunFolder:
        run = RunFolder.create(tmp_path / "runs", compiled(**{"run_id": run_id, "view": "judged_grpo", **job}))
        made.append(run)
        return run

    yield make
    for run in made:
        lock.release(run.path / LOCK)
