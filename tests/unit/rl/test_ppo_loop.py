"""The PPO loop with a small real policy and a critic that counts letters: it learns, warms up, stops and repeats."""

from __future__ import annotations

import math
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from nemotron.checkpoints.store import CheckpointStore
from nemotron.config.schema.extras import LimitsConfig
from nemotron.config.schema.grpo import LossFnConfig
from nemotron.config.schema.ppo import ActorConfig, PpoConfig
from nemotron.contracts.samples import SamplingParams
from nemotron.data.stream import PromptStream
from nemotron.errors import LimitError
from nemotron.rl.loops.ppo import Ppo, make_rollout, train, train_batch
from nemotron.rl.optim import Optimization
from nemotron.rl.rollout import finish_rollout, start_rollout, token_logprobs_of
from nemotron.rl.sampler import PolicySampler
from nemotron.rl.saving import Progress, Provenance, Saver, Trained
from tests.unit.rl.test_grpo_loop import ROWS, Log, weights
from tests.unit.rl.tiny_policy import VOCABULARY, tiny_chat, tiny_policy

PPO: dict[str, Any] = {
    "num_prompts_per_step": 2,
    "num_generations_per_prompt": 4,
    "max_num_steps": 3,
    "max_num_epochs": 100,
    "max_rollout_turns": 1,
    "ppo_epochs": 2,
    "use_dynamic_sampling": False,
    "overlong_filtering": False,
    "reward_scaling": {"enabled": False},
    "reward_shaping": {"enabled": False},
    "adv_estimator": {"name": "gae"},
    "seed": 1,
    "val_period": 0,
    "val_at_start": False,
    "val_at_end": False,
    "val_batch_size": 4,
    "max_val_samples": 4,
}


class LetterCritic:
    """Rewards the share of the letter z, and expects a constant."""

    def __init__(self) -> None:
        self.updates: list[dict[str, Tensor]] = []

    def infer(self, tensors: dict[str, Tensor]) -> Future[dict[str, Tensor]]:
        columns = torch.arange(tensors["tokens"].shape[1])
        inside = (columns >= tensors["prompt_lengths"][:, None]) & (columns < tensors["lengths"][:, None])
        hits = ((tensors["tokens"] == VOCABULARY["z"]) & inside).sum(1)
        answer: Future[dict[str, Tensor]] = Future()
        answer.set_result({"rewards": hits / inside.sum(1), "values": 0.1 * inside.float()})
        return answer

    def train(self, tensors: dict[str, Tensor]) -> Future[dict[str, float]]:
        self.updates.append(tensors)
        answer: Future[dict[str, float]] = Future()
        answer.set_result({"loss": 1.0, "explained_var": 0.0})
        return answer


def job(folder: Path, *, lr: float = 0.01, length: int = 8, **changes: Any) -> Ppo:
    limits = {"max_kl": None, "max_missing_share": 0.5, **changes.pop("limits", {})}
    loss = {"reference_policy_kl_penalty": 0.01, "use_kl_in_reward": True, **changes.pop("loss", {})}
    actor = {"absolute_kl": False, "entropy_bonus": 0.0, "exclude_truncated": False, **changes.pop("actor", {})}
    config = PpoConfig.model_validate({**PPO, **changes})
    policy = tiny_policy(scale=2.0)
    reference = policy.frozen_copy()
    rows = config.num_prompts_per_step * config.num_generations_per_prompt
    adam = {"name": "torch.optim.Adam", "kwargs": {"lr": lr}}
    optimization = Optimization.build(policy.parameters(), optimizer=adam)
    chat, stream = tiny_chat(), PromptStream(ROWS, config.num_prompts_per_step, config.seed, True)
    return Ppo(
        config=config,
        actor=ActorConfig.model_validate(actor),
        loss=LossFnConfig.model_validate(loss),
        limits=LimitsConfig.model_validate(limits),
        sampling=SamplingParams(max_new_tokens=length, stop_token_ids=(0,)),
        global_batch_size=rows,
        micro_batch_size=8,
        logprob_batch_size=8,
        save_period=None,
        policy=policy,
        sampler=PolicySampler(policy),
        reference=reference,
        optimization=optimization,
        chat=chat,
        critic=LetterCritic(),
        stream=stream,
        validation=ROWS[:3],
        saver=Saver(
            store=CheckpointStore(folder, None, None, True),
            tokenizer=chat.tokenizer,
            trained={"policy": Trained(policy.model, optimization)},
            stream=stream,
            provenance=lambda: Provenance("rl/nemo_rl/ppo", "a: 1\n", "f", []),
            save_hf=False,
        ),
        recorder=Log(),
    )


def rows_of(work: Ppo) -> list[dict[str, float]]:
    assert isinstance(work.recorder, Log)
    return work.recorder.rows


@pytest.mark.parametrize("estimator", ["gae", "rloo"])
def test_the_reward_rises(tmp_path: Path, estimator: str) -> None:
    changes: dict[str, Any] = {"adv_estimator": {"name": estimator}, "num_generations_per_prompt": 8}
    work = job(tmp_path, max_num_steps=14, **changes)
    train(work, Progress())
    rewards = [row["train/reward"] for row in rows_of(work)]
    assert sum(rewards[-5:]) / 5 > sum(rewards[:5]) / 5 + 0.2
    assert isinstance(work.critic, LetterCritic)
    assert len(work.critic.updates) == (28 if estimator == "gae" else 0)


def test_until_the_start_step_only_the_critic_learns(tmp_path: Path) -> None:
    work = job(tmp_path, policy_training_start_step=2, max_num_steps=2)
    before = weights(work.policy)
    train(work, Progress())
    assert torch.equal(weights(work.policy), before)
    assert isinstance(work.critic, LetterCritic)
    assert len(work.critic.updates) == 4
    work = job(tmp_path, policy_training_start_step=2, max_num_steps=3)
    train(work, Progress())
    assert not torch.equal(weights(work.policy), before)
    assert ["train/loss" in row for row in rows_of(work)] == [False, False, True]


def rollout_of(work: Ppo) -> Any:
    pending = start_rollout(work.sampler, work.chat, work.rewards, ROWS[:2], 4, work.sampling, (1,))
    previous = token_logprobs_of(work.policy, pending.groups, work.sampling, 8)
    results = pending.results()
    samples = finish_rollout(pending, results, work.config, previous, previous)
    return make_rollout(work, samples, [values for result in results for values in result.raw])


def test_truncated_responses_teach_the_critic_but_not_the_policy(tmp_path: Path) -> None:
    rollout = rollout_of(job(tmp_path, length=4, actor={"exclude_truncated": True}))
    cut = rollout.tensors.truncated
    assert bool(cut.any())
    assert torch.equal(rollout.trained, (~cut).float())
    assert torch.equal(train_batch(rollout).sample_mask, rollout.trained)
    assert bool((rollout.mask[cut].sum(1) > 0).all())
    filtered = rollout_of(job(tmp_path, length=4, overlong_filtering=True))
    assert float(filtered.mask[cut].sum()) == 0


def test_a_step_of_truncated_answers_alone_updates_nothing_and_is_counted(tmp_path: Path) -> None:
    work = job(tmp_path, length=1, overlong_filtering=True, max_num_steps=2)
    before = torch.cat([p.detach().flatten().clone() for p in work.policy.parameters()])
    train(work, Progress())
    assert isinstance(work.critic, LetterCritic)
    assert isinstance(work.recorder, Log)
    for row in work.recorder.rows:
        assert row["train/steps_without_a_valid_token"] == float(row["train/truncation_rate"] == 1.0)
        assert all(math.isfinite(value) for value in row.values())
    skipped = [row for row in work.recorder.rows if row["train/steps_without_a_valid_token"]]
    assert skipped
    assert len(work.critic.updates) == work.config.ppo_epochs * (len(work.recorder.rows) - len(skipped))
    if len(skipped) == len(work.recorder.rows):
        assert torch.equal(before, torch.cat([p.detach().flatten() for p in work.policy.parameters()]))


def test_an_update_holds_what_the_estimator_returned(tmp_path: Path) -> None:
    """Returns, old values and mask stand at the tokens they belong to, behind the prompt."""
    work = job(tmp_path, max_num_steps=1, lr=0.0, adv_estimator={"name": "gae", "gae_lambda": 1.0})
    train(work, Progress())
    assert isinstance(work.critic, LetterCritic)
    update = work.critic.updates[0]
    tokens, mask = update["tokens"], update["mask"]
    assert torch.equal(update["prev_values"], 0.1 * mask)
    assert float(mask[:, 0].sum()) == 0
    # Reference and policy are one before the first update: lambda 1 makes every return the reward.
    share = ((tokens == VOCABULARY["z"]) * mask).sum(1) / mask.sum(1)
    torch.testing.assert_close(update["returns"] * mask, share[:, None] * mask, atol=1e-5, rtol=1e-5)


def test_a_kl_over_the_limit_stops_the_run(tmp_path: Path) -> None:
    work = job(tmp_path, lr=0.1, max_num_steps=10, limits={"max_kl": 0.05}, actor={"absolute_kl": True})
    with pytest.raises(LimitError, match="the limit is"):
        train(work, Progress())
    assert rows_of(work)[-1]["train/kl_penalty"] > 0.05
    assert rows_of(work)[-1]["train/reward_minus_kl"] < rows_of(work)[-1]["train/reward"]


def test_the_entropy_bonus_keeps_the_policy_undecided(tmp_path: Path) -> None:
    entropies = []
    for bonus in (0.0, 0.2):
        work = job(tmp_path, max_num_steps=15, actor={"entropy_bonus": bonus})
        train(work, Progress())
        entropies.append(sum(row["train/approx_entropy"] for row in rows_of(work)[-5:]) / 5)
    assert entropies[1] > entropies[0] + 0.1


def test_validation_measures_reward_and_length(tmp_path: Path) -> None:
    work = job(tmp_path, max_num_steps=2, val_at_start=True, val_period=2)
    train(work, Progress())
    measured = {row["step"]: row for row in rows_of(work) if "validation/accuracy" in row}
    assert list(measured) == [0, 2]
    assert 0 <= measured[0]["validation/accuracy"] <= 1
    assert measured[0]["validation/avg_length"] > 0


def test_equal_jobs_end_with_equal_bits(tmp_path: Path) -> None:
    ends = []
    for _ in range(2):
        work = job(tmp_path, max_num_steps=2)
        train(work, Progress())
        ends.append(weights(work.policy))
    assert torch.equal(*ends)
