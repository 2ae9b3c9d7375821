"""GRPO, one story from top to bottom.

Per step: sample G responses to each of P prompts, have each group scored, turn rewards into advantages within the
group, take one clipped policy-gradient step per global batch, with a KL term that holds the policy near the reference.

Differences from NeMo-RL v0.7.0's synchronous loop; the formulas are the same (tests/golden):

1. Log-probs of the reference are computed while the judge (or whatever gives rewards) works, so before dynamic sampling
   instead of after it.
2. When one optimizer step uses the whole rollout batch, the log-probs before the update are those of the update's own
   forward pass; NeMo-RL computes them twice. Where the responses go through that pass at once, it is the sampler's
   (``nemotron.rl.kept_pass``); NeMo-RL computes it a third time.
3. A response without reward (every comparison missing) is masked in baseline, advantage and loss. NeMo-RL has no such
   notion: there a failed judge is a score.
4. The data order and every random number follow from the seed and the step, so a resumed run repeats the bits.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from nemotron.config.schema.extras import LimitsConfig
from nemotron.config.schema.grpo import GrpoConfig, LossFnConfig
from nemotron.contracts.rewards import GroupRewards, RewardSource, missing_share
from nemotron.contracts.sampler import Pass, Sampler
from nemotron.contracts.samples import SamplingParams
from nemotron.data.rows import PromptRow
from nemotron.data.stream import PromptStream
from nemotron.rl.advantages import AdvantageInputs, clip_advantages, estimate_advantages, prompt_groups
from nemotron.rl.batch import ResponseTensors, in_columns, response_tensors
from nemotron.rl.chat import Chat
from nemotron.rl.dynamic_sampling import DynamicSampler, group_spread
from nemotron.rl.logprobs import mask_out_neg_inf, mask_sequence_errors
from nemotron.rl.loops.metrics import kl_metrics, reward_metrics, rollout_metrics, sample_rows, validation_metrics
from nemotron.rl.loops.recorder import Recorder
from nemotron.rl.optim import Optimization
from nemotron.rl.policy import Policy
from nemotron.rl.reward_transforms import filter_overlong
from nemotron.rl.rollout import Sample, finish_rollout, regroup, start_rollout, token_logprobs_of
from nemotron.rl.sampler_check import SamplerCheck
from nemotron.rl.saving import Progress, Saver
from nemotron.rl.stopping import Deadline, stop_reason
from nemotron.rl.timing import Timings
from nemotron.rl.update import TrainBatch, update
from nemotron.runs.health import Watch


@dataclass(frozen=True)
class Grpo:
    """What the loop works with; ``engines/embedded/grpo.py`` builds it from the compiled job."""

    config: GrpoConfig
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
    rewards: RewardSource
    stream: PromptStream
    validation: Sequence[PromptRow]
    saver: Saver
    recorder: Recorder
    deadline: Deadline | None = None
    """``None``: the run may take its time."""
    check: SamplerCheck | None = None
    """How a sampler is compared with the policy that is not exact."""
    watch: Watch | None = None
    """Minds the limits beside the KL's; ``None``: there are none."""

    @property
    def keeps_pass(self) -> bool:
        """Whether training may go on from what sampling computed: one update of all responses at once, with the weights
        that drew them. Follows from the settings alone, so that a resumed run repeats the bits."""
        rows = self.config.num_prompts_per_step * self.config.num_generations_per_prompt
        at_once = rows <= min(self.global_batch_size, self.micro_batch_size)
        others = self.needs_previous or self.config.use_dynamic_sampling
        return at_once and self.sampler.exact_logprobs and not others

    @property
    def needs_previous(self) -> bool:
        """Whether log-probs before the update need a pass of their own."""
        rows = self.config.num_prompts_per_step * self.config.num_generations_per_prompt
        several_updates = rows > self.global_batch_size
        return several_updates or self.config.seq_logprob_error_threshold is not None or self.loss.use_kl_in_reward


@dataclass(slots=True)
class Collected:
    """What a step trains on."""

    samples: list[Sample]
    results: list[GroupRewards]
    """of every group that was drawn"""
    gen_batches: int
    drawn: Pass | None = None
    """the pass that drew the samples, if it was kept"""

    def take_pass(self) -> Pass | None:
        """Hand it over: its activations go with whoever used it."""
        drawn, self.drawn = self.drawn, None
        return drawn


def train(setup: Grpo, progress: Progress) -> Progress:
    """Run the loop from ``progress`` until ``max_num_steps`` or ``max_num_epochs``; returns where it ended.

    Raises:
        EngineError: the loss or gradient is not finite.
        LimitError: a limit of `limits` is crossed, or time is up; metrics and a checkpoint are written before. The
            sampler is not the policy any more: this step is not trained on.
        NemotronError: the source of rewards is unreachable (JudgeError for a judge), or too many rewards are missing.
        OutputError: a metric or checkpoint cannot be written.
    """
    config = setup.config
    if config.val_at_start and progress.step == 0 and setup.validation:
        setup.recorder.write(0, validate(setup, 0))

    first = progress.step + 1
    while progress.step < config.max_num_steps and setup.stream.next_epoch < config.max_num_epochs:
        step = progress.step + 1
        timings = Timings()

        checked = setup.check is not None and setup.check.due(step, first)
        found = collect(setup, step, timings, checked=checked)
        samples, results = found.samples, found.results
        if missing_share(results) > setup.limits.max_missing_share:
            setup.recorder.samples(step, sample_rows(samples))
            raise setup.rewards.too_many_missing(results, step, setup.limits.max_missing_share)

        gaps = setup.check.measure(samples, step) if setup.check else {}

        with timings.phase("advantage_calculation"):
            batch, tensors, mask_metrics = make_batch(setup, samples)

        with timings.phase("policy_training"):
            trained = update(
                setup.policy,
                setup.optimization,
                batch,
                setup.loss,
                setup.sampling,
                global_batch_size=setup.global_batch_size,
                micro_batch_size=setup.micro_batch_size,
                drawn=found.take_pass(),
            )
        setup.sampler.refresh()

        last = step == config.max_num_steps or setup.stream.next_epoch >= config.max_num_epochs
        validation = {}
        if setup.validation and ((config.val_period and step % config.val_period == 0) or (last and config.val_at_end)):
            with timings.phase("validation"):
                validation = validate(setup, step)

        progress = progress.after_step(setup.stream.next_epoch, len(samples), trained["global_valid_toks"])
        metrics = {
            **{f"train/{name}": value for name, value in {**trained, **mask_metrics}.items()},
            **reward_metrics(samples, batch, tensors, config.reward_scaling),
            **rollout_metrics(samples, found.gen_batches),
            **kl_metrics(trained, batch, samples, setup.loss.reference_policy_kl_penalty),
            **setup.rewards.metrics(results),
            **gaps,
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
        setup.recorder.samples(step, sample_rows(samples, batch.advantages))
        setup.recorder.step(step, {**metrics, **timings.metrics()})
        if setup.save_period and (step % setup.save_period == 0 or last or stop):
            setup.recorder.checkpoint(setup.saver.save(progress, metrics))
        if stop:
            raise stop
    return progress


def collect(setup: Grpo, step: int, timings: Timings, *, checked: bool = False) -> Collected:
    """One training batch of scored samples; with dynamic sampling as many generation batches as it takes.

    ``checked``: with the policy's own log-probs, whoever else needs them.
    """
    config = setup.config
    rows = config.num_prompts_per_step * config.num_generations_per_prompt
    sampler: DynamicSampler[Sample] = DynamicSampler(rows, config.dynamic_sampling_max_gen_batches)
    results: list[GroupRewards] = []
    for gen_batch in range(config.dynamic_sampling_max_gen_batches + 2):
        seed_parts = (config.seed, "train", step, gen_batch)
        with timings.phase("generation"):
            pending = start_rollout(
                setup.sampler,
                setup.chat,
                setup.rewards,
                setup.stream.next_batch(),
                config.num_generations_per_prompt,
                setup.sampling,
                seed_parts,
                keep=setup.keeps_pass,
            )
        with timings.phase("policy_and_reference_logprobs"):
            # The reference is unfiltered: the KL compares whole distributions (NeMo-RL 2.10).
            unfiltered = SamplingParams(1, (), temperature=setup.sampling.temperature)
            reference = (
                token_logprobs_of(setup.reference, pending.groups, unfiltered, setup.logprob_batch_size)
                if setup.reference
                else None
            )
            previous = (
                token_logprobs_of(setup.policy, pending.groups, setup.sampling, setup.logprob_batch_size)
                if setup.needs_previous or checked
                else None
            )
        with timings.phase("reward_calculation"):
            scored = pending.results()
        results += scored
        samples = finish_rollout(pending, scored, config, reference, previous)
        if not config.use_dynamic_sampling:
            return Collected(samples, results, 1, pending.drawn)
        unshaped = torch.tensor([sample.unshaped for sample in samples])
        if config.dynamic_sampling_unit == "group":
            valid = torch.tensor([sample.judged is not None for sample in samples])
            spread = group_spread(unshaped, valid, config.num_generations_per_prompt)
        else:
            spread = torch.tensor([sample.std for sample in samples])
        selection = sampler.add(samples, spread, unshaped)
        if selection.complete:
            return Collected(list(selection.rows), results, selection.num_gen_batches)
    raise AssertionError("DynamicSampler.add raises before the loop ends")


def make_batch(setup: Grpo, samples: Sequence[Sample]) -> tuple[TrainBatch, ResponseTensors, dict[str, float]]:
    """Masks and advantages of the samples; metrics of what was masked."""
    config = setup.config
    groups = regroup(samples)
    tensors = response_tensors(groups)
    width = tensors.token_mask.shape[1]
    token_mask = tensors.token_mask
    sample_mask = torch.tensor([float(sample.judged is not None) for sample in samples])
    if config.overlong_filtering:
        sample_mask = filter_overlong(sample_mask, tensors.truncated)

    reference = (
        in_columns([s.reference for s in samples if s.reference is not None], width) if setup.reference else None
    )
    previous = None
    if setup.needs_previous:
        previous = in_columns([s.previous for s in samples if s.previous is not None], width)
        previous, token_mask = mask_out_neg_inf(previous, token_mask)
    rewards = torch.tensor([sample.reward for sample in samples])
    metrics: dict[str, float] = {}
    if previous is not None and config.seq_logprob_error_threshold is not None:
        sample_mask, errors = mask_sequence_errors(
            previous,
            tensors.generation_logprobs,
            token_mask,
            sample_mask,
            rewards,
            threshold=config.seq_logprob_error_threshold,
        )
        metrics = {"num_masked_seqs_by_logprob_error": float(errors.num_masked_seqs)}

    inputs = AdvantageInputs(
        groups=prompt_groups([sample.prompt_ids for sample in samples]),
        rewards=rewards,
        mask=token_mask * sample_mask[:, None],
        valid=torch.tensor([float(sample.judged is not None) for sample in samples]),
        prev_logprobs=previous,
        reference_policy_logprobs=reference,
    )
    advantages = estimate_advantages(inputs, config.estimator, setup.loss)
    advantages = clip_advantages(advantages, config.advantage_clip_low, config.advantage_clip_high)
    batch = TrainBatch(
        groups=groups,
        token_mask=token_mask,
        sample_mask=sample_mask,
        advantages=advantages,
        generation_logprobs=tensors.generation_logprobs,
        prev_logprobs=previous,
        reference_logprobs=reference,
        rewards=rewards,
    )
    return batch, tensors, metrics


def validate(setup: Grpo, step: int) -> dict[str, float]:
    """Mean reward and length on the validation prompts, sampled at the training temperature (as NeMo-RL)."""
    config = setup.config
    generations = config.num_val_generations_per_prompt or config.num_generations_per_prompt
    size = config.num_prompts_per_step
    samples: list[Sample] = []
    for start in range(0, len(setup.validation), size):
        part = setup.validation[start : start + size]
        seed_parts = (config.seed, "validation", start)
        pending = start_rollout(setup.sampler, setup.chat, setup.rewards, part, generations, setup.sampling, seed_parts)
        samples += finish_rollout(pending, pending.results(), config, None, None)
    return validation_metrics(samples)
