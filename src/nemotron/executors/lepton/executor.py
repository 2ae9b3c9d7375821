"""The executor itself."""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Mapping
from copy import deepcopy
from pathlib import Path

from nemotron.disk.documents import parse_json
from nemotron.errors import ExecutorError, NemotronError, NotFoundError
from nemotron.executors import mirror
from nemotron.executors.base import How, JobState, StateName, Submission, Target
from nemotron.executors.environment import shown_environment
from nemotron.executors.lepton import payload
from nemotron.executors.lepton.answers import Found, Job, Rows, Workspace
from nemotron.executors.lepton.api import Api, workspace_of, workspace_of_handle
from nemotron.executors.lepton.groups import node_group, resolve_groups
from nemotron.executors.lepton.ray_cluster import LOG, RayClusters, submission
from nemotron.executors.ray_jobs import submission_id
from nemotron.job import CompiledJob
from nemotron.profiles.load import Profile
from nemotron.profiles.model import LeptonProfile
from nemotron.runs.attempts import Handle
from nemotron.runs.folder import RunFolder

NAME = "lepton"
STATES: dict[str, StateName] = {
    "Queueing": "queued",
    "Awaiting": "queued",
    "PendingRetry": "queued",
    "Starting": "queued",
    "Running": "running",
    "Restarting": "running",
    "Stopping": "running",
    "Terminating": "running",
    "Completed": "finished",
    "Failed": "failed",
    "Stopped": "cancelled",
    "Deleting": "cancelled",
    "Deleted": "cancelled",
    "Archived": "cancelled",
}
_MOST_LOG = 1 << 30
"""Bytes of a log that are kept; what comes after them is in Lepton's own pages."""
_QUIET_S = 1.5
"""A log that brings nothing for so long is read to its present end."""
_PATIENCE_S = 5.0
"""How long that is waited for while the job runs: the log of several steps a second is never quiet."""


class Lepton:
    """Batch jobs, and jobs on Ray clusters of their own: a handle that names a cluster is of such a one."""

    name = NAME
    ships_assets = False

    def __init__(self) -> None:
        self._apis: dict[str, Api] = {}
        self._logs: dict[str, _Log] = {}
        self._clusters = RayClusters()

    def target(self, profile: Profile, runs_dir: Path, run_id: str) -> Target:
        """Below ``remote_job_dir``, which is a mount; a mirror is kept here."""
        settings = _settings(profile)
        root = settings.root or "/tmp/nemotron"  # a dry run shows the rest, too; a submission is refused
        return Target(runs_dir.resolve() / run_id, f"{root.rstrip('/')}/runs/{run_id}", mirrored=True)

    def plan(self, profile: Profile, job: CompiledJob, target: Target, number: int, how: How) -> Submission:
        """The body of the call, without the packed files."""
        settings = _settings(profile)
        environment = shown_environment(profile, job, self.code_dir(profile, target))
        if settings.brings_up_ray(job.engine):
            return submission(
                settings,
                payload.job_name(job.id, number),
                run_id=job.id,
                run_dir=target.there,
                number=number,
                environment=environment,
                how=how,
                of_profile=profile.name,
            )
        body = payload.body(
            settings,
            name=payload.job_name(job.id, number),
            run_dir=target.there,
            number=number,
            environment=environment,
            how=how,
        )
        return Submission(
            executor=NAME,
            profile=profile.name,
            run_dir=target.there,
            request={"method": "POST", "path": "/jobs", "body": body},
            environment=environment,
        )

    def code_dir(self, profile: Profile, target: Target) -> str | None:
        """Below ``remote_job_dir``."""
        settings = _settings(profile)
        return payload.code_dir(settings, target.there) if settings.code == "ship" else None

    def details(self, profile: Profile, target: Target, number: int, job: CompiledJob) -> dict[str, object]:
        """The name of the job or of its cluster, and of the workspace's address and token what is no secret."""
        settings = _settings(profile)
        keep = ("workspace_id", "workspace_url", "token_env")
        workspace = {key: value for key in keep if (value := getattr(settings, key)) is not None}
        name = payload.job_name(job.id, number)
        if not settings.brings_up_ray(job.engine):
            return {"job_name": name, "job_id": None, "workspace": workspace}
        ray_job = submission_id(job.id, number)
        log = str(target.here / "attempts" / str(number) / "logs" / LOG)
        return {"job_name": ray_job, "job_id": ray_job, "ray_cluster": name, "log": log, "workspace": workspace}

    def submit(self, run: RunFolder, submission: Submission, values: Mapping[str, str], handle: Handle) -> Handle:
        """One job of that name: where it exists already, that one is taken."""
        if _is_ray(handle):
            return self._clusters.submit(run, submission, values, handle)
        details = handle.model_extra or {}
        api = self._api(handle)
        body = deepcopy(submission.request["body"])
        spec = body["spec"]
        packed = mirror.packed(run.path, int(details["number"]), with_code=True)
        spec["envs"] = payload.with_values(spec["envs"], {**values, **packed})
        resolve_groups(api, [spec])
        known = self._by_name(api, str(details["job_name"]))
        if known is None:
            try:
                known = api.ask(Job, "POST", "/jobs", body=body).metadata.id
            except ExecutorError:
                # Whether a job was made before the answer was lost, its name tells.
                if (known := self._by_name(api, str(details["job_name"]))) is None:
                    raise
            if known is None:
                raise ExecutorError("Lepton's answer names no job")
        return handle.model_copy(update={"job_id": known})

    def read_log(self, handle: Handle, offset: int) -> bytes:
        """What the job printed, without the rows that it repeats for the mirror."""
        if _is_ray(handle):
            return self._clusters.read_log(handle, offset)
        if (log := self._log(handle)) is None:
            return b""
        if offset == 0:
            log.wait_until_quiet(_QUIET_S, self._patience(handle))
        return mirror.printed(log.text())[offset:]

    def explain(self, handle: Handle, state: JobState) -> JobState:
        """Lepton tells nothing more."""
        return state

    def cancel(self, handle: Handle) -> None:
        """Stop it: Lepton keeps it, with its log."""
        if _is_ray(handle):
            return self._clusters.cancel(handle)
        if job := self._job_of(handle):
            self._api(handle).call("PATCH", f"/jobs/{job}", body={"spec": {"stopped": True}})

    def fetch(self, run: RunFolder, handle: Handle) -> None:
        """Rows and status out of the log, and the report from them."""
        if _is_ray(handle):
            return self._clusters.fetch(run, handle)
        if (log := self._log(handle)) is None:
            return
        log.wait_until_quiet(_QUIET_S, self._patience(handle))
        mirror.keep(run, mirror.repeated(log.text()))

    def costs(self, handle: Handle) -> str | None:
        """A Ray cluster, until it is deleted; a batch job gives its machines back by itself."""
        return self._clusters.costs(handle) if _is_ray(handle) else None

    def release(self, handle: Handle, state: JobState) -> Handle:
        """Delete the Ray cluster."""
        return self._clusters.release(handle, state)

    def check(self, profile: Profile) -> list[tuple[str, str]]:
        """The token opens the workspace, and the node group is there."""
        settings = _settings(profile)
        workspace = workspace_of(settings)
        with Api(workspace, patience_s=10) as api:
            found = [("workspace", api.ask(Workspace, "GET", "/workspace").workspace_name or workspace.url)]
            if settings.node_group:
                found.append(node_group(api, settings.node_group))
        return found

    def state(self, handle: Handle) -> JobState:
        """One call."""
        if _is_ray(handle):
            return self._clusters.state(handle)
        try:
            if (job := self._job_of(handle)) is None:
                return JobState("lost", "it was never submitted")
            word = _word(self._api(handle), job)
        except NotFoundError:
            return JobState("lost", "Lepton does not know the job any more")
        except NemotronError as error:
            return JobState("unknown", error.message)
        state = STATES.get(word, "unknown")
        if state != "failed":
            return JobState(state, "" if word in ("Running", "Completed", "Queueing") else word)
        return JobState("failed", "", self._exit_code(handle))

    def _patience(self, handle: Handle) -> float:
        """How long its log is waited for; to its end once the job is over, which no row of the mirror may miss."""
        try:
            word = _word(self._api(handle), str(self._job_of(handle)))
        except NemotronError:
            return _PATIENCE_S
        return _PATIENCE_S if STATES.get(word, "unknown") in ("queued", "running", "unknown") else math.inf

    def _exit_code(self, handle: Handle) -> int | None:
        """Lepton says that a job failed; with what, its worker's last status in the log says."""
        try:
            if (log := self._log(handle)) is None:
                return None
            log.wait_until_quiet(_QUIET_S)
        except NemotronError:
            return None
        statuses = mirror.repeated(log.text()).get("status.json", [])
        try:
            status = parse_json(statuses[-1]) if statuses else None
        except ValueError:
            status = None
        code = status.get("exit_code") if isinstance(status, dict) else None
        return code if isinstance(code, int) else 1

    def _by_name(self, api: Api, name: str) -> str | None:
        rows = api.ask(Found, "GET", "/jobs", params={"q": name, "page": "1", "page_size": "100"}).all
        return next((row.metadata.id for row in rows if name in (row.metadata.name, row.metadata.id)), None)

    def _api(self, handle: Handle) -> Api:
        workspace = workspace_of_handle(handle)
        if workspace.url not in self._apis:
            self._apis[workspace.url] = Api(workspace)
        return self._apis[workspace.url]

    def _job_of(self, handle: Handle) -> str | None:
        """Its id: the one that is kept, or that of a job which was made although nobody heard the answer.

        Raises:
            NemotronError: Lepton cannot be asked.
        """
        details = handle.model_extra or {}
        if known := details.get("job_id"):
            return str(known)
        name = details.get("job_name")
        return self._by_name(self._api(handle), str(name)) if name else None

    def _log(self, handle: Handle) -> _Log | None:
        """None of a job that was never made. Raises NemotronError: Lepton cannot be asked."""
        if (job := self._job_of(handle)) is None:
            return None
        if job not in self._logs:
            self._logs[job] = _Log(self._api(handle), job)
        return self._logs[job]


class _Log:
    """The log of a job's first worker, read in the background; a connection that breaks is taken up where it was."""

    def __init__(self, api: Api, job: str) -> None:
        self._api, self._job = api, job
        self._raw = bytearray()
        self._changed = time.monotonic()
        self._thread: threading.Thread | None = None
        self._lock = threading.Lock()
        self._complete = False

    def wait_until_quiet(self, quiet_s: float, patience_s: float = math.inf) -> None:
        """Wait until the log has been read to its present end, or for as long as there is patience."""
        self._start()
        self._changed = began = time.monotonic()
        while not self._complete and (now := time.monotonic()) - self._changed < quiet_s and now - began < patience_s:
            time.sleep(0.05)

    def text(self) -> bytes:
        """All that has arrived, rows for the mirror included."""
        self._start()
        with self._lock:
            return bytes(self._raw)

    def _start(self) -> None:
        if not self._complete and (self._thread is None or not self._thread.is_alive()):
            self._thread = threading.Thread(target=self._read, daemon=True, name="lepton-log")
            self._thread.start()

    def _read(self) -> None:
        """One connection, from the beginning: what was read before is skipped."""
        try:
            replicas = self._api.ask(Rows, "GET", f"/jobs/{self._job}/replicas").all
            if not replicas:
                return
            seen = 0
            for chunk in self._api.stream(f"/jobs/{self._job}/replicas/{replicas[0].metadata.id}/log"):
                with self._lock:
                    new = chunk[max(0, len(self._raw) - seen) :]
                    seen += len(chunk)
                    if new:
                        self._raw += new
                        self._changed = time.monotonic()
                    if len(self._raw) >= _MOST_LOG:
                        break
            word = _word(self._api, self._job)
        except NemotronError:
            # The next question opens a new connection.
            return
        self._complete = STATES.get(word, "unknown") not in ("queued", "running", "unknown")


def _word(api: Api, job: str) -> str:
    """How Lepton says that a job does."""
    return api.ask(Job, "GET", f"/jobs/{job}", params={"job_query_mode": "alive_and_archive"}).status.state


def _is_ray(handle: Handle) -> bool:
    return (handle.model_extra or {}).get("ray_cluster") is not None


def _settings(profile: Profile) -> LeptonProfile:
    assert isinstance(profile.settings, LeptonProfile)
    return profile.settings
