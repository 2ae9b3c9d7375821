"""GRPO on the embedded engine: builds from a compiled job what ``rl/loops/grpo.py`` works with, and runs it.

Where rewards come from is the one difference between the two entries: a judge, or verifiers and servers.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from typing import TypeVar

from nemotron.config.schema.extras import GrpoRunConfig, JudgedGrpoConfig
from nemotron.config.schema.verified import VerifiedGrpoConfig
from nemotron.contracts.rewards import RewardSource
from nemotron.contracts.sampler import Sampler
from nemotron.data.stream import PromptStream
from nemotron.engines.base import Attempt
from nemotron.engines.embedded.prompts import PromptParts, heldout_metric, prompt_stream, validation_prompts
from nemotron.engines.embedded.sampling import open_sampler
from nemotron.engines.embedded.session import session
from nemotron.engines.recorder import RunRecorder
from nemotron.errors import ConfigError
from nemotron.judge.groups import JudgeSettings
from nemotron.judge.local import RemoteJudge, RunningJudge
from nemotron.judge.pool import JudgePool
from nemotron.judge.probe import probe_judge
from nemotron.judge.probe_pairs import probe_pairs
from nemotron.judge.source import JudgeSource
from nemotron.rewards import build_rewards
from nemotron.rewards.source import VerifierSource
from nemotron.rl.loops.grpo import Grpo, train
from nemotron.rl.optim import Optimization
from nemotron.rl.policy import Policy
from nemotron.rl.sampler_check import SamplerCheck
from nemotron.rl.saving import POLICY, Progress
from nemotron.rl.threads import ThreadPlan

G = TypeVar("G", bound=GrpoRunConfig, covariant=True)
OpenRewards = Callable[[ExitStack, RunRecorder, bool], RewardSource]
"""Waits until rewards can be had, and leaves on the stack what has to be closed; is told whether the run begins.
Raises RewardError."""


def run_judged(attempt: Attempt, config: JudgedGrpoConfig, judge: RunningJudge, threads: ThreadPlan) -> None:
    """GRPO with a judge.

    ``judge`` may still be loading; one that somebody else runs is asked first, so that a wrong address costs no time.

    Raises:
        NemotronError: of every kind; what was finished before stays in the run folder.
    """

    def open_judge(stack: ExitStack, recorder: RunRecorder, first: bool) -> RewardSource:
        recorder.phase("waiting for the judge")
        settings = JudgeSettings.of(config.env, config.judge)
        endpoint = judge.wait(recorder.phase, recorder.note)
        pool = stack.enter_context(JudgePool(endpoint, settings, keeper=judge))
        if first and probe.enabled:
            recorder.phase("probing the judge")
            found = probe_judge(pool, settings, probe_pairs(probe))
            recorder.phase(f"judge probed: {found.told}")
            recorder.write(0, found.metrics)
            found.hold_to(probe)
        return JudgeSource(pool)

    probe, remote = config.judge.probe, isinstance(judge, RemoteJudge)
    _run(attempt, config, threads, open_judge, rewards_first=remote, asked_first=probe.enabled)


def run_verified(attempt: Attempt, config: VerifiedGrpoConfig, threads: ThreadPlan) -> None:
    """GRPO with verifiable rewards: functions in worker processes, or servers over HTTP.

    Raises:
        NemotronError: of every kind; what was finished before stays in the run folder.
    """

    def open_rewards(stack: ExitStack, recorder: RunRecorder, first: bool) -> RewardSource:
        if config.gym is not None:
            # With the server that answers for the policy, which no other run needs.
            from nemotron.gym.source import GymSource

            recorder.phase("waiting for resources servers")
            return stack.enter_context(GymSource(config.gym, run=f"{attempt.run.id}/{attempt.folder.number}"))
        if config.rewards is None:
            raise ConfigError("nothing gives rewards", hint="set `rewards` or `gym`")
        return VerifierSource(stack.enter_context(build_rewards(config.rewards)), config.rewards)

    _run(attempt, config, threads, open_rewards, rewards_first=True)


def _run(
    attempt: Attempt,
    config: GrpoRunConfig,
    threads: ThreadPlan,
    open_rewards: OpenRewards,
    *,
    rewards_first: bool,
    asked_first: bool = False,
) -> None:
    """Run the job of ``attempt`` from where it stands to its end: loop, held-out metric, report, summary.

    Args:
        rewards_first: open the rewards before models are loaded, so that a wrong address costs no time. Otherwise after
            the first held-out metric: a server that we start ourselves loads its model meanwhile.
        asked_first: of a run that begins, open them before that metric: what is found out may end the run.

    Raises:
        NemotronError: of every kind; what was finished before stays in the run folder.
    """
    parts: GrpoParts[GrpoRunConfig] = GrpoParts(attempt, config)
    parts.prove_optimizer()
    with (
        session(
            attempt,
            threads,
            seed=config.course.seed,
            total=config.steps(len(parts.prompts)),
            done=parts.progress_on_disk,
        ) as work,
        ExitStack() as stack,
    ):
        recorder = work.recorder
        rewards = open_rewards(stack, recorder, work.first) if rewards_first else None
        recorder.phase("loading policy")
        policy, reference = parts.load_models(reference=config.needs_reference)
        optimization, stream = parts.optimization(policy.parameters()), parts.stream()
        sampler = open_sampler(parts, policy, threads, stack, recorder)
        heldout = heldout_metric(parts, config.eval.heldout, config.grpo.seed, config.limits.max_missing_share)
        if rewards is None and asked_first and work.first:
            rewards = open_rewards(stack, recorder, True)
        work.before((lambda: heldout.measure(reference or policy)) if heldout else None)
        rewards = rewards or open_rewards(stack, recorder, work.first)
        sampler.wait(recorder.phase)
        setup = parts.grpo(policy, sampler, reference, optimization, stream, rewards, recorder)
        progress = setup.saver.load(parts.checkpoint) if parts.checkpoint else Progress()
        recorder.phase("training")
        progress = train(setup, progress)
        work.after(progress.step, (lambda: heldout.measure(policy)) if heldout else None)


class GrpoParts(PromptParts[G]):
    """The parts of GRPO, wherever its rewards come from."""

    def stream(self) -> PromptStream:
        """The training prompts in their order. Raises DataError when rows are missing, broken, too few or too long."""
        return prompt_stream(self, self.prompts, batch_key="grpo.num_prompts_per_step")

    def grpo(
        self,
        policy: Policy,
        sampler: Sampler,
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
            logprob_batch_size=config.policy.logprob_rows,
            save_period=self.save_period,
            policy=policy,
            sampler=sampler,
            reference=reference,
            optimization=optimization,
            chat=self.chat,
            rewards=rewards,
            stream=stream,
            validation=validation_prompts(config, config.grpo.max_val_samples),
            saver=self.saver({POLICY: self.trained(policy, optimization)}, stream),
            recorder=recorder,
            deadline=self.deadline,
            check=None
            if sampler.exact_logprobs
            else SamplerCheck(config.sampler.check_period, config.sampler.gap(config.policy.precision)),
            watch=self.watch,
        )
