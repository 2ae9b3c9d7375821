"""Sets the scene for the embedded engine: threads, the judge's process, then the engine itself.

Nothing here imports torch before the thread environment is set: its libraries read it once, when they are loaded.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic import SecretStr

from nemotron.compile.grpo_job import JUDGE_MODEL
from nemotron.config.schema.extras import JudgedGrpoConfig
from nemotron.config.schema.judge import GenrmModelConfig
from nemotron.errors import NotAvailableError
from nemotron.manifest import config_model, find_step
from nemotron.rl.threads import plan_threads, set_environment
from nemotron.runs.folder import RunFolder


def run(run: RunFolder, secrets: Mapping[str, str]) -> None:
    """Do the job of ``run`` with the embedded engine. ``secrets``: by config key.

    Raises:
        NemotronError: of every kind.
    """
    # The judge's client needs aiohttp, which an install that only proves configs does not have.
    from nemotron.judge.local import running_judge

    config = job_config(run.job())
    model = judge_model(config)
    key = secrets.get(f"{JUDGE_MODEL}.api_key")
    if key is not None:
        model = model.model_copy(update={"api_key": SecretStr(key)})
    threads = plan_threads(local_judge=model.base_url is None)
    set_environment(threads.policy)
    # The judge starts first: it loads its model on its own core while this process imports torch and loads the policy.
    with running_judge(model, config.judge, log_path=run.logs / "judge.log") as judge:
        from nemotron.engines.embedded import run_job

        run_job(run, config, judge, threads)


def job_config(job: dict[str, Any]) -> JudgedGrpoConfig:
    """The typed config of ``job.json``, through the model of its own step."""
    model: Any = config_model(find_step(job["step"]))
    config: JudgedGrpoConfig = model.model_validate(job["config"])
    return config


def judge_model(config: JudgedGrpoConfig) -> GenrmModelConfig:
    """Which model judges, and where it answers. The preflight has made sure that the block is there."""
    gym = config.env.nemo_gym
    if gym is None or gym.genrm_model is None:
        raise NotAvailableError("the config names no judge", hint="set `env.nemo_gym.genrm_model`")
    return gym.genrm_model.responses_api_models.vllm_model
