"""What a GRPO step reports: NeMo-RL's names, plus spread, KL per response, lengths and missing shares."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from nemotron.config.schema.grpo import RewardScalingConfig
from nemotron.rl.batch import ResponseTensors
from nemotron.rl.kl import calculate_kl
from nemotron.rl.losses import masked_mean
from nemotron.rl.reward_transforms import share_outside_source
from nemotron.rl.rollout import Sample
from nemotron.rl.update import TrainBatch
from nemotron.runs.health import DEAD_GROUPS


def sample_rows(samples: Sequence[Sample], advantages: Tensor | None = None) -> list[dict[str, Any]]:
    """The samples of a step as they are kept; ``advantages`` is [N,S]."""
    first = [None] * len(samples) if advantages is None else advantages[:, 0].tolist()
    return [
        {
            "row_id": sample.source.id,
            "prompt": sample.source.messages[-1]["content"],
            "response": sample.text,
            "reward": sample.judged,
            "advantage": advantage,
            "truncated": sample.completion.truncated,
            **sample.details,
        }
        for sample, advantage in zip(samples, first, strict=True)
    ]


def reward_metrics(
    samples: Sequence[Sample], batch: TrainBatch, tensors: ResponseTensors, scaling: RewardScalingConfig
) -> dict[str, float]:
    """Rewards as the source gave them (missing ones left out), the share that ``scaling`` clamps, baselines' raw
    material, and advantages over valid rows."""
    judged = torch.tensor([s.judged for s in samples if s.judged is not None] or [0.0])
    lengths = torch.tensor([float(len(s.completion.token_ids)) for s in samples if s.judged is not None] or [0.0])
    valid = batch.advantages[batch.sample_mask > 0, 0] if (batch.sample_mask > 0).any() else torch.zeros(1)
    return {
        "train/reward": float(judged.mean()),
        "train/reward_std": float(judged.std(unbiased=False)),
        "train/filtered_reward": float(batch.rewards.mean()),
        "train/reward_length_correlation": correlation(judged, lengths),
        "train/advantages/mean": float(valid.mean()),
        "train/advantages/max": float(valid.max()),
        "train/advantages/min": float(valid.min()),
        "train/truncation_rate": float(tensors.truncated.float().mean()),
        **_without_signal(samples, batch),
        **({"train/reward_clamped_share": share_outside_source(judged, scaling)} if scaling.enabled else {}),
    }


def _without_signal(samples: Sequence[Sample], batch: TrainBatch) -> dict[str, float]:
    """The share of groups whose answers all got one reward; nothing where no group has two answers with one."""
    rewards = iter([sample.judged for sample in samples])
    groups = [[next(rewards) for _ in group.completions] for group in batch.groups]
    known = [[reward for reward in group if reward is not None] for group in groups]
    compared = [group for group in known if len(group) > 1]
    if not compared:
        return {}
    return {DEAD_GROUPS: sum(min(group) == max(group) for group in compared) / len(compared)}


def rollout_metrics(samples: Sequence[Sample], gen_batches: int) -> dict[str, float]:
    """Lengths in tokens, the share of responses without reward, and how many generation batches it took."""
    lengths = [len(sample.completion.token_ids) for sample in samples]
    prompts = [len(sample.prompt_ids) for sample in samples]
    return {
        "train/mean_gen_tokens_per_sample": sum(lengths) / len(lengths),
        "train/max_gen_tokens_per_sample": float(max(lengths)),
        "train/mean_prompt_length": sum(prompts) / len(prompts),
        "train/total_num_tokens": float(sum(lengths) + sum(prompts)),
        "train/missing_share": sum(sample.judged is None for sample in samples) / len(samples),
        "train/dynamic_sampling_num_gen_batches": float(gen_batches),
    }


def kl_metrics(
    trained: Mapping[str, float], batch: TrainBatch, samples: Sequence[Sample], beta: float
) -> dict[str, float]:
    """KL to the reference: per token (nats; the loss's own figure when it has a KL term) and summed over a response.

    ``train/reward_minus_kl`` is what KL-regularised training maximises: the mean of R - beta * (KL summed over the
    response) over the rows that are trained on; R as the source gave it, ``beta`` the loss's penalty.
    """
    if batch.reference_logprobs is None:
        return {"train/kl_penalty": 0.0, "train/kl_sum_per_response": 0.0}
    kl = calculate_kl(batch.generation_logprobs, batch.reference_logprobs)
    mask = batch.token_mask * batch.sample_mask[:, None]
    per_token = trained["kl_penalty"] or float(masked_mean(kl, mask))
    rows = batch.sample_mask.sum().clamp(min=1)
    kl_sum = float((kl * mask).sum() / rows)
    rewards = torch.tensor([0.0 if sample.judged is None else sample.judged for sample in samples])
    return {
        "train/kl_penalty": per_token,
        "train/kl_sum_per_response": kl_sum,
        "train/reward_minus_kl": float((rewards * batch.sample_mask).sum() / rows) - beta * kl_sum,
    }


def correlation(a: Tensor, b: Tensor) -> float:
    """Pearson; 0 where one of them does not vary."""
    if a.numel() < 2 or a.std() == 0 or b.std() == 0:
        return 0.0
    return float(torch.corrcoef(torch.stack([a, b]))[0, 1])


def validation_metrics(samples: Sequence[Sample]) -> dict[str, float]:
    """Mean reward of the validation responses that have one, their mean length, and the share without reward.

    A validation in which every reward is missing has no mean reward, so it ranks no checkpoint.
    """
    rewards = [sample.judged for sample in samples if sample.judged is not None]
    lengths = [len(sample.completion.token_ids) for sample in samples]
    found = {
        "validation/avg_length": sum(lengths) / max(len(lengths), 1),
        "validation/missing_share": 1.0 - len(rewards) / max(len(samples), 1),
    }
    return {"validation/accuracy": sum(rewards) / len(rewards), **found} if rewards else found
