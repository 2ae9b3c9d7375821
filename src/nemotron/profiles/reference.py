"""Keys of NVIDIA's ``env.toml``: those with another name here are translated, those without a meaning are refused."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, get_args

from nemotron.errors import ConfigError, Finding, Origin
from nemotron.profiles.model import Containers

RENAMED = {
    "container": "container_image",
    "nemo_run_dir": "remote_job_dir",
    "setup_lines": "startup_commands",
    "pre_launch_commands": "startup_commands",
}
"""Accepted under both names."""
OWN: Mapping[str, Sequence[str]] = {"container": get_args(Containers)}
"""Names that are a key of ours, too, and the values by which that is known."""

REFUSED = {
    "lustre_mount": 'write the folder into `mounts`: `mounts = ["/lustre:/lustre"]`',
    "ntasks_per_node": "the worker is one task a node; `gpus_per_node` and `cpus_per_task` say what it gets",
    "nproc_per_node": "the worker is one task a node; `gpus_per_node` says what it gets",
    "nprocs_per_node": "the worker is one task a node; `gpus_per_node` says what it gets",
    "run_command": "write shell lines into `startup_commands`, and the interpreter into `python`",
    "build_partition": "images are imported in the job; there is no job that builds them",
    "build_time": "images are imported in the job; there is no job that builds them",
    "build_include_gpus": "images are imported in the job; there is no job that builds them",
    "build_gpus_per_node": "images are imported in the job; there is no job that builds them",
    "build_image": "images are imported in the job; there is no job that builds them",
    "build_cache_dir": "imported images are kept in `squash_dir`",
    "custom_spec": "there is no way around the keys of the profile; say what is missing",
    "launcher": "the worker is started by its executor, there is nothing to choose",
    "workspace": "code goes below `remote_job_dir`",
    "repo_root": "the code that runs this command is what goes along",
    "pip_extras": "install them in the image, or write the command into `startup_commands`",
    "existing_ray_cluster": 'use a profile with `executor = "ray"` and its `address`',
    "packager": "the code that runs this command is what goes along",
    "packager_include_pattern": "the code that runs this command is what goes along",
    "code_src_dir": "the code that runs this command is what goes along",
    "persistent_cache": "set HF_HOME in `env_vars`",
}
"""Without a counterpart: what to do instead."""

EXECUTORS = {
    "dgxcloud": "Run:ai's DGX Cloud has no executor here; `lepton` is DGX Cloud Lepton, `slurm` any Slurm",
    "docker": "containers run through Slurm or Lepton; on this machine use `local`",
}
"""Executors of the reference that are not here."""


def translated(values: Mapping[str, Any], origin: Origin) -> dict[str, Any]:
    """A table with today's names.

    Raises:
        ConfigError: a key stands there under both of its names.
    """
    found = dict(values)
    for old, new in RENAMED.items():
        if old not in found or found[old] in OWN.get(old, ()):
            continue
        if new in found:
            raise ConfigError(f"`{old}` is the old name of `{new}`, and both are set: keep one", origin=origin)
        value = found.pop(old)
        found[new] = [value] if new == "startup_commands" and isinstance(value, str) else value
    if isinstance(found.get("startup_commands"), str):
        found["startup_commands"] = [found["startup_commands"]]
    return found


def refused(values: Mapping[str, Any], executor: str, origins: Mapping[str, Origin]) -> list[Finding]:
    """A finding for each key of the reference that has no counterpart."""
    return [
        Finding("error", "profile", f"`{name}` is not a key of a {executor} profile here", name, origins[name], hint)
        for name, hint in REFUSED.items()
        if name in values
    ]
