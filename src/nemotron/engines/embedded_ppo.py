"""PPO on the embedded engine: builds from a compiled job what ``rl/loops/ppo.py`` works with, and runs it.

This process is the actor: it samples and trains the policy. The critic answers over HTTP, from a child process or
wherever `critic.address` points.
"""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path

from nemotron.config.schema.dtensor import LoraConfig
from nemotron.config.schema.ppo import PpoMasterConfig
from nemotron.data.inputs import training_prompts
from nemotron.data.rows import PromptRow
from nemotron.data.stream import PromptStream
from nemotron.engines.embedded_dpo import quiet_transformers
from nemotron.engines.heldout import HeldoutMetric
from nemotron.engines.parts import TrainingParts
from nemotron.engines.recorder import RunRecorder, recording
from nemotron.errors import DataError, EngineError
from nemotron.rl.batch import request_seed
from nemotron.rl.critic.client import CriticClient
from nemotron.rl.critic.local import RemoteCritic, RunningCritic
from nemotron.rl.critic.models import PART
from nemotron.rl.loops.ppo import Ppo, train
from nemotron.rl.lora import ADAPTER, Merged, add_adapters, read_adapter, write_adapter
from nemotron.rl.policy import Policy
from nemotron.rl.saving import POLICY, Progress, Trained
from nemotron.rl.threads import ThreadPlan, apply_threads
from nemotron.runs.folder import RunFolder
from nemotron.runs.report import write_report
from nemotron.runs.summary import print_summary


def run_job(run: RunFolder, config: PpoMasterConfig, critic: RunningCritic, threads: ThreadPlan) -> None:
    """Run the job of ``run`` from where it stands to its end: loop, held-out metric, report, summary.

    ``critic`` may still be loading; one that was started elsewhere is asked first, so that a wrong address costs no
    time.

    Raises:
        NemotronError: of every kind; what was finished before stays in the run folder.
    """
    apply_threads(threads.policy)
    quiet_transformers()
    parts = PpoParts(run, config)
    before, done = run.status().heldout_before, parts.progress_on_disk
    with ExitStack() as stack:
        recorder = stack.enter_context(recording(run, total=config.ppo.max_num_steps, done=done))
        with ExitStack() as attached:
            elsewhere = isinstance(critic, RemoteCritic)
            client = _attach(attached, critic, config, recorder) if elsewhere else None
            recorder.phase("loading policy")
            policy, reference = parts.load_models(reference=parts.needs_reference)
            heldout = parts.heldout
            if heldout and (not done or before is None):
                recorder.phase("held-out before")
                recorder.heldout("before", 0, heldout.measure(reference or policy))
            client = client or _attach(attached, critic, config, recorder)
            client.begin(done, config.agreement())
            job = parts.ppo(policy, reference, client, recorder)
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


def _attach(stack: ExitStack, critic: RunningCritic, config: PpoMasterConfig, recorder: RunRecorder) -> CriticClient:
    """Wait until the critic answers; from then on its end is the end of this process."""
    recorder.phase("waiting for the critic")
    client = stack.enter_context(CriticClient(critic, config.critic))
    stack.enter_context(client.interrupting())
    return client


class PpoParts(TrainingParts[PpoMasterConfig]):
    """The parts of the actor."""

    @property
    def needs_reference(self) -> bool:
        """Whether loss, rewards or limits ask for the KL to the policy before training."""
        config = self.config
        wanted = config.loss_fn.reference_policy_kl_penalty > 0 or config.limits.max_kl is not None
        return wanted and not config.ppo.skip_reference_policy_logprobs_calculation

    @property
    def lora(self) -> LoraConfig | None:
        """The adapters that are trained; ``None``: all weights are."""
        dtensor = self.config.policy.dtensor
        found = dtensor.lora_cfg if dtensor else None
        return found if isinstance(found, LoraConfig) and found.enabled else None

    def load_models(self, *, reference: bool) -> tuple[Policy, Policy | None]:
        """As ``TrainingParts``; with LoRA the policy before training with its adapters."""
        lora = self.lora
        if lora is None:
            return super().load_models(reference=reference)
        start = self.load_start()
        frozen = start.frozen_copy() if reference else None
        policy = add_adapters(start, lora, seed=request_seed(self.config.ppo.seed, "lora"))
        if self.checkpoint is not None:
            read_adapter(policy, self.checkpoint / ADAPTER)
        return policy, frozen

    def ppo(self, policy: Policy, reference: Policy | None, critic: CriticClient, recorder: RunRecorder) -> Ppo:
        """Everything the loop needs. Raises ConfigError, DataError."""
        config = self.config
        optimization, stream = self.optimization(policy.parameters()), self.stream()
        weights = Merged(policy) if self.lora else policy.model

        def more(folder: Path) -> None:
            if self.lora:
                write_adapter(policy, folder / ADAPTER)
            self._save_critic(critic, folder)

        return Ppo(
            config=config.ppo,
            actor=config.actor,
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
            critic=critic,
            stream=stream,
            validation=self._validation_rows(),
            saver=self.saver({POLICY: Trained(weights, optimization)}, stream, more),
            recorder=recorder,
            deadline=self.deadline,
        )

    def _save_critic(self, critic: CriticClient, folder: Path) -> None:
        """The critic's part, before the checkpoint appears under its name."""
        critic.save(int(folder.name.removeprefix("tmp_step_")))
        if self.config.ppo.adv_estimator.name == "gae" and not (folder / PART).is_dir():
            raise EngineError(
                f"the critic has saved its part where this process does not see it (`{folder / PART}`)",
                hint="set `checkpointing.checkpoint_dir` to one folder on a file system that both machines share",
            )

    def stream(self) -> PromptStream:
        """The training prompts in their order. Raises DataError when rows are missing, broken, too few or too long."""
        config = self.config
        stream = PromptStream(
            training_prompts(config.data, "train"),
            batch_size=config.ppo.num_prompts_per_step,
            seed=config.ppo.seed,
            shuffle=config.data.shuffle,
            batch_key="ppo.num_prompts_per_step",
        )
        self._check_lengths(stream)
        return stream

    @property
    def heldout(self) -> HeldoutMetric | None:
        """The program-checked metric, where one is asked for."""
        config = self.config
        wanted = config.eval.heldout
        if wanted is None:
            return None
        limit = config.limits.max_missing_share
        return HeldoutMetric(wanted, config.data, self.chat, self.sampling, config.ppo.seed, limit)

    def _validation_rows(self) -> list[PromptRow]:
        ppo = self.config.ppo
        if not (ppo.val_period or ppo.val_at_start or ppo.val_at_end):
            return []
        return training_prompts(self.config.data, "validation")[: ppo.max_val_samples]

    def _check_lengths(self, stream: PromptStream) -> None:
        """Refuse a prompt that leaves no room for an answer now, not in the step that meets it."""
        limit = self.config.policy.max_total_sequence_length - self.sampling.max_new_tokens
        needed = self.config.ppo.max_num_steps * stream.batch_size
        for row in stream.upcoming(needed):
            length = len(self.chat.encode(row.messages))
            if length > limit:
                raise DataError(
                    f"prompt {row.id} has {length} tokens; with {self.sampling.max_new_tokens} new ones it exceeds "
                    f"`policy.max_total_sequence_length` ({self.config.policy.max_total_sequence_length})",
                    hint="drop or shorten it, or raise the limit",
                )
