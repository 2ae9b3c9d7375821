"""Rollouts: sample, have them scored while log-probs are computed, and make the batch the loss wants.

Legend: P prompts, G samples per prompt, N rows (prompt-major), S = T + 1 columns (see ``batch.py``).

What runs at the same time: a group goes to the source of rewards as soon as its last response ends, so that works while
other groups are still sampled and while reference log-probs are computed. Nothing it does changes what is sampled.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, replace
from typing import Any, Protocol

import torch
from torch import Tensor

from nemotron.config.schema.grpo import RewardScalingConfig, RewardShapingConfig
from nemotron.contracts.rewards import GroupRewards, RewardSource
from nemotron.contracts.sampler import Pass, Sampler
from nemotron.contracts.samples import Completion, Group, SamplingParams, split_rows
from nemotron.data.rows import PromptRow
from nemotron.rl.advantages import baseline_and_std, prompt_groups
from nemotron.rl.batch import request_seed, response_tensors, rows_of
from nemotron.rl.chat import Chat
from nemotron.rl.policy import Policy
from nemotron.rl.reward_transforms import scale_rewards, shape_rewards


@dataclass(frozen=True, slots=True)
class Sample:
    """One response and everything known about it before training."""

    source: PromptRow
    prompt_ids: list[int]
    completion: Completion
    text: str
    judged: float | None
    """Reward as the source gave it; ``None``: missing."""
    unshaped: float
    """After scaling; 0 when missing."""
    reward: float
    """After scaling and shaping; 0 when missing."""
    std: float
    """Spread of the unshaped rewards of its group; 0 when missing."""
    details: Mapping[str, Any]
    """What else the source says about it, for ``samples.jsonl``."""
    reference: Tensor | None = None
    """[L] reference log-probs of its tokens."""
    previous: Tensor | None = None
    """[L] log-probs under the policy before the update."""


@dataclass(frozen=True, slots=True)
class Pending:
    """Sampled groups whose rewards are on their way."""

    sources: Sequence[PromptRow]
    groups: list[Group]
    texts: list[list[str]]
    """[P][G]"""
    futures: list[Future[GroupRewards]]
    drawn: Pass | None = None
    """the pass that drew them, if it was kept"""

    def results(self) -> list[GroupRewards]:
        """Wait for the rewards. Raises NemotronError when their source cannot be reached."""
        return [future.result() for future in self.futures]


class RewardRules(Protocol):
    """What an algorithm's section says about rewards between their source and the advantages."""

    @property
    def reward_scaling(self) -> RewardScalingConfig: ...
    @property
    def reward_shaping(self) -> RewardShapingConfig: ...
    @property
    def use_leave_one_out_baseline(self) -> bool: ...


def start_rollout(
    sampler: Sampler,
    chat: Chat,
    rewards: RewardSource,
    sources: Sequence[PromptRow],
    generations: int,
    sampling: SamplingParams,
    seed_parts: tuple[int | str, ...],
    *,
    keep: bool = False,
) -> Pending:
    """Sample ``generations`` responses to each prompt and hand each group to ``rewards`` when it is complete.

    ``keep`` the pass that draws them, if the sampler can.
    """
    prompts = [chat.encode(source.messages, f"prompt {source.id}") for source in sources]
    texts: list[list[str]] = [[] for _ in sources]
    futures: list[Future[GroupRewards] | None] = [None] * len(prompts)

    def on_group(index: int, group: Group) -> None:
        texts[index] = [chat.reply(prompts[index], completion.token_ids) for completion in group.completions]
        # The name in the seed is part of what a resumed run repeats.
        seed = request_seed(*seed_parts, index, "judge")
        futures[index] = rewards.submit(sources[index], texts[index], group.completions, seed=seed)

    seeds = [[request_seed(*seed_parts, p, g) for g in range(generations)] for p in range(len(prompts))]
    groups = sampler.generate(prompts, generations, sampling, seeds, on_group=on_group, keep=keep)
    submitted = [future for future in futures if future is not None]
    return Pending(sources, groups, texts, submitted, sampler.take_pass() if keep else None)


def token_logprobs_of(policy: Policy, groups: Sequence[Group], sampling: SamplingParams, rows: int) -> list[Tensor]:
    """Log-probs of each response's own tokens without gradient, ``rows`` responses at a time; N tensors [L_i]."""
    found: list[Tensor] = []
    with torch.no_grad():
        for part in split_rows(groups, rows):
            values = policy.response_logprobs(
                part, temperature=sampling.temperature, top_k=sampling.top_k, top_p=sampling.top_p
            ).cpu()
            found += [row[: len(c.token_ids)] for row, c in zip(values, rows_of(part), strict=True)]
    return found


def finish_rollout(
    pending: Pending,
    results: Sequence[GroupRewards],
    config: RewardRules,
    reference: Sequence[Tensor] | None,
    previous: Sequence[Tensor] | None,
) -> list[Sample]:
    """Rewards scaled and shaped (missing ones masked), with the spread of each group. N samples, prompt-major."""
    judged = [reward for result in results for reward in result.rewards]
    valid = torch.tensor([reward is not None for reward in judged])
    tensors = response_tensors(pending.groups)
    raw = torch.tensor([0.0 if reward is None else reward for reward in judged])
    unshaped = torch.where(valid, scale_rewards(raw, config.reward_scaling), 0.0)
    shaped = shape_rewards(unshaped, tensors.lengths, tensors.truncated, config.reward_shaping)
    shaped = torch.where(valid, shaped, 0.0)
    completions = rows_of(pending.groups)
    prompts = [group.prompt_ids for group in pending.groups for _ in group.completions]
    sources = [source for source, group in zip(pending.sources, pending.groups, strict=True) for _ in group.completions]
    _, std = baseline_and_std(
        prompt_groups(prompts),
        shaped,
        leave_one_out=config.use_leave_one_out_baseline,
        valid=valid.float(),
        std_rewards=unshaped,
    )
    texts = [text for group in pending.texts for text in group]
    details = [detail for result in results for detail in result.details]
    return [
        Sample(
            source=sources[i],
            prompt_ids=prompts[i],
            completion=completions[i],
            text=texts[i],
            judged=judged[i],
            unshaped=float(unshaped[i]),
            reward=float(shaped[i]),
            std=float(std[i]) if valid[i] else 0.0,
            details=details[i],
            reference=None if reference is None else reference[i],
            previous=None if previous is None else previous[i],
        )
        for i in range(len(completions))
    ]


def regroup(samples: Sequence[Sample]) -> list[Group]:
    """Neighbours with one prompt form a group again, so that its tokens are computed once in training."""
    groups: list[Group] = []
    for sample in samples:
        if groups and groups[-1].prompt_ids == sample.prompt_ids:
            groups[-1] = replace(groups[-1], completions=[*groups[-1].completions, sample.completion])
        else:
            groups.append(Group(sample.prompt_ids, [sample.completion]))
    return groups
