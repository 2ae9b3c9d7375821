"""How much a job computes and holds: tokens, steps, judge requests, memory. Estimates, from files and numbers alone."""

from __future__ import annotations

from dataclasses import dataclass

from nemotron.compile import data
from nemotron.compile.grpo_job import AnyGrpoJob
from nemotron.compile.job import AnyJob
from nemotron.compile.model_files import ModelFiles, read_model

FLOAT = 4
"""Bytes of a float32: the embedded engine's weights, gradients and optimizer moments."""
SMALL_JUDGE = 50_000_000
"""Below this many parameters our judge server computes in float64 (``judge.dtype: auto``)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Work:
    """What one run does."""

    batch: str
    """What a step takes, for people: ``8 prompts x 8 generations``."""
    updates: int
    """Optimizer steps per step of the run."""
    steps: int | None
    """Steps of the whole run; None when the data could not be counted."""
    tokens_per_step: int
    """Upper bound: every response and every prompt is as long as the limits allow."""
    data_steps: int | None = None
    """Steps after which the epochs end, whatever `max_num_steps` says; None when the data could not be counted."""
    prompts: int | None = None
    """Prompts per step, where the policy samples."""
    generations: int | None = None
    """Responses per prompt, where the policy samples."""
    pairs: int | None = None
    """Pairs per step, where it trains on pairs."""
    judge_calls: int | None = None
    """Judge requests per step, without retries; None without a judge."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Memory:
    """Estimated peak main memory (or GPU memory) of the embedded engine in bytes."""

    policy: int
    """Weights, gradients and two optimizer moments."""
    reference: int
    judge: int
    critic: int = 0
    """Critic with its optimizer, and reward model."""
    activations: int
    """KV cache of a rollout or logits and activations of a micro-batch, whichever is larger."""
    parameters: int
    """Parameters of the policy."""

    @property
    def total(self) -> int:
        """Sum of the parts."""
        return self.policy + self.reference + self.judge + self.critic + self.activations


def grpo_work(job: AnyGrpoJob, judge_calls: int | None = None) -> Work:
    """Sizes of a GRPO run."""
    grpo, policy = job.config.grpo, job.config.policy
    response = job.generation.max_new_tokens if job.generation else 0
    prompt = max(0, policy.max_total_sequence_length - response)
    return Work(
        batch=f"{grpo.num_prompts_per_step} prompts x {grpo.num_generations_per_prompt} generations",
        prompts=grpo.num_prompts_per_step,
        generations=grpo.num_generations_per_prompt,
        updates=max(1, job.responses // policy.train_global_batch_size),
        steps=steps(job),
        data_steps=steps_of_data(job),
        tokens_per_step=job.responses * response + grpo.num_prompts_per_step * prompt,
        judge_calls=judge_calls,
    )


def steps(job: AnyJob) -> int | None:
    """Steps until the data or `max_num_steps` end; a limit below 1 (NeMo-RL's -1) counts as none."""
    by_data, most = steps_of_data(job), job.schedule.max_num_steps
    return by_data if by_data is None or most < 1 else min(most, by_data)


def steps_of_data(job: AnyJob) -> int | None:
    """Steps after which the epochs end; None when the data could not be counted."""
    surveys = [file.survey() for file in data.files(job) if file.role == "train"]
    if not surveys or any(found.problem for found in surveys):
        return None
    return job.schedule.max_num_epochs * (sum(found.rows for found in surveys) // job.rows_per_step)


def memory(job: AnyJob) -> Memory | None:
    """Peak memory of the embedded engine; None when the policy is not on this machine."""
    policy = read_model(job.config.policy.model_name, job.place)
    if policy is None or policy.parameters is None:
        return None
    others = {"judge": 0, "critic": 0, "reward model": 0}
    for ref in job.models():
        found = read_model(ref.name, job.place)
        if ref.role in others and found and found.parameters:
            others[ref.role] = found.parameters * _bytes_per_parameter(ref.role, found.parameters)
    return Memory(
        policy=policy.parameters * 4 * FLOAT,
        reference=policy.parameters * FLOAT if job.has_reference else 0,
        judge=others["judge"],
        critic=others["critic"] + others["reward model"],
        activations=max(_cache(job, policy), _logits(job, policy)),
        parameters=policy.parameters,
    )


def _bytes_per_parameter(role: str, parameters: int) -> int:
    """A judge computes in float64 while that is cheap; a critic is trained; a reward model only answers."""
    if role == "judge":
        return 2 * FLOAT if parameters < SMALL_JUDGE else FLOAT
    return 4 * FLOAT if role == "critic" else FLOAT


def _cache(job: AnyJob, model: ModelFiles) -> int:
    """Keys and values of all responses of a step."""
    config = model.config
    hidden, heads = config.get("hidden_size"), model.heads
    layers = config.get("num_hidden_layers")
    if not (isinstance(hidden, int) and isinstance(layers, int) and heads and model.kv_heads):
        return 0
    width = hidden // heads * model.kv_heads
    return job.rows_at_once * job.config.policy.max_total_sequence_length * layers * 2 * width * FLOAT


def _logits(job: AnyJob, model: ModelFiles) -> int:
    """Logits of a micro-batch with their gradient and softmax, and what the layers keep for the backward pass."""
    policy = job.config.policy
    response = job.generation.max_new_tokens if job.generation else policy.max_total_sequence_length
    rows = min(policy.train_micro_batch_size, job.rows_at_once or policy.train_micro_batch_size)
    logits = rows * response * (model.vocabulary or 0) * 3 * FLOAT
    hidden, layers = model.config.get("hidden_size", 0), model.config.get("num_hidden_layers", 0)
    kept = rows * policy.max_total_sequence_length * hidden * layers * 16 * FLOAT
    return int(logits + kept)
