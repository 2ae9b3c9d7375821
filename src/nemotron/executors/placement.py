"""What the profile has to say about a plan: placeholders, paths that the job cannot reach, sizes that do not fit.

A dry run shows what it would refuse as warnings, so that the whole of a submission can be looked at before the profile
is filled in; a submission refuses it.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import Any

from nemotron import snapshot
from nemotron.compile.gpus import gym_judge_gpus, judge_beside, judge_nodes
from nemotron.compile.plan import FileRef, Plan
from nemotron.compile.secrets import secret_variables
from nemotron.config.schema.judge import JUDGE_MODEL
from nemotron.disk.home import expanded, homeless
from nemotron.errors import Finding
from nemotron.processes.addresses import in_the_clear
from nemotron.profiles.load import Profile
from nemotron.profiles.model import LeptonProfile, RayProfile, SlurmProfile
from nemotron.profiles.values import PLACEHOLDER
from nemotron.suggest import listed


def placed(plan: Plan, profile: Profile, *, ships_assets: bool, rehearsal: bool) -> Plan:
    """The plan with what the profile finds.

    Args:
        ships_assets: files of the product go along with its code.
        rehearsal: nothing will be submitted.
    """
    # What keeps a job from being submitted, whatever else is right with it.
    blocking = [
        *_placeholders(profile),
        *_startup(profile),
        *_paths(plan, profile, ships_assets=ships_assets),
        *_open_secrets(plan, profile),
        *_mirror(profile),
        *_kept_by_lepton(profile),
        *_ray_of_lepton(plan, profile),
        *_judge_room(plan, profile),
    ]
    if rehearsal:
        blocking = [replace(f, severity="warning", message=f"{f.message}; a submission refuses this") for f in blocking]
    return replace(
        plan,
        findings=(*plan.findings, *_sizes(plan, profile), *_left_open(plan, profile), *_open_token(profile), *blocking),
    )


def _placeholders(profile: Profile) -> Iterator[Finding]:
    if keys := profile.unfilled:
        names, verb = listed(keys), "is a placeholder" if len(keys) == 1 else "are placeholders"
        yield Finding(
            "error",
            "profile-placeholder",
            f"profile `{profile.name}`: {names} still {verb}",
            keys[0],
            profile.origin(keys[0]),
            "copy the profiles with `nemotron profiles init` and fill in what stands in <>",
        )


def _startup(profile: Profile) -> Iterator[Finding]:
    """Lines that no shell would run."""
    commands = profile.settings.startup_commands
    if not commands or any(PLACEHOLDER.search(line) for line in commands):
        return
    if (reason := _why_no_script("\n".join(commands))) is None:
        return
    yield Finding(
        "error",
        "startup-commands",
        f"profile `{profile.name}`: bash cannot read `startup_commands`: {reason}",
        "startup_commands",
        profile.origin("startup_commands"),
        "each entry is a line of one script, run by bash before the worker",
    )


@lru_cache(maxsize=16)
def _why_no_script(text: str) -> str | None:
    """What bash says of a script that it cannot parse; it runs none of it. The runs of a sweep have one script."""
    if (bash := shutil.which("bash")) is None:
        return None
    told = subprocess.run([bash, "-n"], input=text, capture_output=True, text=True, env={"LC_ALL": "C"}, check=False)
    if told.returncode == 0:
        return None
    return told.stderr.partition("\n")[0].partition(": ")[2] or "it does not parse"


def _open_secrets(plan: Plan, profile: Profile) -> Iterator[Finding]:
    """Values of this environment that would stand in a job's description, where everybody in the workspace reads it."""
    settings = profile.settings
    if not isinstance(settings, LeptonProfile | RayProfile):
        return
    if isinstance(settings, LeptonProfile):
        readers = "the job's description"
        keep = 'make it a secret of the workspace, and name that: `secrets = {{ {} = "..." }}`'
    else:
        readers = "what the dashboard shows of the job"
        keep = 'set it on the nodes of the cluster, and name it: `secrets = ["{}"]`'
    wanted = {name: f"`pass_env` takes {name} along" for name in settings.pass_env}
    wanted |= {name: f"`env_vars.{name}` is read from {source}" for name, source in profile.from_environment.items()}
    wanted |= {
        name: f"`{key}` is read from {name}" for key, name in secret_variables(plan.config, plan.resolved.raw).items()
    }
    sources = profile.from_environment
    for name, why in wanted.items():
        if sources.get(name, name) in os.environ and name not in settings.secrets:
            yield Finding(
                "error",
                "secret-in-the-open",
                f"profile `{profile.name}`: {why}, and its value would stand in {readers}",
                "secrets",
                profile.origin("secrets"),
                keep.format(name),
            )


def _mirror(profile: Profile) -> Iterator[Finding]:
    """A job on Ray has to write somewhere that outlives it."""
    settings = profile.settings
    if isinstance(settings, RayProfile) and settings.remote_job_dir is None:
        yield Finding(
            "error",
            "no-remote-job-dir",
            f"profile `{profile.name}`: `remote_job_dir` is not set, so the cluster knows no place for the run",
            "remote_job_dir",
            profile.origin(""),
            "name a folder on storage that every node sees; where this machine sees it too, name it in `shared`",
        )


def _kept_by_lepton(profile: Profile) -> Iterator[Finding]:
    """A job of Lepton has to write into a volume: all else ends with its container."""
    settings = profile.settings
    if not isinstance(settings, LeptonProfile):
        return
    places = [mount.mount_path for mount in settings.mounts]
    if settings.root is not None and any(Path(settings.root).is_relative_to(place) for place in places):
        return
    why = f"`remote_job_dir` `{settings.root}` lies in none of its mounts" if places else "it has no `mounts`"
    yield Finding(
        "error",
        "run-not-kept",
        f"profile `{profile.name}`: {why}, so what a run writes would end with its container",
        "remote_job_dir" if places else "mounts",
        profile.origin("remote_job_dir" if places else "mounts"),
        f"name a folder below {listed(places)}, or mount a volume there"
        if places
        else 'mount a volume: `mounts = [{ from = "node-nfs:lustre", mount_path = "/mnt/nemotron" }]`',
    )


def _left_open(plan: Plan, profile: Profile) -> Iterator[Finding]:
    """What a batch job of Lepton says of itself, and the profile does not."""
    settings = profile.settings
    if not isinstance(settings, LeptonProfile) or settings.brings_up_ray(plan.engine):
        return
    for key, example in (("container_image", "nvcr.io/nvidia/nemo-rl:v0.7.0"), ("resource_shape", "gpu.8xh100-sxm")):
        if getattr(settings, key) is None:
            yield Finding(
                "warning",
                "job-left-open",
                f"profile `{profile.name}`: `{key}` is not set, and the request names none",
                key,
                profile.origin(key),
                f'name what the job needs, e.g. `{key} = "{example}"`',
            )


def _ray_of_lepton(plan: Plan, profile: Profile) -> Iterator[Finding]:
    """What Lepton takes no Ray cluster without."""
    settings = profile.settings
    if not isinstance(settings, LeptonProfile) or not settings.brings_up_ray(plan.engine):
        return
    for key, hint in (
        ("ray_version", "set it to what `ray --version` says in the image"),
        ("node_group", "a Ray cluster stands in one node group: name it"),
        ("resource_shape", 'what each of its nodes is: `resource_shape = "gpu.8xh100-sxm"`'),
    ):
        if getattr(settings, key) is None:
            yield Finding(
                "error",
                "ray-cluster-incomplete",
                f"profile `{profile.name}`: `{key}` is not set, and the job gets a Ray cluster",
                key,
                profile.origin(key),
                hint,
            )


def _open_token(profile: Profile) -> Iterator[Finding]:
    """A token that whoever listens can read."""
    settings = profile.settings
    if isinstance(settings, RayProfile) and settings.token_env is not None:
        key, address = "address", settings.address
        hint = "use https, or a tunnel: `ssh -L 8265:localhost:8265 HEAD` and `http://localhost:8265`"
    elif isinstance(settings, LeptonProfile):
        key, address = "workspace_url", settings.workspace_url or os.environ.get("LEPTON_WORKSPACE_URL", "")
        hint = "use https"
    else:
        return
    if in_the_clear(address):
        yield Finding(
            "warning",
            "token-in-the-clear",
            f"profile `{profile.name}`: the token goes to {address} in the clear",
            key,
            profile.origin(key),
            hint,
        )


def _paths(plan: Plan, profile: Profile, *, ships_assets: bool) -> Iterator[Finding]:
    """Files that the job reads and writes, against what it can reach."""
    reaches = plan.place.reaches
    if plan.place.is_here or reaches is None:
        return
    folders = ", ".join(f"`{folder}`" for folder in dict.fromkeys(reaches))
    below = f"use a path below {folders}, or add a mount to the profile" if folders else "add a mount to the profile"
    seen: set[str] = set()
    for role, file in [*(("read", one) for one in plan.inputs), *(("written", one) for one in plan.outputs)]:
        path = _path_of(plan, file)
        if plan.place.promise(file.path) is not None:
            continue  # a job that runs before this one makes it, where both can read
        if path is None or str(path) in seen:
            continue
        if any(path.is_relative_to(folder) for folder in reaches):
            if role == "written" and not profile.settings.may_write(path):
                message = f"{file.role}: `{path}` lies in a mount of `{profile.name}` that can only be read"
                yield _finding(plan, "path-outside-mounts", file, message, "take its `:ro` away, or use another path")
            continue
        seen.add(str(path))
        if path.is_relative_to(snapshot.ASSETS):
            if not ships_assets:
                yield _finding(
                    plan,
                    "asset-elsewhere",
                    file,
                    f"{file.role}: the shipped sample data stay here, the job has no `{path.name}`",
                    f"name files that the job can read, below {folders}"
                    if folders
                    else "add a mount with files of yours",
                )
            continue
        here = "a path of this machine" if os.path.exists(path) else "outside of what the job can reach"
        doing = "read" if role == "read" else "kept after the job"
        yield _finding(
            plan,
            "path-outside-mounts",
            file,
            f"{file.role}: `{path}` is {here}, and cannot be {doing} on `{profile.name}`",
            below,
        )


def _path_of(plan: Plan, file: FileRef) -> Path | None:
    """The absolute path of a file; None for what is no path of a file system, lies in the run folder, or below a home
    that only the place knows."""
    name = file.path
    run_dir = str(plan.runs_dir)
    if name == run_dir or name.startswith(f"{run_dir}{os.sep}") or homeless(name):
        return None
    path = expanded(name)
    is_path = path.is_absolute() or name.startswith((".", "~")) or os.path.exists(path)
    # `org/name` is a model of the hub, unless there is such a folder here.
    return Path(os.path.normpath(path.absolute())) if is_path else None


def _sizes(plan: Plan, profile: Profile) -> Iterator[Finding]:
    settings = profile.settings
    cluster: dict[str, Any] = plan.resolved.get("cluster") or {}
    if plan.engine == "embedded" and settings.nodes > 1:
        yield Finding(
            "warning",
            "nodes-without-use",
            f"profile `{profile.name}`: {settings.nodes} nodes for the embedded engine, which uses one",
            "nodes",
            profile.origin("nodes"),
            "set `nodes = 1`, or run with `engine=nemo_rl`",
        )
    if isinstance(settings, SlurmProfile) and settings.critic is not None and plan.resolved.get("critic"):
        yield Finding(
            "warning",
            "critic-in-the-open",
            f"profile `{profile.name}`: actor and critic talk over plain HTTP between their machines, token included",
            "critic",
            profile.origin("critic"),
            "leave `critic` out, so that they share a machine, or use a network that is yours alone",
        )
    if plan.engine != "nemo_rl":
        return
    if isinstance(settings, SlurmProfile) and settings.judge is not None and judge_beside(plan.config):
        yield Finding(
            "warning",
            "judge-in-the-open",
            f"profile `{profile.name}`: the judge is asked over plain HTTP between machines of the job, token included",
            "judge",
            profile.origin("judge"),
            "use a network that is yours alone, or a judge behind https: `judge.server=external` and its `base_url`",
        )
    if settings.nodes > 1 and isinstance(settings, LeptonProfile) and not settings.brings_up_ray(plan.engine):
        yield Finding(
            "error",
            "ray-over-nodes",
            f"profile `{profile.name}`: NeMo-RL over {settings.nodes} nodes needs Ray across them, which a batch job "
            "does not bring up",
            "launch",
            profile.origin("launch"),
            'set `launch = "ray"`, or leave it out; or `nodes = 1`',
        )
    yield from _cluster(plan, profile, cluster)


def _cluster(plan: Plan, profile: Profile, cluster: dict[str, Any]) -> Iterator[Finding]:
    """The profile's nodes are those that `cluster` names, and as many more as the judge needs."""
    settings, more = profile.settings, judge_nodes(plan.config)
    if _shares_a_node(plan, profile):
        return
    for key, name, want in (
        ("num_nodes", "nodes", cluster.get("num_nodes")),
        ("gpus_per_node", "gpus_per_node", cluster.get("gpus_per_node")),
    ):
        have = getattr(settings, name)
        if not isinstance(want, int) or have in ((want, want + more) if name == "nodes" else (want,)):
            continue
        yield Finding(
            "error",
            "cluster-does-not-fit",
            f"`cluster.{key}` is {want}, the profile `{profile.name}` gives {have}",
            f"cluster.{key}",
            plan.resolved.origin(f"cluster.{key}"),
            f"set `cluster.{key}={have}`, or `{name} = {want}` in the profile",
        )


def _judge_room(plan: Plan, profile: Profile) -> Iterator[Finding]:
    """NeMo-Gym starts the judge beside what `cluster` names, and waits for ever where there is no GPU left for it."""
    settings, judge = profile.settings, _judge_of(plan)
    if plan.engine != "nemo_rl" or not judge or _shares_a_node(plan, profile):
        return
    want, more = plan.resolved.get("cluster.num_nodes"), judge_nodes(plan.config)
    if not isinstance(want, int) or settings.nodes != want:
        return
    choices = [f"`{JUDGE_MODEL}.base_url` to a judge elsewhere"]
    if isinstance(settings, RayProfile | SlurmProfile | LeptonProfile):
        choices.insert(0, f"`nodes = {want + more}` in the profile")
    if settings.nodes == 1 and settings.gpus_per_node > judge:
        choices.append(f"`cluster.gpus_per_node={settings.gpus_per_node - judge}`, which leaves the judge a part of it")
    yield Finding(
        "error",
        "judge-without-gpus",
        f"`cluster` takes every GPU of the profile `{profile.name}`, and the judge needs {judge} of its own",
        "cluster.num_nodes",
        plan.resolved.origin("cluster.num_nodes"),
        f"set {', or '.join(choices)}",
    )


def _judge_of(plan: Plan) -> int:
    return gym_judge_gpus(plan.config)


def _shares_a_node(plan: Plan, profile: Profile) -> bool:
    """Whether `cluster` leaves the judge the GPUs that it needs on the one node."""
    settings, judge = profile.settings, _judge_of(plan)
    nodes, gpus = (plan.resolved.get(f"cluster.{key}") for key in ("num_nodes", "gpus_per_node"))
    return bool(judge) and (nodes, settings.nodes) == (1, 1) and gpus == settings.gpus_per_node - judge


def _finding(plan: Plan, name: str, file: FileRef, message: str, hint: str) -> Finding:
    origin = plan.resolved.origin(file.key) if file.key else None
    return Finding("error", name, message, file.key, origin, hint)
