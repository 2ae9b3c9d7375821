"""The rules of PPO: every family of rules, in order."""

from __future__ import annotations

from collections.abc import Iterator

from nemotron.compile import (
    artifacts,
    checkpointing,
    data,
    doubts,
    engine,
    generation,
    output,
    parallelism,
    ppo_rules,
    resources,
)
from nemotron.compile.describe import Process, policy_processes
from nemotron.compile.estimate import Work, steps, steps_of_data
from nemotron.compile.ppo_job import PpoJob
from nemotron.compile.rules import Stages

STAGES: Stages = (
    (engine.rules,),
    (ppo_rules.rules, generation.rules, parallelism.rules, checkpointing.rules, doubts.rules),
    (output.rules, resources.rules),
    (artifacts.rules, ppo_rules.models),
    (data.rules,),
)
"""The order of the preflight. All stages run; the first error in this order decides the exit code."""


def processes(job: PpoJob) -> Iterator[Process]:
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


def work(job: PpoJob) -> Work:
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
        data_steps=steps_of_data(job),
        tokens_per_step=job.responses * response + ppo.num_prompts_per_step * prompt,
    )
