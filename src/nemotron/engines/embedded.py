"""The embedded engine: builds from a compiled job what ``rl/loops/grpo.py`` works with, and runs it.

One process trains and samples; the judge answers over HTTP, from a child process or wherever the config points.
"""

from __future__ import annotations

import logging
from contextlib import ExitStack
from dataclasses import dataclass
from functools import cached_property
from itertools import chain
from pathlib import Path
from typing import Any

from nemotron.checkpoints.store import CheckpointStore
from nemotron.config.dump import dump_yaml
from nemotron.config.schema.data import DatasetConfig
from nemotron.config.schema.extras import HeldoutConfig, JudgedGrpoConfig
from nemotron.config.schema.generation import GenerationConfig
from nemotron.config.schema.judge import GenrmCompareConfig
from nemotron.data.rows import PromptRow, read_prompts
from nemotron.data.stream import PromptStream
from nemotron.engines.embedded_process import judge_model
from nemotron.engines.recorder import RunRecorder
from nemotron.errors import ConfigError, DataError
from nemotron.judge.groups import JudgeSettings
from nemotron.judge.local import RemoteJudge, RunningJudge
from nemotron.judge.pool import JudgePool
from nemotron.judge.source import JudgeSource
from nemotron.rewards import VERIFIERS
from nemotron.rl.chat import Chat
from nemotron.rl.evaluate import evaluate_heldout
from nemotron.rl.loops.grpo import Grpo, train
from nemotron.rl.optim import Optimization
from nemotron.rl.policy import Policy
from nemotron.rl.saving import Progress, load_checkpoint, weights_of
from nemotron.rl.threads import ThreadPlan, apply_threads
from nemotron.rl.types import SamplingParams
from nemotron.runs.folder import RunFolder
from nemotron.runs.live import LiveView
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
    status = run.status()
    done = parts.progress_on_disk
    # Without a checkpoint the run starts over, rows of step 0 included.
    run.truncate_metrics(done or -1)
    run.truncate_samples(done or -1)
    total = config.grpo.max_num_steps
    with ExitStack() as stack:
        view = stack.enter_context(LiveView(total, start_step=done))
        recorder = RunRecorder(run, view, status.wall_s or 0.0)
        run.write_status(state="running", steps_total=total, steps_done=done, error=None, exit_code=None)
        pool = parts.open_judge(stack, judge, recorder) if isinstance(judge, RemoteJudge) else None
        recorder.phase("loading policy")
        policy, reference = parts.load_models()
        optimization, stream = parts.optimization(policy), parts.stream()
        heldout = HeldoutMetric(parts, config.eval.heldout) if config.eval.heldout else None
        if heldout and (not done or status.heldout_before is None):
            recorder.phase("held-out before")
            recorder.heldout("before", 0, heldout.measure(reference or policy))
        pool = pool or parts.open_judge(stack, judge, recorder)
        job = parts.grpo(policy, reference, optimization, stream, pool, recorder)
        progress = load_checkpoint(job, parts.checkpoint) if parts.checkpoint else Progress()
        recorder.phase("training")
        progress = train(job, progress)
        if heldout:
            recorder.phase("held-out after")
            recorder.heldout("after", progress.step, heldout.measure(policy))
        recorder.phase("report")
        run.write_status(state="finished", phase=None, steps_done=progress.step, wall_s=recorder.wall_s)
        write_report(run)
    print_summary(run)


@dataclass(frozen=True)
class Parts:
    """What the config says, made real, piece by piece."""

    run: RunFolder
    config: JudgedGrpoConfig

    @cached_property
    def store(self) -> CheckpointStore:
        """The checkpoints of this run, cleaned of what a killed attempt left half-written."""
        settings = self.config.checkpointing
        store = CheckpointStore(
            Path(settings.checkpoint_dir), settings.keep_top_k, settings.metric_name, settings.higher_is_better
        )
        store.recover()
        return store

    @cached_property
    def checkpoint(self) -> Path | None:
        """The checkpoint to go on from; ``None`` at the start."""
        return self.store.latest()

    @property
    def progress_on_disk(self) -> int:
        """Steps that the newest checkpoint has done."""
        return self.store.steps()[-1] if self.checkpoint else 0

    @cached_property
    def chat(self) -> Chat:
        """Tokenizer and chat template of the policy."""
        settings = self.config.policy.tokenizer
        template = settings.chat_template if "chat_template" in settings.model_fields_set else "default"
        return Chat.load(settings.name, template, settings.chat_template_kwargs)

    @cached_property
    def sampling(self) -> SamplingParams:
        """How responses are sampled in training."""
        generation = self._generation
        return SamplingParams(
            max_new_tokens=generation.max_new_tokens,
            stop_token_ids=self.chat.stop_token_ids(generation.stop_token_ids),
            temperature=generation.temperature,
            top_p=generation.top_p,
            top_k=generation.top_k,
        )

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

    def load_models(self) -> tuple[Policy, Policy | None]:
        """The policy, from the newest checkpoint if there is one, and the reference it must stay near.

        Raises:
            ArtifactError: a model cannot be loaded.
        """
        settings = self.config.policy
        precision = _precision(settings.precision)
        pretrained = settings.pretrained_checkpoint
        if pretrained is not None:
            start = Policy.load_checkpoint(Path(pretrained.path).expanduser(), precision=precision)
        else:
            start = Policy.load(settings.model_name, precision=precision)
        needs_reference = (
            self.config.loss_fn.reference_policy_kl_penalty > 0 or self.config.limits.max_kl is not None
        ) and not self.config.grpo.skip_reference_policy_logprobs_calculation
        reference = start.frozen_copy() if needs_reference else None
        if self.checkpoint is None:
            return start, reference
        return Policy.load_checkpoint(weights_of(self.checkpoint), precision=precision), reference

    def optimization(self, policy: Policy) -> Optimization:
        """Optimizer and schedule. Raises ConfigError when they cannot be built."""
        settings = self.config.policy
        if settings.optimizer is None:
            raise ConfigError("the embedded engine needs `policy.optimizer`", hint="for example `torch.optim.AdamW`")
        return Optimization.build(
            policy.parameters(),
            optimizer=settings.optimizer.model_dump(),
            scheduler=[entry.model_dump(exclude_none=True) for entry in settings.scheduler or []] or None,
            max_grad_norm=settings.max_grad_norm,
        )

    def stream(self) -> PromptStream:
        """The training prompts in their order. Raises DataError when rows are missing, broken, too few or too long."""
        config = self.config
        grpo = config.grpo
        stream = PromptStream(
            self._rows(config.data.training_sets()),
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
        job = self.run.job()
        return Grpo(
            config=config.grpo,
            loss=config.loss_fn,
            limits=config.limits,
            sampling=self.sampling,
            global_batch_size=config.policy.train_global_batch_size,
            micro_batch_size=config.policy.train_micro_batch_size,
            logprob_batch_size=config.policy.logprob_batch_size or config.policy.train_micro_batch_size,
            save_period=config.checkpointing.save_period if config.checkpointing.enabled else None,
            policy=policy,
            reference=reference,
            optimization=optimization,
            chat=self.chat,
            rewards=JudgeSource(judge),
            stream=stream,
            validation=self._validation_rows(),
            store=self.store,
            recorder=recorder,
            config_yaml=dump_yaml(job["config"]),
            step_id=job["step"],
            inputs=job.get("inputs", []),
            config_fingerprint=job["fingerprint"],
            save_hf=bool(config.checkpointing.save_consolidated),
        )

    @property
    def _generation(self) -> GenerationConfig:
        generation = self.config.policy.generation
        if generation is None:
            raise ConfigError("`policy.generation` is missing", hint="GRPO samples its own training data")
        return generation

    def _rows(self, sets: list[DatasetConfig]) -> list[PromptRow]:
        paths = [entry.data_path for entry in sets if entry.data_path]
        return list(chain.from_iterable(read_prompts(Path(path)) for path in paths))

    def _validation_rows(self) -> list[PromptRow]:
        grpo = self.config.grpo
        if not (grpo.val_period or grpo.val_at_start or grpo.val_at_end):
            return []
        rows = self._rows(self.config.data.validation_sets())
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
        return list(read_prompts(Path(self.config.data_path)))[: self.config.max_samples]

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


def _precision(name: str) -> Any:
    """NeMo-RL also writes ``bf16`` and ``fp32``."""
    return {"bf16": "bfloat16", "fp16": "float16", "fp32": "float32"}.get(name, name)
