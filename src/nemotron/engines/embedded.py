"""The embedded engine: builds from a compiled job what ``rl/loops/grpo.py`` works with, and runs it.

One process trains and samples; the judge answers over HTTP, from a child process or wherever the config points.
"""

from __future__ import annotations

import logging
from contextlib import ExitStack
from dataclasses import dataclass
from functools import cached_property
from itertools import chain, islice
from typing import Any

from nemotron.config.schema.extras import HeldoutConfig, JudgedGrpoConfig
from nemotron.config.schema.judge import GenrmCompareConfig
from nemotron.data.inputs import heldout_paths, training_prompts
from nemotron.data.rows import PromptRow, read_prompts
from nemotron.data.stream import PromptStream
from nemotron.engines.embedded_process import judge_model
from nemotron.engines.parts import TrainingParts
from nemotron.engines.recorder import RunRecorder, recording
from nemotron.errors import DataError
from nemotron.judge.groups import JudgeSettings
from nemotron.judge.local import RemoteJudge, RunningJudge
from nemotron.judge.pool import JudgePool
from nemotron.judge.source import JudgeSource
from nemotron.rewards import VERIFIERS
from nemotron.rl.evaluate import evaluate_heldout
from nemotron.rl.loops.grpo import Grpo, train
from nemotron.rl.optim import Optimization
from nemotron.rl.policy import Policy
from nemotron.rl.saving import POLICY, Progress, Trained
from nemotron.rl.threads import ThreadPlan, apply_threads
from nemotron.rl.types import SamplingParams
from nemotron.runs.folder import RunFolder
from nemotron.runs.report import write_report
from nemotron.runs.summary import print_summary

HELDOUT_BATCH = 256
"""Held-out prompts answered at a time: large enough that a step of the sampler is all arithmetic."""


def run_job(run: RunFolder, config: JudgedGrpoConfig, judge: RunningJudge, threads: ThreadPlan) -> None:
    """Run the job of ``run`` from where it stands to its end: loop, held-out metric, report, summary.

    ``judge`` may still be loading; one that somebody else runs is asked first, so that a wrong address costs no time.

    Raises:
        NemotronError: of every kind; what was finished before stays in the run folder.
    """
    apply_threads(threads.policy)
    logging.getLogger("transformers").setLevel(logging.ERROR)
    parts = Parts(run, config)
    done = parts.progress_on_disk
    with ExitStack() as stack:
        recorder = stack.enter_context(recording(run, total=config.grpo.max_num_steps, done=done))
        pool = parts.open_judge(stack, judge, recorder) if isinstance(judge, RemoteJudge) else None
        recorder.phase("loading policy")
        policy, reference = parts.load_models(reference=parts.needs_reference)
        optimization, stream = parts.optimization(policy.parameters()), parts.stream()
        heldout = HeldoutMetric(parts, config.eval.heldout) if config.eval.heldout else None
        if heldout and (not done or run.status().heldout_before is None):
            recorder.phase("held-out before")
            recorder.heldout("before", 0, heldout.measure(reference or policy))
        pool = pool or parts.open_judge(stack, judge, recorder)
        job = parts.grpo(policy, reference, optimization, stream, pool, recorder)
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


class Parts(TrainingParts[JudgedGrpoConfig]):
    """The parts of GRPO with a judge."""

    @cached_property
    def judge_settings(self) -> JudgeSettings:
        """Everything about judging but the endpoint."""
        gym = self.config.env.nemo_gym
        server = gym.genrm_compare_resources_server if gym else None
        compare = server.resources_servers.genrm_compare if server else GenrmCompareConfig()
        return JudgeSettings(compare, self.config.judge, judge_model(self.config).supports_principle_role)

    def open_judge(self, stack: ExitStack, judge: RunningJudge, recorder: RunRecorder) -> JudgePool:
        """Wait until the judge answers. Raises JudgeError when it does not in time, or serves other models."""
        recorder.phase("waiting for the judge")
        pool = JudgePool(judge.endpoint, self.judge_settings, explain=judge.explain)
        return stack.enter_context(pool)

    @property
    def needs_reference(self) -> bool:
        """Whether loss or limits ask for the KL to the policy before training."""
        config = self.config
        wanted = config.loss_fn.reference_policy_kl_penalty > 0 or config.limits.max_kl is not None
        return wanted and not config.grpo.skip_reference_policy_logprobs_calculation

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
        judge: JudgePool,
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
            rewards=JudgeSource(judge),
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


@dataclass(frozen=True)
class HeldoutMetric:
    """The program-checked metric of `eval.heldout`."""

    parts: Parts
    config: HeldoutConfig

    @cached_property
    def rows(self) -> list[PromptRow]:
        """The first ``max_samples`` rows of the held-out file."""
        paths = heldout_paths(self.parts.config.data, self.config, verify=True)
        return list(islice(chain.from_iterable(map(read_prompts, paths)), self.config.max_samples))

    def measure(self, policy: Policy) -> Any:
        """Answer the held-out prompts and check the answers."""
        parts = self.parts
        params = parts.sampling
        if self.config.max_new_tokens is not None:
            params = SamplingParams(
                self.config.max_new_tokens, params.stop_token_ids, params.temperature, params.top_p, params.top_k
            )
        return evaluate_heldout(
            policy,
            parts.chat,
            self.rows,
            VERIFIERS[self.config.verifier],
            params,
            seed=parts.config.grpo.seed,
            batch_size=HELDOUT_BATCH,
        )
