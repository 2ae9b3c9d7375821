"""PPO on the embedded engine: builds from a compiled job what ``rl/loops/ppo.py`` works with, and runs it.

This process is the actor: it samples and trains the policy. The critic answers over HTTP, from a child process or
wherever `critic.address` points.
"""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path

from nemotron.config.schema.ppo import PpoMasterConfig
from nemotron.engines.base import Attempt
from nemotron.engines.embedded.prompts import PromptParts, heldout_metric, prompt_stream, validation_prompts
from nemotron.engines.embedded.session import session
from nemotron.engines.recorder import RunRecorder
from nemotron.errors import EngineError
from nemotron.rl.critic.client import CriticClient
from nemotron.rl.critic.local import RemoteCritic, RunningCritic
from nemotron.rl.critic.models import PART
from nemotron.rl.loops.ppo import Ppo, train
from nemotron.rl.optim import prove
from nemotron.rl.policy import Policy
from nemotron.rl.sampler import PolicySampler
from nemotron.rl.saving import POLICY, Progress
from nemotron.rl.threads import ThreadPlan


def run_ppo(attempt: Attempt, config: PpoMasterConfig, critic: RunningCritic, threads: ThreadPlan) -> None:
    """Run the job of ``attempt`` from where it stands to its end: loop, held-out metric, report, summary.

    ``critic`` may still be loading; one that was started elsewhere is asked first, so that a wrong address costs no
    time.

    Raises:
        NemotronError: of every kind; what was finished before stays in the run folder.
    """
    parts = PpoParts(attempt, config)
    parts.prove_optimizer()
    done = parts.progress_on_disk
    with session(attempt, threads, seed=config.course.seed, total=config.steps(len(parts.prompts)), done=done) as work:
        recorder = work.recorder
        with ExitStack() as attached:
            elsewhere = isinstance(critic, RemoteCritic)
            client = _attach(attached, critic, config, recorder) if elsewhere else None
            recorder.phase("loading policy")
            policy, reference = parts.load_models(reference=config.needs_reference)
            heldout = heldout_metric(parts, config.eval.heldout, config.ppo.seed, config.limits.max_missing_share)
            work.before((lambda: heldout.measure(reference or policy)) if heldout else None)
            client = client or _attach(attached, critic, config, recorder)
            client.begin(done, config.agreement())
            setup = parts.ppo(policy, reference, client, recorder)
            progress = setup.saver.load(parts.checkpoint) if parts.checkpoint else Progress()
            recorder.phase("training")
            progress = train(setup, progress)
        work.after(progress.step, (lambda: heldout.measure(policy)) if heldout else None)


def _attach(stack: ExitStack, critic: RunningCritic, config: PpoMasterConfig, recorder: RunRecorder) -> CriticClient:
    """Wait until the critic answers; from then on its end is the end of this process."""
    recorder.phase("waiting for the critic")
    client = stack.enter_context(CriticClient(critic, config.critic))
    stack.enter_context(client.interrupting())
    return client


class PpoParts(PromptParts[PpoMasterConfig]):
    """The parts of the actor."""

    def prove_optimizer(self) -> None:
        """The critic's, too: its process loads models first."""
        super().prove_optimizer()
        value = self.config.value
        scheduler = [entry.model_dump(exclude_none=True) for entry in value.scheduler or []] or None
        prove("value", value.optimizer.model_dump() if value.optimizer else None, scheduler)

    def ppo(self, policy: Policy, reference: Policy | None, critic: CriticClient, recorder: RunRecorder) -> Ppo:
        """Everything the loop needs. Raises ConfigError, DataError."""
        config = self.config
        optimization = self.optimization(policy.parameters())
        stream = prompt_stream(self, self.prompts, batch_key="ppo.num_prompts_per_step")

        def more(folder: Path) -> None:
            self._save_critic(critic, folder)

        return Ppo(
            config=config.ppo,
            actor=config.actor,
            loss=config.loss_fn,
            limits=config.limits,
            sampling=self.sampling,
            global_batch_size=config.policy.train_global_batch_size,
            micro_batch_size=config.policy.train_micro_batch_size,
            logprob_batch_size=config.policy.logprob_rows,
            save_period=self.save_period,
            policy=policy,
            sampler=PolicySampler(policy),
            reference=reference,
            optimization=optimization,
            chat=self.chat,
            critic=critic,
            stream=stream,
            validation=validation_prompts(config, config.ppo.max_val_samples),
            saver=self.saver({POLICY: self.trained(policy, optimization)}, stream, more),
            recorder=recorder,
            deadline=self.deadline,
            watch=self.watch,
        )

    def _save_critic(self, critic: CriticClient, folder: Path) -> None:
        """The critic's part, before the checkpoint appears under its name."""
        critic.save(int(folder.name.removeprefix("tmp_step_")))
        if self.config.learns_values and not (folder / PART).is_dir():
            raise EngineError(
                f"the critic has saved its part where this process does not see it (`{folder / PART}`)",
                hint="set `checkpointing.checkpoint_dir` to one folder on a file system that both machines share",
            )
