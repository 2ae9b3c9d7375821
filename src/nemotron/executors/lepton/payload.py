"""The job that Lepton is asked for."""

from __future__ import annotations

import re
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from nemotron import snapshot
from nemotron.executors.base import How
from nemotron.executors.mirror import bootstrap_words
from nemotron.profiles.model import LeptonProfile

TTL_S = 3 * 86400
"""How long Lepton keeps a finished job, with its log."""


def job_name(run_id: str, number: int) -> str:
    """A name that Lepton takes (lower case, at most 36 characters), one for each attempt.

    Of a run id its time and its random end are kept: together they are as unique as the id.
    """
    match = re.fullmatch(r"(\d{8}-\d{6})-.*-([0-9a-f]{4})", run_id)
    core = "-".join(match.groups()) if match else re.sub(r"[^a-z0-9]+", "-", run_id.lower())[:24]
    return f"nemotron-{core}-{number}"[:36].rstrip("-")


def body(
    profile: LeptonProfile, *, name: str, run_dir: str, number: int, environment: Mapping[str, str], how: How
) -> dict[str, Any]:
    """The body of ``POST /jobs``; the packed files are added when it is sent.

    Args:
        environment: variables of the job with their values; secrets of the workspace are referred to by name.
    """
    spec = _machines(profile, environment)
    spec["container"]["command"] = ["/bin/bash", "-c", _command(profile, run_dir, number, how)]
    spec |= {
        "completions": 1,
        "parallelism": 1,
        "image_pull_secrets": list(profile.image_pull_secrets),
        "ttl_seconds_after_finished": TTL_S,
    }
    return {"metadata": {"id": name}, "spec": spec}


def cluster_body(profile: LeptonProfile, *, name: str, environment: Mapping[str, str]) -> dict[str, Any]:
    """The body of ``POST /rayclusters``: a head, and workers for the other nodes, all alike."""
    spec: dict[str, Any] = {
        "ray_version": profile.ray_version,
        "image_pull_secrets": list(profile.image_pull_secrets),
        "head_group_spec": {**_machines(profile, environment), "min_replicas": 1},
    }
    if profile.nodes > 1:
        workers = {**_machines(profile, environment), "min_replicas": profile.nodes - 1, "group_name": "workers"}
        spec["worker_group_specs"] = [workers]
    return {"metadata": {"id": name, "name": name}, "spec": spec}


def entrypoint(profile: LeptonProfile, run_dir: str, number: int, how: How) -> str:
    """Shell lines of the Ray job. Ray starts them on the head, in the folder of the code's package."""
    python = profile.python or "python3"
    # Ray would hand the job's own runtime environment on, and an engine that brings one of its own is refused by it.
    lines = ["set -eu", "unset RAY_JOB_CONFIG_JSON_ENV_VAR", *profile.startup_commands]
    code = "."
    if profile.code == "ship":
        code = code_dir(profile, run_dir)
        # Processes on the other nodes import it, too. Whoever comes second throws its own copy away.
        place, draft = shlex.quote(code), f"{shlex.quote(code)}.$$.tmp"
        lines += [
            f"if [ ! -d {place} ]; then",
            f"  mkdir -p {draft} && cp -R ./nemotron {draft}/",
            f"  mv -T {draft} {place} 2>/dev/null || rm -rf {draft}",
            f"  [ -d {place} ]",
            "fi",
        ]
    words = bootstrap_words(python, run_dir, code, how.worker(python, run_dir, number))
    return "\n".join([*lines, f"exec {shlex.join(words)}"])


def _machines(profile: LeptonProfile, environment: Mapping[str, str]) -> dict[str, Any]:
    """What a job or a group of a cluster runs on, with its variables."""
    envs: list[dict[str, Any]] = [{"name": key, "value": value} for key, value in sorted(environment.items())]
    envs += [
        {"name": key, "value_from": {"secret_name_ref": secret}} for key, secret in sorted(profile.secrets.items())
    ]
    found: dict[str, Any] = {
        "resource_shape": profile.resource_shape,
        "container": {"image": profile.container_image},
        "envs": envs,
        "mounts": [
            {"from": mount.from_, "path": mount.path, "mount_path": mount.mount_path} for mount in profile.mounts
        ],
    }
    if profile.node_group:
        found["affinity"] = {"allowed_dedicated_node_groups": [profile.node_group]}
    if profile.shared_memory_size:
        found["shared_memory_size"] = profile.shared_memory_size
    if profile.node_reservation:
        found["reservation_config"] = {"reservation_id": profile.node_reservation}
    return found


def with_values(envs: list[dict[str, Any]], values: Mapping[str, str]) -> list[dict[str, Any]]:
    """Variables of a body, with values that were not shown."""
    by_name = {env["name"]: env for env in envs if "value" in env}
    by_name |= {name: {"name": name, "value": value} for name, value in values.items()}
    return [*by_name.values(), *(env for env in envs if "value" not in env)]


def code_dir(profile: LeptonProfile, run_dir: str) -> str:
    """Where the code lies there."""
    root = profile.remote_job_dir or str(Path(run_dir).parent)
    return f"{root.rstrip('/')}/code/{snapshot.digest()}"


def _command(profile: LeptonProfile, run_dir: str, number: int, how: How) -> str:
    python = profile.python or "python3"
    words = bootstrap_words(python, run_dir, code_dir(profile, run_dir), how.worker(python, run_dir, number))
    return "\n".join(["set -eu", *profile.startup_commands, f"exec {shlex.join(words)}"])
