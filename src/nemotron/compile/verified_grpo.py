"""The rules of GRPO with verifiable rewards: every family of rules, in order."""

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
    output,
    parallelism,
    resources,
    reward_setup,
    verified_rewards,
)
from nemotron.compile.describe import Process, policy_processes
from nemotron.compile.rules import Stages
from nemotron.compile.verified_job import VerifiedJob

STAGES: Stages = (
    (engine.rules,),
    (batch.rules, grpo.rules, generation.rules, parallelism.rules, checkpointing.rules, doubts.rules),
    (output.rules, resources.rules),
    (artifacts.rules,),
    (data.rules,),
    (reward_setup.rules, verified_rewards.rules),
)
"""The order of the preflight. All stages run; the first error in this order decides the exit code."""


def processes(job: VerifiedJob) -> Iterator[Process]:
    """The policy, and where rewards are computed."""
    yield from policy_processes(job)
    yield from reward_processes(job)


def reward_processes(job: VerifiedJob) -> Iterator[Process]:
    """Where rewards are computed."""
    if job.config.rewards is not None:
        labels = ", ".join(function.shown for function in job.config.rewards.functions)
        yield Process("rewards", f"{labels}: in worker processes on this machine")
    for name, server in (job.config.gym.servers if job.config.gym else {}).items():
        place = f"server {server.base_url}" if server.base_url else f"our own `{server.kind}` server on loopback"
        yield Process(f"server {name}", place)
