"""GRPO with a judge on the embedded engine.

One process trains and samples; the judge answers over HTTP, from a child process or wherever the config points.
"""

from __future__ import annotations

from contextlib import ExitStack

from nemotron.config.schema.extras import JudgedGrpoConfig
from nemotron.config.schema.judge import GenrmCompareConfig
from nemotron.engines.embedded_process import judge_model
from nemotron.engines.grpo import run_grpo
from nemotron.engines.recorder import RunRecorder
from nemotron.judge.groups import JudgeSettings
from nemotron.judge.local import RemoteJudge, RunningJudge
from nemotron.judge.pool import JudgePool
from nemotron.judge.source import JudgeSource
from nemotron.rl.threads import ThreadPlan
from nemotron.runs.folder import RunFolder


def run_job(run: RunFolder, config: JudgedGrpoConfig, judge: RunningJudge, threads: ThreadPlan) -> None:
    """Run the job of ``run`` from where it stands to its end.

    ``judge`` may still be loading; one that somebody else runs is asked first, so that a wrong address costs no time.

    Raises:
        NemotronError: of every kind; what was finished before stays in the run folder.
    """

    def open_judge(stack: ExitStack, recorder: RunRecorder) -> JudgeSource:
        recorder.phase("waiting for the judge")
        pool = JudgePool(judge.endpoint, judge_settings(config), explain=judge.explain)
        return JudgeSource(stack.enter_context(pool))

    run_grpo(run, config, threads, open_judge, rewards_first=isinstance(judge, RemoteJudge))


def judge_settings(config: JudgedGrpoConfig) -> JudgeSettings:
    """Everything about judging but the endpoint."""
    gym = config.env.nemo_gym
    server = gym.genrm_compare_resources_server if gym else None
    compare = server.resources_servers.genrm_compare if server else GenrmCompareConfig()
    return JudgeSettings(compare, config.judge, judge_model(config).supports_principle_role)
