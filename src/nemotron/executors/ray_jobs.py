"""Jobs on a Ray cluster that is there, by the Jobs API of its dashboard.

The code goes along as Ray's own package, once a version. Where ``remote_job_dir`` is a folder that this machine sees
(``shared``), the run folder is made there; elsewhere the job unpacks it, and repeats its rows in its log, from which a
mirror is made here.
"""

from __future__ import annotations

import json
import os
import shlex
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import quote

from pydantic import BaseModel, ConfigDict, RootModel

from nemotron import snapshot
from nemotron.errors import ConfigError, ExecutorError, NemotronError, NotFoundError
from nemotron.executors import mirror
from nemotron.executors.base import How, JobState, StateName, Submission, Target, job_of
from nemotron.executors.environment import shown_environment
from nemotron.executors.http import PATIENCE_S, Service
from nemotron.job import CompiledJob
from nemotron.profiles.load import Profile
from nemotron.profiles.model import RayProfile
from nemotron.runs.attempts import Handle
from nemotron.runs.folder import RunFolder

NAME = "ray"
STATES: dict[str, StateName] = {
    "PENDING": "queued",
    "RUNNING": "running",
    "SUCCEEDED": "finished",
    "FAILED": "failed",
    "STOPPED": "cancelled",
}
STOP_WAIT_S = 60
"""Between SIGTERM and SIGKILL of a job that is stopped; Ray's own three seconds end a run before its status."""
STOP_WAIT = "RAY_JOB_STOP_WAIT_TIME_S"
ASK_S = 3.0
"""How long a cluster that does not answer is asked how a job does: whoever follows the job asks again anyway."""
_SHARE = 0.05
"""Of the time that reading a log takes: the API has no offset, so a long one is asked for less often."""
_MOST_LOG = 256 << 20
"""Bytes of a log, which comes as one answer."""
_NODE_GONE = ("JOB_SUPERVISOR_ACTOR_DIED", "JOB_SUPERVISOR_ACTOR_UNKNOWN_FAILURE")
_NO_AGENT = (
    "is the cluster still starting? A head whose agent is dead takes no jobs, see its dashboard_agent.log: two Rays on "
    "one machine each need their own `--dashboard-agent-listen-port`, `--dashboard-agent-grpc-port` and "
    "`--metrics-export-port`, and `--min-worker-port=0 --max-worker-port=0`"
)


class _Answer(BaseModel):
    """What is looked at of an answer."""

    model_config = ConfigDict(extra="ignore")


class _Version(_Answer):
    ray_version: str | None = None


class _Jobs(RootModel[list[Any] | None]):
    pass


class _Details(_Answer):
    status: str | None = None
    message: str | None = None
    error_type: str | None = None
    driver_exit_code: int | None = None


class _Logs(_Answer):
    logs: str | None = None


class RayJobs:
    """Submitted jobs."""

    name = NAME
    ships_assets = False

    def __init__(self, opened: Callable[[Handle, float], Service] | None = None) -> None:
        """Nothing is asked yet.

        Args:
            opened: the API of the cluster that a handle names, which is asked for so many seconds; that of the address
                in the handle where nothing is said.
        """
        self._opened = opened or _of_handle
        self._services: dict[str, Service] = {}
        self._logs: dict[str, _Log] = {}

    def target(self, profile: Profile, runs_dir: Path, run_id: str) -> Target:
        """Below ``remote_job_dir``; where this machine does not see that, a mirror is kept here."""
        settings = _settings(profile)
        here = runs_dir.resolve() / run_id
        if settings.remote_job_dir is None:
            return Target(here, str(here))
        there = f"{settings.remote_job_dir.rstrip('/')}/runs/{run_id}"
        return Target(Path(there), there) if settings.sees(there) else Target(here, there, mirrored=True)

    def plan(self, profile: Profile, job: CompiledJob, target: Target, number: int, how: How) -> Submission:
        """The body of the call, without what the job unpacks."""
        settings = _settings(profile)
        environment = shown_environment(profile, job, None)
        environment.setdefault(STOP_WAIT, str(STOP_WAIT_S))
        runtime: dict[str, Any] = {"env_vars": environment}
        if settings.code == "ship":
            environment[snapshot.VARIABLE] = snapshot.digest()
            runtime["working_dir"] = package()
        body: dict[str, Any] = {
            "submission_id": submission_id(job.id, number),
            "entrypoint": _entrypoint(settings, target, number, how),
            "runtime_env": runtime,
        }
        for key in ("entrypoint_num_cpus", "entrypoint_num_gpus"):
            if (value := getattr(settings, key)) is not None:
                body[key] = value
        return Submission(
            executor=NAME,
            profile=profile.name,
            run_dir=target.there,
            request={"method": "POST", "path": "/api/jobs/", "body": body},
            environment=environment,
        )

    def code_dir(self, profile: Profile, target: Target) -> str | None:
        """Ray unpacks the code where it likes."""
        return None

    def details(self, profile: Profile, target: Target, number: int, job: CompiledJob) -> dict[str, object]:
        """Id of the job, address of the cluster, and the variable of its token."""
        settings = _settings(profile)
        return {
            "job_name": submission_id(job.id, number),
            "job_id": None,
            "cluster": {"address": settings.address, "token_env": settings.token_env},
        }

    def submit(self, run: RunFolder, submission: Submission, values: Mapping[str, str], handle: Handle) -> Handle:
        """The package where the cluster does not have it, then one job of that id: one that is there is taken."""
        details = handle.model_extra or {}
        service, job = self._service(handle), str(details["job_name"])
        body = json.loads(json.dumps(submission.request["body"]))
        own = {name: submission.environment[name] for name in (snapshot.VARIABLE, STOP_WAIT)}
        sent = {name: value for name, value in values.items() if name in submission.environment}
        environment = {**sent, **own}
        if details.get("mirrored"):
            environment |= mirror.packed(run.path, int(details["number"]), with_code=False)
        body["runtime_env"]["env_vars"] = environment
        if shipped := body["runtime_env"].get("working_dir"):
            _upload(service, shipped)
        if _details(service, job) is None:
            try:
                service.call("POST", "/api/jobs/", body=body)
            except ExecutorError:
                # Whether a job was made before the answer was lost, its id tells.
                if _details(service, job) is None:
                    raise
        return handle.model_copy(update={"job_id": job})

    def read_log(self, handle: Handle, offset: int) -> bytes:
        """What the job printed, without the rows that it repeats for the mirror."""
        return mirror.printed(self._log(handle).text())[offset:]

    def whole_log(self, handle: Handle) -> bytes:
        """All that there is now, with the rows for the mirror. Raises NotFoundError: the cluster knows no such job."""
        return self._log(handle).text(fresh=True)

    def explain(self, handle: Handle, state: JobState) -> JobState:
        """Ray has said it in the job's message."""
        return state

    def cancel(self, handle: Handle) -> None:
        """Stop it: SIGTERM, and SIGKILL where that does not help."""
        if job := job_of(handle):
            self._service(handle, patience_s=ASK_S).call("POST", f"{_path(job)}/stop")

    def fetch(self, run: RunFolder, handle: Handle) -> None:
        """Rows and status of a mirrored run out of the log."""
        if not (handle.model_extra or {}).get("mirrored"):
            return
        try:
            text = self.whole_log(handle)
        except NotFoundError:
            # A cluster that has forgotten a job has forgotten its log: the mirror stays as it is, and the run goes on.
            return
        mirror.keep(run, mirror.repeated(text))

    def costs(self, handle: Handle) -> str | None:
        """The cluster is there without us."""
        return None

    def release(self, handle: Handle, state: JobState) -> Handle:
        """Nothing was made for it alone."""
        return handle

    def check(self, profile: Profile) -> list[tuple[str, str]]:
        """The cluster answers and takes the token."""
        settings = _settings(profile)
        with _service(settings.address, settings.token_env, patience_s=ASK_S) as service:
            version = service.ask(_Version, "GET", "/api/version").ray_version or "unknown"
            # The version is told without a token.
            jobs = service.ask(_Jobs, "GET", "/api/jobs/").root or []
        return [("ray", f"{version} at {settings.address}"), ("jobs", str(len(jobs)))]

    def state(self, handle: Handle) -> JobState:
        """One call."""
        job = job_of(handle)
        if not job:
            return JobState("lost", "it was never submitted")
        try:
            found = _details(self._service(handle, patience_s=ASK_S), str(job))
        except NemotronError as error:
            return JobState("unknown", error.message)
        if found is None:
            return JobState("lost", "the cluster does not know the job; one that was started anew forgets all jobs")
        state = STATES.get(found.status or "", "unknown")
        code, message = found.driver_exit_code, (found.message or "").strip()
        if state == "failed":
            if found.error_type in _NODE_GONE:
                return JobState("node_failed", _short(message))
            return JobState("failed", "" if code else _short(message), code)
        return JobState(state, _short(message) if state == "queued" else "")

    def _service(self, handle: Handle, *, patience_s: float = PATIENCE_S) -> Service:
        details = handle.model_extra or {}
        where = [details.get(name) for name in ("cluster", "workspace", "ray_cluster")]
        key = json.dumps([*where, patience_s], sort_keys=True)
        if key not in self._services:
            self._services[key] = self._opened(handle, patience_s)
        return self._services[key]

    def _log(self, handle: Handle) -> _Log:
        job = str(job_of(handle))
        if job not in self._logs:
            self._logs[job] = _Log(self._service(handle, patience_s=ASK_S), job)
        return self._logs[job]


class _Log:
    """The log of a job. Ray gives it whole or not at all, so it is kept for a while that grows with its length."""

    def __init__(self, service: Service, job: str) -> None:
        self._service, self._job = service, job
        self._text = b""
        self._until = 0.0

    def text(self, *, fresh: bool = False) -> bytes:
        """What there is so far, rows for the mirror included; the last line may be half."""
        if fresh or time.monotonic() >= self._until:
            begun = time.monotonic()
            answer = self._service.ask(_Logs, "GET", f"{_path(self._job)}/logs", most=_MOST_LOG)
            self._text = (answer.logs or "").encode()
            now = time.monotonic()
            self._until = now + (now - begun) / _SHARE if now - begun > 1 else 0.0
        return self._text


def submission_id(run_id: str, number: int) -> str:
    """One for each attempt: a job that is sent twice is one job."""
    return f"nemotron-{run_id}-{number}"


def _path(job: str) -> str:
    """Of a job. A handle is a file that somebody may have written over: its names are no way to other addresses."""
    return f"/api/jobs/{quote(job, safe='')}"


def _details(service: Service, job: str) -> _Details | None:
    """What the cluster says of a job; None where it does not know it."""
    try:
        return service.ask(_Details, "GET", _path(job))
    except NotFoundError:
        return None


def _of_handle(handle: Handle, patience_s: float) -> Service:
    where: Any = (handle.model_extra or {}).get("cluster") or {}
    return _service(where["address"], where.get("token_env"), patience_s=patience_s)


def _entrypoint(settings: RayProfile, target: Target, number: int, how: How) -> str:
    """Shell lines. Ray starts them in the folder of the package."""
    python = settings.python or "python3"
    words = how.worker(python, target.there, number)
    if target.mirrored:
        # The code is there already, in this very folder: nothing of it is unpacked.
        words = mirror.bootstrap_words(python, target.there, ".", words)
    path = ['export PYTHONPATH="$PWD${PYTHONPATH:+:$PYTHONPATH}"'] if settings.code == "ship" else []
    return "\n".join(["set -eu", *path, *settings.startup_commands, f"exec {shlex.join(words)}"])


def package() -> str:
    """How Ray calls the package of this version's code."""
    return f"gcs://_ray_pkg_nemotron_{snapshot.digest()}.zip"


def package_path(name: str) -> str:
    """Where the API takes a package."""
    return f"/api/packages/{name.replace('://', '/')}"


def _upload(service: Service, name: str) -> None:
    """Unless the cluster has it. Asking keeps it there for the minutes until the job does."""
    path = package_path(name)
    try:
        service.call("GET", path)
    except NotFoundError:
        service.call("PUT", path, content=snapshot.zipped())


def _service(address: str, token_env: str | None, *, patience_s: float) -> Service:
    """The cluster's API.

    Raises:
        ConfigError: the variable that should hold its token is not set.
    """
    token = None
    if token_env is not None and not (token := os.environ.get(token_env)):
        raise ConfigError(
            f"no token for the Ray cluster {address}: {token_env} is not set",
            hint=f"`export {token_env}=...`, the content of RAY_AUTH_TOKEN on the cluster's nodes",
        )
    hint = (
        f"set {token_env} to the token of the cluster's nodes"
        if token_env
        else "the cluster wants a token (RAY_AUTH_MODE=token): name its variable with `token_env` in the profile"
    )
    return Service("Ray", address.rstrip("/"), token, token_hint=hint, stumble_hint=_NO_AGENT, patience_s=patience_s)


def _short(message: str) -> str:
    return " ".join(message.split())[:300]


def _settings(profile: Profile) -> RayProfile:
    assert isinstance(profile.settings, RayProfile)
    return profile.settings
