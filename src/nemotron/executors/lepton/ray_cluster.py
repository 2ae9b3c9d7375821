"""A Ray cluster of Lepton for one attempt, and the worker's line as a job on it.

Lepton passes calls on to the dashboard of a cluster that it made, so the job itself is Ray's: :mod:`ray_jobs` asks it.
The cluster is billed until it is deleted, and its log goes with it. So the log is kept beside the run as far as it was
read, and whoever sees the job end deletes the cluster (:mod:`nemotron.executors.ending`).
"""

from __future__ import annotations

import signal
import sys
import threading
import time
from collections.abc import Mapping
from contextlib import nullcontext, suppress
from copy import deepcopy
from dataclasses import asdict
from typing import Any

from nemotron import snapshot
from nemotron.disk.atomic import write_atomic
from nemotron.errors import ExecutorError, NemotronError, NotFoundError
from nemotron.executors import mirror
from nemotron.executors.base import How, JobState, KeptEnd, Submission, from_file, log_of
from nemotron.executors.http import PATIENCE_S, Service
from nemotron.executors.lepton import payload
from nemotron.executors.lepton.answers import Cluster
from nemotron.executors.lepton.api import Api, Workspace, workspace_of_handle
from nemotron.executors.lepton.groups import resolve_groups
from nemotron.executors.ray_jobs import ASK_S, STOP_WAIT, STOP_WAIT_S, RayJobs, package, package_path, submission_id
from nemotron.outcome import print_error
from nemotron.processes.termination import held_back, terminated_like_interrupted
from nemotron.profiles.model import LeptonProfile
from nemotron.runs.attempts import Handle
from nemotron.runs.folder import RunFolder

LOG = "ray.log"
"""In the attempt's ``logs/`` here: what the job printed, for when the cluster is gone."""
READY = "Ready"
GONE = ("Stopped", "Stopping", "Deleting")
"""States that no cluster of a job leaves for a better one."""
_POLL_S = 2.0


def submission(
    profile: LeptonProfile,
    name: str,
    *,
    run_id: str,
    run_dir: str,
    number: int,
    environment: Mapping[str, str],
    how: How,
    of_profile: str,
) -> Submission:
    """All calls, in their order: the cluster, the wait for it, the code, the job, and the end of the cluster. Pure."""
    dashboard = f"/rayclusters/{name}/dashboard"
    own = {snapshot.VARIABLE: environment[snapshot.VARIABLE], STOP_WAIT: str(STOP_WAIT_S)}
    runtime: dict[str, Any] = {"env_vars": own}
    code = []
    if profile.code == "ship":
        runtime["working_dir"] = package()
        code.append({"method": "PUT", "path": dashboard + package_path(package()), "content": "the code, once"})
    job = {
        "submission_id": submission_id(run_id, number),
        "entrypoint": payload.entrypoint(profile, run_dir, number, how),
        "runtime_env": runtime,
    }
    ready = {"state": READY, "workers": profile.nodes - 1, "at_most_s": profile.start_timeout_s}
    return Submission(
        executor="lepton",
        profile=of_profile,
        run_dir=run_dir,
        request={
            "method": "POST",
            "path": "/rayclusters",
            "body": payload.cluster_body(profile, name=name, environment=environment),
            "then": [
                {"method": "GET", "path": f"/rayclusters/{name}", "until": ready},
                *code,
                {"method": "POST", "path": f"{dashboard}/api/jobs/", "body": job},
                {"method": "DELETE", "path": f"/rayclusters/{name}", "when": "the job is over"},
            ],
        },
        environment=environment,
    )


class RayClusters:
    """Asked about attempts whose handle names a cluster."""

    def __init__(self) -> None:
        self._jobs = RayJobs(_dashboard)
        self._apis: dict[tuple[str, float], Api] = {}

    def submit(self, run: RunFolder, sent: Submission, values: Mapping[str, str], handle: Handle) -> Handle:
        """The cluster, unless it is there, then one job on it. What goes wrong on the way leaves no cluster behind.

        Raises:
            ExecutorError: it is refused, does not come up in time, or Lepton cannot be reached.
            KeyboardInterrupt: Ctrl-C or SIGTERM, or the terminal is gone.
        """
        name, api = _name(handle), self._api(handle, PATIENCE_S)
        # A signal's handler is the main thread's alone.
        is_main = threading.current_thread() is threading.main_thread()
        with terminated_like_interrupted(signal.SIGHUP) if is_main else nullcontext():
            try:
                self._bring_up(api, name, sent, values)
                until = next(call["until"] for call in sent.request["then"] if "until" in call)
                self._wait_until_ready(api, handle, run.id, until)
                print(f"{run.id}: the Ray cluster `{name}` is ready", file=sys.stderr, flush=True)
                job = next(call["body"] for call in sent.request["then"] if call["path"].endswith("/api/jobs/"))
                self._jobs.submit(run, _as_ray_job(sent, job), {}, handle)
            except BaseException:
                self._leave_nothing(api, name, run.id)
                raise
        return handle.model_copy(update={"submitted": True})

    def state(self, handle: Handle) -> JobState:
        """What Ray says of the job; where it says nothing, what becomes of its cluster."""
        if end := (handle.model_extra or {}).get("ended"):
            kept = KeptEnd.model_validate(end)
            return JobState(kept.state, kept.reason, kept.exit_code)
        told = self._jobs.state(handle)
        if told.state not in ("lost", "unknown"):
            return told
        name, submitted = _name(handle), bool((handle.model_extra or {}).get("submitted"))
        try:
            word = _cluster(self._api(handle, ASK_S), name).status.state
        except NotFoundError:
            reason = f"its Ray cluster `{name}` is not there any more" if submitted else "it was never submitted"
            return JobState("lost", reason)
        except NemotronError as error:
            return JobState("unknown", error.message)
        if word in GONE:
            return JobState("lost", f"its Ray cluster `{name}` is {word}")
        if not submitted:
            return JobState("queued", f"no job yet; its Ray cluster `{name}` is {word}")
        return told if word == READY else JobState("unknown", f"its Ray cluster `{name}` is {word}")

    def read_log(self, handle: Handle, offset: int) -> bytes:
        """What the job printed; of a cluster that is gone, what was kept of it."""
        if (handle.model_extra or {}).get("ended"):
            return from_file(log_of(handle), offset)
        try:
            return self._jobs.read_log(handle, offset)
        except NotFoundError:
            # Nothing is printed before there is a job; and what another command has deleted, it has kept.
            return from_file(log_of(handle), offset)

    def cancel(self, handle: Handle) -> None:
        """Stop the job, so that the worker leaves a true status; the cluster is given back when it has."""
        if (handle.model_extra or {}).get("submitted"):
            self._jobs.cancel(handle)

    def fetch(self, run: RunFolder, handle: Handle) -> None:
        """Rows, status and output out of the log."""
        details = handle.model_extra or {}
        if details.get("ended") or not details.get("submitted"):
            return
        try:
            log = self._jobs.whole_log(handle)
        except NotFoundError:
            # Its cluster is gone, or has forgotten it: what is here stays.
            return
        mirror.keep(run, mirror.repeated(log))
        write_atomic(run.path / "attempts" / str(details["number"]) / "logs" / LOG, mirror.printed(log))

    def costs(self, handle: Handle) -> str | None:
        """The cluster, until it has been deleted."""
        if (handle.model_extra or {}).get("ended"):
            return None
        return f"the Ray cluster `{_name(handle)}` of Lepton"

    def release(self, handle: Handle, state: JobState) -> Handle:
        """Delete the cluster."""
        _delete(self._api(handle, PATIENCE_S), _name(handle))
        return handle.model_copy(update={"ended": asdict(state)})

    def _api(self, handle: Handle, patience_s: float) -> Api:
        workspace = workspace_of_handle(handle)
        key = (workspace.url, patience_s)
        if key not in self._apis:
            self._apis[key] = Api(workspace, patience_s=patience_s)
        return self._apis[key]

    def _bring_up(self, api: Api, name: str, sent: Submission, values: Mapping[str, str]) -> None:
        """One cluster of that name."""
        body = deepcopy(sent.request["body"])
        spec = body["spec"]
        groups = [spec["head_group_spec"], *spec.get("worker_group_specs", [])]
        for group in groups:
            group["envs"] = payload.with_values(group["envs"], values)
        resolve_groups(api, groups)
        try:
            _cluster(api, name)
        except NotFoundError:
            try:
                # Cut off, it might still make a cluster after that was deleted.
                with held_back():
                    api.call("POST", "/rayclusters", body=body)
            except ExecutorError as refused:
                # Whether a cluster was made before the answer was lost, its name tells.
                try:
                    _cluster(api, name)
                except NotFoundError:
                    raise refused from None

    def _wait_until_ready(self, api: Api, handle: Handle, run_id: str, until: Mapping[str, Any]) -> None:
        """Until all nodes have joined and the dashboard takes jobs.

        Raises:
            ExecutorError: that takes too long, or cannot happen any more.
        """
        name, end, said = _name(handle), time.monotonic() + until["at_most_s"], ""
        dashboard = _dashboard(handle, ASK_S)
        while True:
            try:
                status = _cluster(api, name).status
            except NotFoundError:
                raise ExecutorError(f"the Ray cluster `{name}` was deleted before it was ready") from None
            now = f"{status.state}, {status.readyWorkerReplicas} of {until['workers']} workers"
            if status.state in GONE:
                raise ExecutorError(
                    f"the Ray cluster `{name}` is {status.state} before it was ready",
                    hint="Lepton's own page of the cluster says why",
                )
            if status.state == until["state"] and status.readyWorkerReplicas >= until["workers"]:
                try:
                    dashboard.call("GET", "/api/version")
                    return
                except NemotronError as error:
                    now = f"{now}; its dashboard does not answer: {error.message}"
            if time.monotonic() > end:
                raise ExecutorError(
                    f"the Ray cluster `{name}` is not ready after {until['at_most_s']} s ({now})",
                    hint="is there room in the node group? `start_timeout_s` of the profile is how long is waited",
                )
            if now != said:
                print(f"{run_id}: the Ray cluster `{name}`: {now}", file=sys.stderr, flush=True)
                said = now
            time.sleep(_POLL_S)

    def _leave_nothing(self, api: Api, name: str, run_id: str) -> None:
        """Delete a cluster that no job came to; where that fails, say so."""
        # Said first, for whoever does not wait for it; a terminal that is gone keeps nothing from being deleted.
        with suppress(OSError):
            print(f"{run_id}: deleting the Ray cluster `{name}`", file=sys.stderr, flush=True)
        try:
            _delete(api, name)
        except NemotronError as error:
            left = ExecutorError(
                f"the Ray cluster `{name}` of Lepton may still be there and cost money: {error.message}",
                hint=f"`nemotron runs cancel {run_id}` deletes it",
            )
            print_error(left)


def _cluster(api: Api, name: str) -> Cluster:
    return api.ask(Cluster, "GET", f"/rayclusters/{name}")


def _delete(api: Api, name: str) -> None:
    try:
        api.call("DELETE", f"/rayclusters/{name}")
    except NotFoundError:
        # Somebody was faster.
        return


def _name(handle: Handle) -> str:
    return str((handle.model_extra or {})["ray_cluster"])


def _dashboard(handle: Handle, patience_s: float) -> Service:
    """Ray's own API, through Lepton's."""
    workspace = workspace_of_handle(handle)
    through = Workspace(f"{workspace.url}/rayclusters/{_name(handle)}/dashboard", workspace.token)
    return Api(through, patience_s=patience_s)


def _as_ray_job(sent: Submission, body: Mapping[str, Any]) -> Submission:
    """The job alone, as the executor of Ray's jobs takes it; its variables are the cluster's."""
    return Submission(
        executor="ray",
        profile=sent.profile,
        run_dir=sent.run_dir,
        request={"method": "POST", "path": "/api/jobs/", "body": body},
        environment=body["runtime_env"]["env_vars"],
    )
