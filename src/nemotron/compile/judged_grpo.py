"""The preflight of GRPO with a generative judge: every family of rules, in order."""

from __future__ import annotations

from typing import Any

from nemotron.compile import (
    artifacts,
    batch,
    checkpointing,
    data,
    engine,
    generation,
    grpo,
    judge,
    nemo_gym,
    output,
    parallelism,
    resources,
)
from nemotron.compile.describe import inputs, judge_processes, outputs, policy_processes
from nemotron.compile.estimate import memory, work
from nemotron.compile.grpo_job import JudgedJob
from nemotron.compile.plan import Preflight, Surroundings
from nemotron.compile.rules import Rules, check
from nemotron.compile.secrets import secrets_in
from nemotron.config.layers import Resolved
from nemotron.config.schema.extras import JudgedGrpoConfig

STAGES: tuple[tuple[Rules[Any], ...], ...] = (
    (engine.rules,),
    (batch.rules, grpo.rules, generation.rules, parallelism.rules, nemo_gym.rules, checkpointing.rules),
    (output.rules, resources.rules),
    (artifacts.rules,),
    (data.rules,),
    (judge.rules,),
)
"""The order of the preflight. All stages run; the first error in this order decides the exit code."""


def preflight(config: JudgedGrpoConfig, resolved: Resolved, where: Surroundings) -> Preflight:
    """Choose the engine, run every rule, and describe what would run."""
    choice = engine.choose(config.engine, where.machine)
    job = JudgedJob(config, resolved, choice.engine, where.machine, where.runs_dir, where.env)
    return Preflight(
        engine=choice.engine,
        engine_reason=choice.reason,
        findings=check(job, STAGES),
        processes=(*policy_processes(job), *judge_processes(job)),
        inputs=inputs(job),
        outputs=outputs(job),
        work=work(job, judge_calls=judge.calls_per_step(job)),
        memory=memory(job) if choice.engine == "embedded" else None,
        secrets=secrets_in(config),
    )
