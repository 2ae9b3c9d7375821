"""The preflight of PPO: every family of rules, in order."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from nemotron.compile import (
    artifacts,
    checkpointing,
    data,
    engine,
    generation,
    output,
    parallelism,
    ppo_rules,
    resources,
)
from nemotron.compile.describe import Process, inputs, outputs, policy_processes
from nemotron.compile.estimate import Work, memory, steps
from nemotron.compile.plan import Preflight, Surroundings
from nemotron.compile.ppo_job import PpoJob
from nemotron.compile.rules import Rules, check
from nemotron.compile.secrets import secrets_in
from nemotron.config.layers import Resolved
from nemotron.config.schema.ppo import PpoMasterConfig

STAGES: tuple[tuple[Rules[Any], ...], ...] = (
    (engine.rules,),
    (ppo_rules.rules, generation.rules, parallelism.rules, checkpointing.rules),
    (output.rules, resources.rules),
    (artifacts.rules, ppo_rules.models),
    (data.rules,),
)
"""The order of the preflight. All stages run; the first error in this order decides the exit code."""


def preflight(config: PpoMasterConfig, resolved: Resolved, where: Surroundings) -> Preflight:
    """Choose the engine, run every rule, and describe what would run."""
    choice = engine.choose(config.engine, where.machine)
    job = PpoJob(config, resolved, choice.engine, where.machine, where.runs_dir, where.env)
    return Preflight(
        engine=choice.engine,
        engine_reason=choice.reason,
        findings=check(job, STAGES),
        processes=tuple(_processes(job)),
        inputs=inputs(job),
        outputs=outputs(job),
        work=_work(job),
        memory=memory(job) if choice.engine == "embedded" else None,
        secrets=secrets_in(config),
    )


def _processes(job: PpoJob) -> Iterator[Process]:
    """The actor, and the critic where it runs."""
    only, critic = job.config.only, job.config.critic
    if only != "critic":
        yield from policy_processes(job)
    if job.engine != "embedded":
        if job.has_critic:
            yield Process("critic", "NeMo-RL: a value worker on the policy's GPUs")
        return
    holds = "serves reward model and critic" if job.has_critic else "serves the reward model"
    if only == "actor":
        yield Process("critic", f"{critic.address}: {holds}")
    elif only == "critic":
        yield Process("critic", f"child process on {critic.host}:{critic.port or 'a free port'}: {holds}")
    else:
        yield Process("critic", f"child process: {holds} on a free loopback port")


def _work(job: PpoJob) -> Work:
    """Sizes of the run."""
    ppo, policy = job.config.ppo, job.config.policy
    response = job.generation.max_new_tokens if job.generation else 0
    prompt = max(0, policy.max_total_sequence_length - response)
    return Work(
        batch=f"{ppo.num_prompts_per_step} prompts x {ppo.num_generations_per_prompt} generations",
        prompts=ppo.num_prompts_per_step,
        generations=ppo.num_generations_per_prompt,
        updates=ppo.ppo_epochs * max(1, job.responses // policy.train_global_batch_size),
        steps=steps(job),
        tokens_per_step=job.responses * response + ppo.num_prompts_per_step * prompt,
    )
