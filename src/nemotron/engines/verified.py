"""GRPO with verifiable rewards on the embedded engine: functions in worker processes, or servers over HTTP."""

from __future__ import annotations

from contextlib import ExitStack

from nemotron.config.schema.verified import VerifiedGrpoConfig
from nemotron.engines.grpo import run_grpo
from nemotron.engines.recorder import RunRecorder
from nemotron.errors import ConfigError
from nemotron.gym.source import GymSource
from nemotron.rewards import build_rewards
from nemotron.rewards.source import VerifierSource
from nemotron.rl.reward_source import RewardSource
from nemotron.rl.threads import ThreadPlan
from nemotron.runs.folder import RunFolder


def run_job(run: RunFolder, config: VerifiedGrpoConfig, threads: ThreadPlan) -> None:
    """Run the job of ``run`` from where it stands to its end.

    Raises:
        NemotronError: of every kind; what was finished before stays in the run folder.
    """

    def open_rewards(stack: ExitStack, recorder: RunRecorder) -> RewardSource:
        if config.gym is not None:
            recorder.phase("waiting for resources servers")
            return stack.enter_context(GymSource(config.gym))
        if config.rewards is None:
            raise ConfigError("nothing gives rewards", hint="set `rewards` or `gym`")
        return VerifierSource(stack.enter_context(build_rewards(config.rewards)), config.rewards)

    run_grpo(run, config, threads, open_rewards, rewards_first=True)
