"""The executor itself."""

from __future__ import annotations

import json
import math
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from nemotron.disk.documents import parse_json
from nemotron.errors import ExecutorError, NemotronError, NotFoundError
from nemotron.executors import mirror
from nemotron.executors.base import How, JobState, StateName, Submission, Target
from nemotron.executors.environment import shown_environment
from nemotron.executors.lepton import payload
from nemotron.executors.lepton.answers import Anything, Found, Job, Rows, Workspace
from nemotron.executors.lepton.api import Api, workspace_of
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
    """Batch jobs."""

    name = NAME
    ships_assets = False

    def __init__(self) -> None:
        self._apis: dict[str, Api] = {}
        self._logs: dict[str, _Log] = {}

    def target(self, profile: Profile, runs_dir: Path, run_id: str) -> Target:
        """Below ``remote_job_dir``, which is a mount; a mirror is kept here."""
        settings = _settings(profile)
        root = settings.remote_job_dir or (settings.mounts[0].mount_path if settings.mounts else "/tmp/nemotron")
        return Target(runs_dir.resolve() / run_id, f"{root.rstrip('/')}/runs/{run_id}", mirrored=True)

    def plan(self, profile: Profile, job: CompiledJob, target: Target, number: int, how: How) -> Submission:
        """The body of the call, without the packed files."""
        settings = _settings(profile)
        environment = shown_environment(profile, job, self.code_dir(profile, target))
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

    def details(self, profile: Profile, target: Target, number: int, run_id: str) -> dict[str, object]:
        """The name of the job, and of the workspace's address and token what is no secret."""
        settings = _settings(profile)
        keep = ("workspace_id", "workspace_url", "token_env")
        return {
            "job_name": payload.job_name(run_id, number),
            "job_id": None,
            "workspace": {key: value for key in keep if (value := getattr(settings, key)) is not None},
        }

    def submit(self, run: RunFolder, submission: Submission, values: Mapping[str, str], handle: Handle) -> Handle:
        """One job of that name: where it exists already, that one is taken."""
        details = handle.model_extra or {}
        api = self._api(handle)
        body = json.loads(json.dumps(submission.request["body"]))
        spec = body["spec"]
        by_name = {env["name"]: env for env in spec["envs"] if "value" in env}
        for name, value in {**values, **mirror.packed(run.path, int(details["number"]), with_code=True)}.items():
            by_name[name] = {"name": name, "value": value}
        secrets = [env for env in spec["envs"] if "value" not in env]
        spec["envs"] = [*by_name.values(), *secrets]
        _resolve_group(api, spec)
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
        log = self._log(handle)
        if offset == 0:
            log.wait_until_quiet(_QUIET_S, self._patience(handle))
        return mirror.printed(log.text())[offset:]

    def explain(self, handle: Handle, state: JobState) -> JobState:
        """Lepton tells nothing more."""
        return state

    def cancel(self, handle: Handle) -> None:
        """Stop it: Lepton keeps it, with its log."""
        job = (handle.model_extra or {}).get("job_id")
        if job:
            self._api(handle).call("PATCH", f"/jobs/{job}", body={"spec": {"stopped": True}})

    def fetch(self, run: RunFolder, handle: Handle) -> None:
        """Rows and status out of the log, and the report from them."""
        log = self._log(handle)
        log.wait_until_quiet(_QUIET_S, self._patience(handle))
        mirror.keep(run, mirror.repeated(log.text()))

    def check(self, profile: Profile) -> list[tuple[str, str]]:
        """The token opens the workspace, and the node group is there."""
        settings = _settings(profile)
        workspace = workspace_of(settings)
        with Api(workspace, patience_s=10) as api:
            found = [("workspace", api.ask(Workspace, "GET", "/workspace").workspace_name or workspace.url)]
            if settings.node_group:
                found.append(_node_group(api, settings.node_group))
        return found

    def state(self, handle: Handle) -> JobState:
        """One call."""
        job = (handle.model_extra or {}).get("job_id")
        if not job:
            return JobState("lost", "it was never submitted")
        try:
            word = _word(self._api(handle), str(job))
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
            word = _word(self._api(handle), str((handle.model_extra or {}).get("job_id")))
        except NemotronError:
            return _PATIENCE_S
        return _PATIENCE_S if STATES.get(word, "unknown") in ("queued", "running", "unknown") else math.inf

    def _exit_code(self, handle: Handle) -> int | None:
        """Lepton says that a job failed; with what, its worker's last status in the log says."""
        try:
            log = self._log(handle)
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
        where: Any = (handle.model_extra or {}).get("workspace") or {}
        key = json.dumps(where, sort_keys=True)
        if key not in self._apis:
            profile = LeptonProfile.model_validate({"executor": "lepton", **where})
            self._apis[key] = Api(workspace_of(profile))
        return self._apis[key]

    def _log(self, handle: Handle) -> _Log:
        job = str((handle.model_extra or {}).get("job_id"))
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


def _resolve_group(api: Api, spec: dict[str, Any]) -> None:
    """Node groups are asked for by id; people know them by name."""
    affinity = spec.get("affinity", {})
    wanted = affinity.get("allowed_dedicated_node_groups", [])
    if wanted:
        groups = _groups(api)
        affinity["allowed_dedicated_node_groups"] = [groups.get(name, name) for name in wanted]


def _groups(api: Api) -> dict[str, str]:
    rows = api.ask(Rows, "GET", "/dedicated-node-groups").all
    return {str(row.metadata.name): str(row.metadata.id) for row in rows}


def _node_group(api: Api, wanted: str) -> tuple[str, str]:
    """Line of a check about a node group, which has a name and an id. Raises ExecutorError."""
    groups = _groups(api)
    group = groups.get(wanted) or (wanted if wanted in groups.values() else None)
    if group is None:
        raise ExecutorError(
            f"there is no node group `{wanted}`", hint=f"there are {', '.join(sorted(groups)) or 'none'}"
        )
    nodes = api.ask(Anything, "GET", f"/dedicated-node-groups/{group}/nodes").root or []
    return f"node group {wanted}", f"{group}, {len(nodes)} nodes"


def _settings(profile: Profile) -> LeptonProfile:
    assert isinstance(profile.settings, LeptonProfile)
    return profile.settings
