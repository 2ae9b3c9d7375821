"""PPO with a critic in a process of its own, one story from top to bottom.

Per step: sample responses and send each finished group to the critic server, which answers with the reward model's
score and a value per token; subtract the KL to the reference from the rewards; estimate advantages; then, PPO epoch
by PPO epoch, let the server train the critic while the policy is trained here.

The formulas are those of NeMo-RL v0.7.0 (tests/golden). Differences from its loop:

1. Values and rewards arrive while other groups are still sampled and while log-probs are computed. Critic and policy
   train at the same time; neither needs the other within a step.
2. `actor.exclude_truncated` leaves truncated responses out of the policy's loss only (NeMo-Aligner); NeMo-RL's
   `overlong_filtering` leaves them out of everything.
3. `rloo` needs no critic: the server then holds the reward model alone.
4. The data order and every random number follow from the seed and the step, so a resumed run repeats the bits.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from nemotron.config.schema.extras import LimitsConfig
from nemotron.config.schema.grpo import LossFnConfig
from nemotron.config.schema.ppo import ActorConfig, PpoConfig
from nemotron.contracts.rewards import missing_share
from nemotron.contracts.sampler import Sampler
from nemotron.contracts.samples import Group, SamplingParams
from nemotron.data.rows import PromptRow
from nemotron.data.stream import PromptStream
from nemotron.rl.advantages import prompt_groups
from nemotron.rl.batch import ResponseTensors, in_columns, response_tensors
from nemotron.rl.chat import Chat
from nemotron.rl.critic.source import Critic, CriticSource, full_rows
from nemotron.rl.gae import Estimate, estimate, leave_one_out, token_kl, token_rewards
from nemotron.rl.logprobs import mask_out_neg_inf
from nemotron.rl.loops.metrics import rollout_metrics, sample_rows, validation_metrics
from nemotron.rl.loops.ppo_metrics import step_metrics
from nemotron.rl.loops.recorder import Recorder
from nemotron.rl.optim import Optimization
from nemotron.rl.policy import Policy
from nemotron.rl.reward_transforms import filter_overlong
from nemotron.rl.rollout import Sample, finish_rollout, regroup, start_rollout, token_logprobs_of
from nemotron.rl.saving import Progress, Saver
from nemotron.rl.stopping import Deadline, stop_reason
from nemotron.rl.timing import Timings
from nemotron.rl.update import TrainBatch, update
from nemotron.runs.health import Watch


@dataclass(frozen=True)
class Ppo:
    """What the loop works with; ``engines/embedded/ppo.py`` builds it from the compiled job."""

    config: PpoConfig
    actor: ActorConfig
    loss: LossFnConfig
    limits: LimitsConfig
    sampling: SamplingParams
    global_batch_size: int
    micro_batch_size: int
    logprob_batch_size: int
    save_period: int | None
    """``None``: no checkpoints."""
    policy: Policy
    sampler: Sampler
    """Draws responses from the policy."""
    reference: Policy | None
    """``None`` when nothing needs a KL."""
    optimization: Optimization
    chat: Chat
    critic: Critic
    stream: PromptStream
    validation: Sequence[PromptRow]
    saver: Saver
    recorder: Recorder
    deadline: Deadline | None = None
    """``None``: the run may take its time."""
    watch: Watch | None = None
    """Minds the limits beside the KL's; ``None``: there are none."""

    @property
    def rewards(self) -> CriticSource:
        """The critic as a source of rewards."""
        return CriticSource(self.critic, self.chat)


@dataclass(frozen=True, slots=True)
class Rollout:
    """A rollout batch, ready for training. [N,S] tensors as in ``batch.py``."""

    groups: list[Group]
    tensors: ResponseTensors
    token_mask: Tensor
    mask: Tensor
    """[N,S] token mask times the mask of responses that count at all."""
    trained: Tensor
    """[N] responses that the policy's loss sees."""
    rewards: Tensor
    """[N]"""
    values: Tensor
    """[N,S]"""
    kl: Tensor | None
    """[N,S] to the reference, as it enters the reward."""
    previous: Tensor
    """[N,S] log-probs before the update."""
    reference: Tensor | None
    """[N,S]"""
    estimate: Estimate


def train(setup: Ppo, progress: Progress) -> Progress:
    """Run the loop from ``progress`` until ``max_num_steps`` or ``max_num_epochs``; returns where it ended.

    Raises:
        EngineError: the critic is gone or refuses; a loss or gradient is not finite.
        LimitError: a limit of `limits` is crossed, or time is up; metrics and a checkpoint are written before.
        OutputError: a metric or checkpoint cannot be written.
    """
    config = setup.config
    if config.val_at_start and progress.step == 0 and setup.validation:
        setup.recorder.write(0, validate(setup))

    while progress.step < config.max_num_steps and setup.stream.next_epoch < config.max_num_epochs:
        step = progress.step + 1
        timings = Timings()
        with timings.phase("generation"):
            pending = start_rollout(
                setup.sampler,
                setup.chat,
                setup.rewards,
                setup.stream.next_batch(),
                config.num_generations_per_prompt,
                setup.sampling,
                (config.seed, "train", step),
            )
        with timings.phase("policy_and_reference_logprobs"):
            previous = token_logprobs_of(setup.policy, pending.groups, setup.sampling, setup.logprob_batch_size)
            # The reference is unfiltered: the KL compares whole distributions (NeMo-RL 2.10).
            unfiltered = SamplingParams(1, (), temperature=setup.sampling.temperature)
            reference = (
                token_logprobs_of(setup.reference, pending.groups, unfiltered, setup.logprob_batch_size)
                if setup.reference
                else None
            )
        with timings.phase("reward_calculation"):
            results = pending.results()
        samples = finish_rollout(pending, results, config, reference, previous)
        if missing_share(results) > setup.limits.max_missing_share:
            setup.recorder.samples(step, sample_rows(samples))
            raise setup.rewards.too_many_missing(results, step, setup.limits.max_missing_share)
        with timings.phase("advantage_calculation"):
            rollout = make_rollout(setup, samples, [values for result in results for values in result.raw])

        critic_updates = []
        # Without a valid token, when all answers were cut off and are filtered, there is nothing to learn.
        learnable = bool(rollout.mask.any())
        if rollout.estimate.returns is not None and learnable:
            # All passes at once: the server applies them in order while the policy is trained here.
            columns = {"returns": rollout.estimate.returns, "prev_values": rollout.values, "mask": rollout.mask}
            request = full_rows(rollout.groups, columns)
            critic_updates = [setup.critic.train(request) for _ in range(config.ppo_epochs)]
        trained: dict[str, float] = {}
        # Until then only the critic learns; and a batch of truncated responses alone teaches the policy nothing.
        if progress.step >= config.policy_training_start_step and bool(rollout.trained.any()):
            with timings.phase("policy_training"):
                batch = train_batch(rollout)
                for _ in range(config.ppo_epochs):
                    trained = update(
                        setup.policy,
                        setup.optimization,
                        batch,
                        setup.loss,
                        setup.sampling,
                        global_batch_size=setup.global_batch_size,
                        micro_batch_size=setup.micro_batch_size,
                        entropy_bonus=setup.actor.entropy_bonus,
                    )
            setup.sampler.refresh()
        with timings.phase("value_training"):
            critic = [future.result() for future in critic_updates]

        last = step == config.max_num_steps or setup.stream.next_epoch >= config.max_num_epochs
        validation = {}
        if setup.validation and ((config.val_period and step % config.val_period == 0) or (last and config.val_at_end)):
            with timings.phase("validation"):
                validation = validate(setup)

        progress = progress.after_step(setup.stream.next_epoch, len(samples), float(rollout.mask.sum()))
        metrics = {
            **{f"train/{name}": value for name, value in trained.items()},
            **{f"critic/{name}": value for name, value in (critic[-1] if critic else {}).items()},
            **rollout_metrics(samples, 1),
            **step_metrics(rollout, setup.loss.reference_policy_kl_penalty),
            "train/steps_without_a_valid_token": float(not learnable),
            **setup.rewards.metrics(results),
            **validation,
        }
        stop = stop_reason(
            step,
            metrics,
            max_kl=setup.limits.max_kl,
            watch=setup.watch,
            deadline=setup.deadline,
            may_end=bool(setup.save_period) and not last,
        )
        # Before the checkpoint: a resumed run drops the rows after its last checkpoint; none before it may be missing.
        setup.recorder.samples(step, sample_rows(samples, mean_advantages(rollout)))
        setup.recorder.step(step, {**metrics, **timings.metrics()})
        if setup.save_period and (step % setup.save_period == 0 or last or stop):
            setup.recorder.checkpoint(setup.saver.save(progress, metrics))
        if stop:
            raise stop
    return progress


def make_rollout(setup: Ppo, samples: Sequence[Sample], values: Sequence[Tensor]) -> Rollout:
    """Masks, token rewards and advantages; ``values`` holds one [L] tensor per response."""
    groups = regroup(samples)
    tensors = response_tensors(groups)
    width = tensors.token_mask.shape[1]
    previous = in_columns([s.previous for s in samples if s.previous is not None], width)
    previous, token_mask = mask_out_neg_inf(previous, tensors.token_mask)
    reference = (
        in_columns([s.reference for s in samples if s.reference is not None], width) if setup.reference else None
    )

    counted = torch.tensor([float(sample.judged is not None) for sample in samples])
    if setup.config.overlong_filtering:
        counted = filter_overlong(counted, tensors.truncated)
    trained = filter_overlong(counted, tensors.truncated) if setup.actor.exclude_truncated else counted
    mask = token_mask * counted[:, None]

    rewards = torch.tensor([sample.reward for sample in samples])
    kl = None
    if reference is not None:
        kl_type = setup.loss.reference_policy_kl_type
        kl = token_kl(previous, reference, kl_type=kl_type, absolute=setup.actor.absolute_kl)
    penalty = kl if setup.loss.use_kl_in_reward else None
    per_token = token_rewards(rewards, mask, penalty, setup.loss.reference_policy_kl_penalty)
    placed = in_columns(values, width)
    if setup.config.adv_estimator.name == "gae":
        found = estimate(per_token, placed, mask, setup.config.adv_estimator)
    else:
        numbers = prompt_groups([sample.prompt_ids for sample in samples])
        found = leave_one_out(numbers, per_token, mask, normalize=setup.config.adv_estimator.normalize_advantages)
    return Rollout(
        groups=groups,
        tensors=tensors,
        token_mask=token_mask,
        mask=mask,
        trained=trained,
        rewards=rewards,
        values=placed,
        kl=kl,
        previous=previous,
        reference=reference,
        estimate=found,
    )


def train_batch(rollout: Rollout) -> TrainBatch:
    """What the policy's loss reads of a rollout."""
    return TrainBatch(
        groups=rollout.groups,
        token_mask=rollout.token_mask,
        sample_mask=rollout.trained,
        advantages=rollout.estimate.advantages,
        generation_logprobs=rollout.tensors.generation_logprobs,
        prev_logprobs=rollout.previous,
        reference_logprobs=rollout.reference,
        rewards=rollout.rewards,
    )


def mean_advantages(rollout: Rollout) -> Tensor:
    """[N,1] mean over the tokens of each response, for the samples that are kept."""
    return (rollout.estimate.advantages * rollout.mask).sum(1, keepdim=True) / rollout.mask.sum(1, keepdim=True).clamp(
        min=1
    )


def validate(setup: Ppo) -> dict[str, float]:
    """Mean reward and length on the validation prompts, sampled at the training temperature (as NeMo-RL)."""
    config = setup.config
    samples: list[Sample] = []
    for start in range(0, len(setup.validation), config.val_batch_size):
        part = setup.validation[start : start + config.val_batch_size]
        seed_parts = (config.seed, "validation", start)
        pending = start_rollout(setup.sampler, setup.chat, setup.rewards, part, 1, setup.sampling, seed_parts)
        samples += finish_rollout(pending, pending.results(), config, None, None)
    return validation_metrics(samples)
