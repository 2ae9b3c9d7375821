"""The rules of GRPO with a generative judge: every family of rules, in order."""

from __future__ import annotations

from collections.abc import Iterator

from nemotron.compile import (
    artifacts,
    batch,
    checkpointing,
    data,
    doubts,
    engine,
    generation,
    grpo,
    judge,
    nemo_gym,
    output,
    parallelism,
    resources,
)
from nemotron.compile.describe import Process, judge_processes, policy_processes
from nemotron.compile.estimate import Work, grpo_work
from nemotron.compile.grpo_job import JudgedJob
from nemotron.compile.rules import Stages

STAGES: Stages = (
    (engine.rules,),
    (batch.rules, grpo.rules, generation.rules, parallelism.rules, nemo_gym.rules, checkpointing.rules, doubts.rules),
    (output.rules, resources.rules),
    (artifacts.rules,),
    (data.rules,),
    (judge.rules,),
)
"""The order of the preflight. All stages run; the first error in this order decides the exit code."""


def processes(job: JudgedJob) -> Iterator[Process]:
    """The policy and its judge."""
    yield from policy_processes(job)
    yield from judge_processes(job)


def work(job: JudgedJob) -> Work:
    """Sizes of the run."""
    return grpo_work(job, judge.calls_per_step(job))
