"""Launcher of the reward model step: its preflight, run by the embedded engine in this process."""

from __future__ import annotations

from collections.abc import Mapping

from nemotron.compile.reward_model import preflight
from nemotron.rl.threads import plan_threads, set_environment
from nemotron.runs.folder import RunFolder
from nemotron.steps.rl.nemo_rl.rm.config import Config

__all__ = ["preflight", "run"]


def run(run: RunFolder, secrets: Mapping[str, str]) -> None:
    """Do the job of ``run``. Raises NemotronError."""
    config = Config.model_validate(run.job()["config"])
    threads = plan_threads(local_judge=False)
    # Before torch is imported: its libraries read the environment once, when they are loaded.
    set_environment(threads.policy)
    from nemotron.engines.embedded_rm import run_job

    run_job(run, config, threads)
