"""Sets the scene for GRPO with verifiable rewards. Nothing here imports torch before the thread environment is set."""

from __future__ import annotations

from collections.abc import Mapping

from nemotron.config.schema.verified import VerifiedGrpoConfig
from nemotron.manifest import config_model, find_step
from nemotron.rl.threads import plan_threads, set_environment
from nemotron.runs.folder import RunFolder


def run(run: RunFolder, secrets: Mapping[str, str]) -> None:
    """Do the job of ``run`` with the embedded engine; this step has no secrets.

    Raises:
        NemotronError: of every kind.
    """
    job = run.job()
    config = config_model(find_step(job["step"])).model_validate(job["config"])
    if not isinstance(config, VerifiedGrpoConfig):
        raise TypeError(f"{job['step']} is no step of this engine")
    threads = plan_threads(local_judge=False)
    set_environment(threads.policy)
    from nemotron.engines.verified import run_job

    run_job(run, config, threads)
