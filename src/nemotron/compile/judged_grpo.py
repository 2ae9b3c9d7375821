"""The preflight of GRPO with a generative judge: every family of rules, in order."""

from __future__ import annotations

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
from nemotron.compile.describe import judge_processes, policy_processes
from nemotron.compile.estimate import work
from nemotron.compile.grpo_job import JudgedJob
from nemotron.compile.inspection import Stages, inspected
from nemotron.compile.plan import Preflight, Surroundings
from nemotron.config.layers import Resolved
from nemotron.config.schema.extras import JudgedGrpoConfig

STAGES: Stages = (
    (engine.rules,),
    (batch.rules, grpo.rules, generation.rules, parallelism.rules, nemo_gym.rules, checkpointing.rules, doubts.rules),
    (output.rules, resources.rules),
    (artifacts.rules,),
    (data.rules,),
    (judge.rules,),
)
"""The order of the preflight. All stages run; the first error in this order decides the exit code."""


def preflight(config: JudgedGrpoConfig, resolved: Resolved, where: Surroundings) -> Preflight:
    """Choose the engine, run every rule, and describe what would run."""
    job = JudgedJob.of(config, resolved, where)
    return inspected(job, STAGES, (*policy_processes(job), *judge_processes(job)), work(job, judge.calls_per_step(job)))
