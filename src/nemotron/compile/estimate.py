"""How much memory a job holds: an estimate, from files and numbers alone."""

from __future__ import annotations

from nemotron.compile.jobs.base import AnyJob
from nemotron.compile.plan import Memory
from nemotron.compile.probes.model_files import ModelFiles, read_model

FLOAT = 4
"""Bytes of a float32: the embedded engine's weights, gradients and optimizer moments."""
SMALL_JUDGE = 50_000_000
"""Below this many parameters our judge server computes in float64 (``judge.dtype: auto``)."""


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
    # Adapters are small beside what they adapt; the reference is the model without them. A checkpoint merges a copy.
    adapters = job.config.policy.lora is not None
    return Memory(
        policy=policy.parameters * (2 if adapters else 4) * FLOAT,
        reference=policy.parameters * FLOAT if job.has_reference and not adapters else 0,
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
