"""Compiled jobs and attempts for tests of what starts from them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

from nemotron.artifacts.inputs import Hashing
from nemotron.engines.base import Attempt
from nemotron.job import CompiledJob
from nemotron.runs.attempts import Handle, begin_attempt
from nemotron.runs.folder import RunFolder, new_run_id
from nemotron.runs.provenance import provenance


def compiled(*, step: str = "rl/nemo_rl/rlhf", run_id: str | None = None, **changes: Any) -> CompiledJob:
    """A compiled job with little in it."""
    fields: dict[str, Any] = {
        "config": {"limits": {"max_kl": 0.5}},
        "config_name": "tiny",
        "created_at": "2025-01-31T15:45:01.000+00:00",
        "engine": "embedded",
        "fingerprint": "f" * 64,
        "id": run_id or new_run_id(step, changes.get("config_name", "tiny")),
        "provenance": provenance(),
        "step": step,
    }
    return CompiledJob.model_validate({**fields, **changes})


@contextmanager
def attempt_at(run: RunFolder, **secrets: str) -> Iterator[Attempt]:
    """An attempt as the worker makes it."""
    job = run.job()
    folder = begin_attempt(run.path, Handle.of_this_process())
    with ExitStack() as closing, Hashing(run, job) as hashing:
        yield Attempt(run, job, folder, secrets, hashing, closing)
