"""What a machine, a container or a place of a profile has and lacks, as far as it can be known from here.

Nothing is submitted and nothing is written but what ``profiles check`` writes: the folder of runs on the cluster.
"""

from __future__ import annotations

import os
import platform
import shutil
import socket
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Literal
from urllib.parse import urlsplit

from nemotron import __version__
from nemotron.compile.jobs.base import EMBEDDED_MODULES
from nemotron.engines.nemo_rl.folder import find_tree
from nemotron.engines.nemo_rl.version import CURRENT
from nemotron.errors import NemotronError, NotAvailableError
from nemotron.executors.launch import kind_of
from nemotron.executors.registry import executor
from nemotron.install import install_extra
from nemotron.place import Place
from nemotron.profiles.load import Profile
from nemotron.profiles.model import Contained, LeptonMount, LeptonProfile, SlurmProfile
from nemotron.sandbox.box import containment
from nemotron.suggest import listed

State = Literal["ok", "lacks", "unknown"]
LIBRARIES = (("vllm", "vllm"), ("ray", "ray"), ("nemo_gym", "nemo-gym"))
"""Module and distribution of what NeMo-RL's container brings."""
LEAST_FREE = 5 * 2**30
"""Bytes; a checkpoint of the smallest real model with its optimizer does not fit in less."""
HUB = "https://huggingface.co"
_CONNECT_S = 3.0
_CONTAINER = "nvcr.io/nvidia/nemo-rl"


@dataclass(frozen=True, slots=True)
class Check:
    """One line of the page."""

    what: str
    state: State
    found: str
    fix: str | None = None
    """How to get what is lacking."""
    needed_by: str | None = None
    """The engine that cannot run without it."""


def here(env: Mapping[str, str], runs_dir: Path) -> list[Check]:
    """This machine, or the container that this command runs in."""
    place = Place.this_machine()
    return [
        Check("nemotron", "ok", f"{__version__} on Python {platform.python_version()}"),
        _libraries(place),
        _sandbox(),
        _cuda(place),
        _nemo_rl(env),
        *_versions(),
        *_disks(place, runs_dir),
        _hub(place, env),
    ]


def there(profile: Profile, env: Mapping[str, str]) -> list[Check]:
    """The place of a profile: what the profile says, and what the place answers."""
    settings = profile.settings
    checks = [Check("profile", "ok", f"{settings.kind}: {settings.nodes} x {settings.gpus_per_node} GPUs")]
    if profile.unfilled:
        fix = "`nemotron profiles init` copies the shipped profiles; fill in what stands in <>"
        checks.append(Check("placeholders", "lacks", listed(profile.unfilled), fix))
    if settings.kind == "local":
        # What another Python has, the profile's own check says as far as it can be known.
        checks += [] if settings.python else [_libraries(Place.this_machine())]
        checks.append(_nemo_rl({**env, **settings.env_vars}))
    else:
        checks.append(_nemo_rl_there(profile))
    if isinstance(settings, SlurmProfile):
        checks += [_mount(mount) for mount in settings.mounts]
    if isinstance(settings, LeptonProfile):
        checks += [_volume(mount) for mount in settings.mounts]
    for name in settings.pass_env:
        is_set = name in env
        checks.append(
            Check(f"variable {name}", "ok" if is_set else "unknown", "set here" if is_set else "not set here")
        )
    if not profile.unfilled:
        checks += _answers(profile)
    return checks


def engines(checks: list[Check]) -> dict[str, bool]:
    """Which engines could run here."""
    lacking = {check.needed_by for check in checks if check.state == "lacks"}
    return {name: name not in lacking for name in ("embedded", "nemo_rl")}


def _libraries(place: Place) -> Check:
    missing = place.lacking(EMBEDDED_MODULES)
    if missing:
        return Check("libraries", "lacks", f"not installed: {listed(missing)}", install_extra("local"), "embedded")
    return Check("libraries", "ok", f"torch {_version('torch')}, transformers {_version('transformers')}")


def _sandbox() -> Check:
    level, why = containment()
    reasons = "; ".join(f"no {name}: {reason}" for name, reason in why.items())
    found = f"code of an answer is held by `{level}`"
    return Check("sandbox", "ok", f"{found} ({reasons})" if reasons else found)


def _cuda(place: Place) -> Check:
    if not place.has_cuda:
        fix = "run on a machine with one; in a container start it with its GPUs (`--gpus all`)"
        return Check("CUDA", "lacks", "no device is visible", fix, "nemo_rl")
    names = [path.read_text() for path in sorted(Path("/proc/driver/nvidia/gpus").glob("*/information"))]
    models = [
        line.partition(":")[2].strip() for text in names for line in text.splitlines() if line.startswith("Model")
    ]
    return Check("CUDA", "ok", f"{len(models)} x {models[0]}" if models else "a device is visible")


def _nemo_rl(env: Mapping[str, str]) -> Check:
    try:
        tree = find_tree(CURRENT.gym_script, env)
    except NotAvailableError as error:
        fix = f"run in `{_CONTAINER}:{CURRENT.name}`, or name a source tree in NEMOTRON_NEMO_RL_ROOT"
        return Check("NeMo-RL", "lacks", error.message, fix, "nemo_rl")
    version = _version("nemo_rl")
    return Check("NeMo-RL", "ok", f"{version or 'version not known'} in `{tree.root}`, Python `{tree.python}`")


def _versions() -> Iterator[Check]:
    for module, distribution in LIBRARIES:
        version = _version(distribution)
        found = version or "not in this Python; NeMo-RL's container has it in one of its own"
        yield Check(module, "ok" if version else "unknown", found)


def _disks(place: Place, runs_dir: Path) -> Iterator[Check]:
    folders = [("disk of runs", runs_dir)] + ([("disk of models", place.hub_cache)] if place.hub_cache else [])
    for what, folder in folders:
        # What is not there yet will be made on the disk of what is.
        there = next(path for path in (folder.absolute(), *folder.absolute().parents) if path.exists())
        free = shutil.disk_usage(there).free
        short = free < LEAST_FREE
        found = f"{free / 2**30:,.0f} GiB free for `{folder}`"
        fix = "choose another with `--runs-dir`" if folder == runs_dir else "set HF_HOME to another disk"
        yield Check(what, "lacks" if short else "ok", found, fix if short else None)


def _hub(place: Place, env: Mapping[str, str]) -> Check:
    if place.offline:
        return Check("hub", "ok", "switched off (HF_HUB_OFFLINE): models come from disk alone")
    address = urlsplit(env.get("HF_ENDPOINT") or HUB)
    host, port = address.hostname or "huggingface.co", address.port or (443 if address.scheme == "https" else 80)
    who = "with HF_TOKEN" if env.get("HF_TOKEN") else "without HF_TOKEN, so no gated models"
    try:
        with socket.create_connection((host, port), timeout=_CONNECT_S):
            return Check("hub", "ok", f"{host} answers, {who}")
    except OSError as error:
        if any(env.get(name) for name in ("HTTPS_PROXY", "https_proxy")):
            return Check("hub", "unknown", f"{host} is behind a proxy")
        fix = "download models where there is a network, and set HF_HUB_OFFLINE=1"
        return Check("hub", "unknown", f"{host} does not answer ({error.strerror or 'no answer in time'})", fix)


def _nemo_rl_there(profile: Profile) -> Check:
    settings = profile.settings
    if settings.has_nemo_rl is not None:
        state: State = "ok" if settings.has_nemo_rl else "lacks"
        image = f'set `container_image = "{_CONTAINER}:{CURRENT.name}"`'
        install = image if isinstance(settings, Contained) else "say `has_nemo_rl = true` when its nodes have it"
        fix = None if settings.has_nemo_rl else install
        return Check("NeMo-RL", state, "the profile says so: `has_nemo_rl`", fix)
    image = settings.image or ""
    if image.startswith(_CONTAINER):
        version = image.rpartition(":")[2]
        other = version != CURRENT.name
        found = f"`{image}`" + (f"; configs are made for {CURRENT.name}" if other else "")
        return Check("NeMo-RL", "unknown" if other else "ok", found)
    return Check("NeMo-RL", "unknown", "the profile does not say", "set `has_nemo_rl` in it")


def _mount(mount: str) -> Check:
    source = mount.partition(":")[0]
    if source.startswith("/") and Path(source).is_dir():
        return Check(f"mount {source}", "ok", "is here, too")
    return Check(f"mount {source}", "unknown", "not on this machine; nodes have to have it")


def _volume(mount: LeptonMount) -> Check:
    folder = "" if mount.path == "/" else f", of it `{mount.path}`"
    return Check(f"mount {mount.mount_path}", "unknown", f"volume `{mount.from_}` of the workspace{folder}")


def _answers(profile: Profile) -> Iterator[Check]:
    try:
        for what, answer in executor(kind_of(profile)).check(profile):
            yield Check(what, "ok", answer)
    except NemotronError as error:
        yield Check(profile.settings.kind, "lacks", error.message, error.hint)


def _version(distribution: str) -> str | None:
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return None


def runs_dir_of(env: Mapping[str, str]) -> Path:
    """Where runs go when nobody says otherwise."""
    return Path(env.get("NEMOTRON_RUNS_DIR") or os.path.join(os.curdir, "runs"))
