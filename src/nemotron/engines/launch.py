"""From a compiled plan to a run: the run folder, threads, the judge's process, then the engine in this same process.

Nothing here imports torch before the thread environment is set: its libraries read it once, when they are loaded.
"""

from __future__ import annotations

import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any

from pydantic import SecretStr

from nemotron.config.schema.judge import GenrmModelConfig
from nemotron.errors import LimitError, NemotronError, NotAvailableError
from nemotron.judge.local import running_judge
from nemotron.manifest import config_model, find_step
from nemotron.rl.threads import plan_threads, set_environment
from nemotron.runs.folder import RunFolder, find_resumable

if TYPE_CHECKING:
    from nemotron.compile.plan import Plan
    from nemotron.config.schema.extras import JudgedGrpoConfig


def launch(plan: Plan, *, runs_dir: Path, resume: bool) -> int:
    """Run a compiled job to its end, attached; returns the exit code.

    With ``resume``, the newest unfinished run of the same step and config goes on; without one a new run starts (a run
    can be killed before it has a folder).

    Raises:
        NotAvailableError: the engine of the plan is not part of this version.
        OutputError: the run folder cannot be written.
    """
    if plan.engine != "embedded":
        raise NotAvailableError(
            f"the engine `{plan.engine}` is not available yet",
            hint="set `engine=embedded`, or wait for a later version",
        )
    run = find_resumable(runs_dir, plan.step, plan.fingerprint) if resume else None
    if run is None:
        if resume:
            print("nothing to resume, starting a new run", file=sys.stderr)
        run = RunFolder.create(
            runs_dir, step=plan.step, config_name=plan.config_name, job=plan.job(), run_id=plan.run_id
        )
    return _attached(run, plan.secrets())


def resume(run_dir: Path) -> int:
    """Go on with an unfinished run from its last checkpoint; returns the exit code.

    Raises:
        NotFoundError: there is no run. OutputError: another process works on it.
    """
    run = RunFolder.open(run_dir)
    if run.state() == "finished":
        print(f"run {run.id} is finished already", file=sys.stderr)
        return 0
    return _attached(run, {})


def _attached(run: RunFolder, secrets: dict[str, str]) -> int:
    """Hold the run, work on it, and leave a truthful status behind whatever happens."""
    with run.lock(), _terminate_like_interrupt():
        try:
            _run_embedded(run, secrets)
        except KeyboardInterrupt:
            run.write_status(state="interrupted", exit_code=130)
            print(f"interrupted; go on with `nemotron runs resume {run.id}`", file=sys.stderr)
            raise
        except NemotronError as error:
            state: Any = "stopped" if isinstance(error, LimitError) else "failed"
            run.write_status(state=state, error=error.message, exit_code=error.exit_code)
            raise
        except BaseException as error:
            # Supervision: whatever it was, the status must not go on saying "running".
            run.write_status(state="failed", error=f"internal error: {type(error).__name__}", exit_code=1)
            raise
    return 0


def _run_embedded(run: RunFolder, secrets: dict[str, str]) -> None:
    job = run.job()
    config = job_config(job)
    model = judge_model(config)
    if "judge_api_key" in secrets:
        model = model.model_copy(update={"api_key": SecretStr(secrets["judge_api_key"])})
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


@contextmanager
def _terminate_like_interrupt() -> Iterator[None]:
    """SIGTERM (a scheduler's polite end) stops the run as Ctrl-C does: status written, judge ended."""

    def stop(signum: int, frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
