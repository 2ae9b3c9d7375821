"""The end of every training step's preflight: run the rules, and say what would run."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from nemotron.compile.describe import Process, inputs, outputs
from nemotron.compile.estimate import Work, memory
from nemotron.compile.job import AnyJob
from nemotron.compile.plan import Preflight
from nemotron.compile.rules import Rules, check
from nemotron.compile.secrets import secrets_in

Stages = tuple[tuple[Rules[Any], ...], ...]
"""Families of rules in the order in which they run. All run; the first error in this order decides the exit code."""


def inspected(job: AnyJob, stages: Stages, processes: Iterable[Process], work: Work) -> Preflight:
    """What is wrong with ``job``, and what would run."""
    return Preflight(
        engine=job.engine,
        engine_reason=job.engine_reason,
        findings=check(job, stages),
        processes=tuple(processes),
        inputs=inputs(job),
        outputs=outputs(job),
        work=work,
        memory=memory(job) if job.engine == "embedded" else None,
        secrets=secrets_in(job.config),
    )
