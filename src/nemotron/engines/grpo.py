"""GRPO on the embedded engine: builds from a compiled job what ``rl/loops/grpo.py`` works with, and runs it.

Where rewards come from is the caller's business: ``embedded.py`` opens a judge, ``verified.py`` verifiers or servers.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from contextlib import ExitStack
from functools import cached_property
from typing import TypeVar

from nemotron.config.schema.extras import GrpoRunConfig
from nemotron.data.inputs import training_prompts
from nemotron.data.rows import PromptRow
from nemotron.data.stream import PromptStream
from nemotron.engines.heldout import HeldoutMetric
from nemotron.engines.parts import TrainingParts
from nemotron.engines.recorder import RunRecorder, recording
from nemotron.errors import DataError
from nemotron.rl.loops.grpo import Grpo, train
from nemotron.rl.optim import Optimization
from nemotron.rl.policy import Policy
from nemotron.rl.reward_source import RewardSource
from nemotron.rl.saving import POLICY, Progress, Trained
from nemotron.rl.threads import ThreadPlan, apply_threads
from nemotron.runs.folder import RunFolder
from nemotron.runs.report import write_report
from nemotron.runs.summary import print_summary

G = TypeVar("G", bound=GrpoRunConfig, covariant=True)
OpenRewards = Callable[[ExitStack, RunRecorder], RewardSource]
"""Waits until rewards can be had, and leaves on the stack what has to be closed. Raises RewardError."""


def run_grpo(
    run: RunFolder, config: GrpoRunConfig, threads: ThreadPlan, open_rewards: OpenRewards, *, rewards_first: bool
) -> None:
    """Run the job of ``run`` from where it stands to its end: loop, held-out metric, report, summary.

    Args:
        rewards_first: open the rewards before models are loaded, so that a wrong address costs no time. Otherwise after
            the first held-out metric: a server that we start ourselves loads its model meanwhile.

    Raises:
        NemotronError: of every kind; what was finished before stays in the run folder.
    """
    apply_threads(threads.policy)
    logging.getLogger("transformers").setLevel(logging.ERROR)
    parts: GrpoParts[GrpoRunConfig] = GrpoParts(run, config)
    done = parts.progress_on_disk
    with ExitStack() as stack:
        recorder = stack.enter_context(recording(run, total=config.grpo.max_num_steps, done=done))
        rewards = open_rewards(stack, recorder) if rewards_first else None
        recorder.phase("loading policy")
        policy, reference = parts.load_models(reference=parts.needs_reference)
        optimization, stream = parts.optimization(policy.parameters()), parts.stream()
        heldout = parts.heldout
        if heldout and (not done or run.status().heldout_before is None):
            recorder.phase("held-out before")
            recorder.heldout("before", 0, heldout.measure(reference or policy))
        rewards = rewards or open_rewards(stack, recorder)
        job = parts.grpo(policy, reference, optimization, stream, rewards, recorder)
        progress = job.saver.load(parts.checkpoint) if parts.checkpoint else Progress()
        recorder.phase("training")
        progress = train(job, progress)
        if heldout:
            recorder.phase("held-out after")
            recorder.heldout("after", progress.step, heldout.measure(policy))
        recorder.phase("report")
        run.write_status(state="finished", phase=None, steps_done=progress.step, wall_s=recorder.wall_s)
        write_report(run)
    print_summary(run)


class GrpoParts(TrainingParts[G]):
    """The parts of GRPO, wherever its rewards come from."""

    @property
    def needs_reference(self) -> bool:
        """Whether loss or limits ask for the KL to the policy before training."""
        config = self.config
        wanted = config.loss_fn.reference_policy_kl_penalty > 0 or config.limits.max_kl is not None
        return wanted and not config.grpo.skip_reference_policy_logprobs_calculation

    @cached_property
    def heldout(self) -> HeldoutMetric | None:
        """The metric of `eval.heldout`; ``None`` without one."""
        config = self.config
        wanted = config.eval.heldout
        if wanted is None:
            return None
        limit = config.limits.max_missing_share
        return HeldoutMetric(wanted, config.data, self.chat, self.sampling, config.grpo.seed, limit)

    def stream(self) -> PromptStream:
        """The training prompts in their order. Raises DataError when rows are missing, broken, too few or too long."""
        config = self.config
        grpo = config.grpo
        stream = PromptStream(
            training_prompts(config.data, "train"),
            batch_size=int(grpo.num_prompts_per_step * grpo.batch_multiplier),
            seed=grpo.seed,
            shuffle=config.data.shuffle,
        )
        self._check_lengths(stream)
        return stream

    def grpo(
        self,
        policy: Policy,
        reference: Policy | None,
        optimization: Optimization,
        stream: PromptStream,
        rewards: RewardSource,
        recorder: RunRecorder,
    ) -> Grpo:
        """Everything the loop needs."""
        config = self.config
        return Grpo(
            config=config.grpo,
            loss=config.loss_fn,
            limits=config.limits,
            sampling=self.sampling,
            global_batch_size=config.policy.train_global_batch_size,
            micro_batch_size=config.policy.train_micro_batch_size,
            logprob_batch_size=config.policy.logprob_batch_size or config.policy.train_micro_batch_size,
            save_period=self.save_period,
            policy=policy,
            reference=reference,
            optimization=optimization,
            chat=self.chat,
            rewards=rewards,
            stream=stream,
            validation=self._validation_rows(),
            saver=self.saver({POLICY: Trained(policy.model, optimization)}, stream),
            recorder=recorder,
            deadline=self.deadline,
        )

    def _validation_rows(self) -> list[PromptRow]:
        grpo = self.config.grpo
        if not (grpo.val_period or grpo.val_at_start or grpo.val_at_end):
            return []
        rows = training_prompts(self.config.data, "validation")
        return rows if grpo.max_val_samples is None else rows[: grpo.max_val_samples]

    def _check_lengths(self, stream: PromptStream) -> None:
        """Refuse a prompt that leaves no room for an answer now, not in the step that meets it."""
        limit = self.config.policy.max_total_sequence_length - self.sampling.max_new_tokens
        needed = self.config.grpo.max_num_steps * stream.batch_size
        for row in stream.upcoming(needed):
            length = len(self.chat.encode(row.messages))
            if length > limit:
                raise DataError(
                    f"prompt {row.id} has {length} tokens; with {self.sampling.max_new_tokens} new ones it exceeds "
                    f"`policy.max_total_sequence_length` ({self.config.policy.max_total_sequence_length})",
                    hint="drop or shorten it, or raise the limit",
                )
