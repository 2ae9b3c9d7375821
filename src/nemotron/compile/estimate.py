"""How much a job computes and holds: tokens, steps, judge requests, memory. Estimates, from files and numbers alone."""

from __future__ import annotations

from dataclasses import dataclass

from nemotron.compile import data
from nemotron.compile.artifacts import models
from nemotron.compile.job import Job
from nemotron.compile.judge import calls_per_step
from nemotron.compile.model_files import ModelFiles, read_model

FLOAT = 4
"""Bytes of a float32: the embedded engine's weights, gradients and optimizer moments."""
SMALL_JUDGE = 50_000_000
"""Below this many parameters our judge server computes in float64 (``judge.dtype: auto``)."""


@dataclass(frozen=True, slots=True)
class Work:
    """What one run does."""

    prompts: int
    """Prompts per step."""
    generations: int
    """Responses per prompt."""
    updates: int
    """Optimizer steps per rollout."""
    steps: int | None
    """Steps of the whole run; None when the data could not be counted."""
    tokens_per_step: int
    """Upper bound: every response reaches ``max_new_tokens`` and every prompt fills the rest of the sequence once."""
    judge_calls: int
    """Judge requests per step, without retries."""


@dataclass(frozen=True, slots=True)
class Memory:
    """Estimated peak main memory (or GPU memory) of the embedded engine in bytes."""

    policy: int
    """Weights, gradients and two optimizer moments."""
    reference: int
    judge: int
    activations: int
    """KV cache of a rollout or logits and activations of a micro-batch, whichever is larger."""
    parameters: int
    """Parameters of the policy."""

    @property
    def total(self) -> int:
        """Sum of the parts."""
        return self.policy + self.reference + self.judge + self.activations


def work(job: Job) -> Work:
    """Sizes of the run."""
    grpo, policy = job.config.grpo, job.config.policy
    response = job.generation.max_new_tokens if job.generation else 0
    prompt = max(0, policy.max_total_sequence_length - response)
    return Work(
        prompts=grpo.num_prompts_per_step,
        generations=grpo.num_generations_per_prompt,
        updates=max(1, job.responses // policy.train_global_batch_size),
        steps=_steps(job),
        tokens_per_step=job.responses * response + grpo.num_prompts_per_step * prompt,
        judge_calls=calls_per_step(job),
    )


def _steps(job: Job) -> int | None:
    grpo = job.config.grpo
    surveys = [file.survey() for file in data.files(job) if file.role == "train"]
    if not surveys or any(found.problem for found in surveys):
        return None
    rows = sum(found.rows for found in surveys)
    return min(
        grpo.max_num_steps, grpo.max_num_epochs * (rows // int(grpo.num_prompts_per_step * grpo.batch_multiplier))
    )


def memory(job: Job) -> Memory | None:
    """Peak memory of the embedded engine; None when the policy is not on this machine."""
    policy = read_model(job.config.policy.model_name, job.machine)
    if policy is None or policy.parameters is None:
        return None
    judge = 0
    for role, _, name in models(job):
        found = read_model(name, job.machine)
        if role == "judge" and found and found.parameters:
            judge = found.parameters * (2 * FLOAT if found.parameters < SMALL_JUDGE else FLOAT)
    has_reference = job.config.loss_fn.reference_policy_kl_penalty > 0 or job.config.limits.max_kl is not None
    return Memory(
        policy=policy.parameters * 4 * FLOAT,
        reference=policy.parameters * FLOAT if has_reference else 0,
        judge=judge,
        activations=max(_cache(job, policy), _logits(job, policy)),
        parameters=policy.parameters,
    )


def _cache(job: Job, model: ModelFiles) -> int:
    """Keys and values of all responses of a step."""
    config = model.config
    hidden, heads = config.get("hidden_size"), model.heads
    layers = config.get("num_hidden_layers")
    if not (isinstance(hidden, int) and isinstance(layers, int) and heads and model.kv_heads):
        return 0
    width = hidden // heads * model.kv_heads
    return job.responses * job.config.policy.max_total_sequence_length * layers * 2 * width * FLOAT


def _logits(job: Job, model: ModelFiles) -> int:
    """Logits of a micro-batch with their gradient and softmax, and what the layers keep for the backward pass."""
    policy = job.config.policy
    response = job.generation.max_new_tokens if job.generation else policy.max_total_sequence_length
    rows = min(policy.train_micro_batch_size, job.responses)
    logits = rows * response * (model.vocabulary or 0) * 3 * FLOAT
    hidden, layers = model.config.get("hidden_size", 0), model.config.get("num_hidden_layers", 0)
    kept = rows * policy.max_total_sequence_length * hidden * layers * 16 * FLOAT
    return int(logits + kept)
