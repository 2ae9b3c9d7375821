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
    envs: list[dict[str, Any]] = [{"name": key, "value": value} for key, value in sorted(environment.items())]
    envs += [
        {"name": key, "value_from": {"secret_name_ref": secret}} for key, secret in sorted(profile.secrets.items())
    ]
    spec: dict[str, Any] = {
        "resource_shape": profile.resource_shape,
        "container": {
            "image": profile.container_image,
            "command": ["/bin/bash", "-c", _command(profile, run_dir, number, how)],
        },
        "completions": 1,
        "parallelism": 1,
        "envs": envs,
        "mounts": [
            {"from": mount.from_, "path": mount.path, "mount_path": mount.mount_path} for mount in profile.mounts
        ],
        "image_pull_secrets": list(profile.image_pull_secrets),
        "ttl_seconds_after_finished": TTL_S,
    }
    if profile.node_group:
        spec["affinity"] = {"allowed_dedicated_node_groups": [profile.node_group]}
    if profile.shared_memory_size:
        spec["shared_memory_size"] = profile.shared_memory_size
    if profile.node_reservation:
        spec["reservation_config"] = {"reservation_id": profile.node_reservation}
    return {"metadata": {"id": name}, "spec": spec}


def code_dir(profile: LeptonProfile, run_dir: str) -> str:
    """Where the code lies there."""
    root = profile.remote_job_dir or str(Path(run_dir).parent)
    return f"{root.rstrip('/')}/code/{snapshot.digest()}"


def _command(profile: LeptonProfile, run_dir: str, number: int, how: How) -> str:
    python = profile.python or "python3"
    words = bootstrap_words(python, run_dir, code_dir(profile, run_dir), how.worker(python, run_dir, number))
    return "\n".join(["set -eu", *profile.startup_commands, f"exec {shlex.join(words)}"])
