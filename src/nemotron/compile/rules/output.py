"""Rules of what the run writes. Nothing is written here."""

from __future__ import annotations

import math
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

from nemotron.checkpoints.owner import used_by_another
from nemotron.compile.jobs.base import AnyJob
from nemotron.compile.jobs.step import AnyStepJob
from nemotron.compile.probes.folders import existing
from nemotron.compile.probes.model_files import read_model
from nemotron.compile.rules.base import Rules
from nemotron.compile.secrets import with_password
from nemotron.disk.home import expanded, homeless
from nemotron.errors import Finding, OutputError

folders: Rules[AnyStepJob] = Rules("folders")
rules: Rules[AnyJob] = Rules("checkpoints")
TRAINED = ("policy", "critic")
"""Roles of the models that a checkpoint holds."""


@folders.rule("password-in-url")
def addresses_hold_no_password(job: AnyStepJob) -> Iterator[Finding]:
    """A run folder holds every address of its config, and messages say them."""
    for key in with_password(job.resolved.values):
        yield job.error(
            key,
            f"`{key}` holds a password in its address, which would be written to the run folder",
            hint="give a token where there is a key for one (`api_key`), or let a proxy of yours add the password",
        )


@folders.rule("output-folder", number=80)
def homes_are_known(job: AnyStepJob) -> Iterator[Finding]:
    """The home in `~somebody/runs` is there, where the job runs on this machine; else a folder of that name is made."""
    keys = dict.fromkeys([*(key for key, _ in job.folders().values() if key), "logger.log_dir"])
    for key in keys if job.place.is_here else ():
        if homeless(path := str(job.resolved.get(key) or "")):
            message = f"`{path}` cannot be made: there is no home folder `{path.partition('/')[0]}` on this machine"
            yield job.error(key, message, kind=OutputError, hint=f"set `{key}`")


@folders.rule("output-folder", number=80)
def folders_can_be_written(job: AnyStepJob) -> Iterator[Finding]:
    """The nearest folder that exists must let us create the rest."""
    seen: set[Path] = set()
    for purpose, (key, path) in job.folders().items():
        place = existing(path) if job.sees(path) else None
        if place is None or place in seen:
            continue
        seen.add(place)
        wrong = "is not a folder" if not place.is_dir() else "is not writable"
        if not place.is_dir() or not os.access(place, os.W_OK | os.X_OK):
            yield job.error(
                key,
                f"the {purpose} `{path}` cannot be made: `{place}` {wrong}",
                kind=OutputError,
                hint=f"set `{key}`" if key else "choose another place with `--runs-dir`",
            )


@rules.rule("checkpoint-folder-owner")
def checkpoint_folder_is_free(job: AnyJob) -> Iterator[Finding]:
    """A new run would go on from another run's checkpoints, and each would delete the other's."""
    folder = job.config.checkpointing.checkpoint_dir
    # A critic alone writes into the checkpoints of its actor, which owns them.
    if job.resume or getattr(job.config, "only", None) == "critic" or not job.sees(folder):
        return
    refusal = used_by_another(expanded(folder), run=None)
    if refusal is not None:
        yield job.error("checkpointing.checkpoint_dir", refusal.message, kind=OutputError, hint=refusal.hint)


@rules.rule("disk-space")
def checkpoints_fit(job: AnyJob) -> Iterator[Finding]:
    """Weights and two moments in float32 of all that is trained, for every checkpoint that is kept at once."""
    settings = job.config.checkpointing
    models = [read_model(ref.name, job.place) for ref in job.models() if ref.role in TRAINED]
    sizes = [model.parameters for model in models if model is not None and model.parameters is not None]
    if not settings.enabled or not sizes or not job.sees(settings.checkpoint_dir):
        return
    # Only NeMo-RL can leave the optimizer out.
    bare = job.engine != "embedded" and settings.save_optimizer is False
    one = sum(sizes) * (4 if bare else 12)
    kept = _kept_at_once(job)
    free = shutil.disk_usage(existing(Path(settings.checkpoint_dir))).free
    if one * kept > free:
        fewer = "lower `checkpointing.keep_top_k`" if settings.keep_top_k else "set `checkpointing.keep_top_k=1`"
        smaller = "" if bare or job.engine == "embedded" else ", or set `checkpointing.save_optimizer=false`"
        yield job.warning(
            "checkpointing.keep_top_k",
            f"{kept} checkpoints of {one / 2**30:.1f} GiB need more than the {free / 2**30:.1f} GiB that are free",
            hint=fewer + smaller,
        )


def _kept_at_once(job: AnyJob) -> int:
    """The best, the newest and the one that is being written; without a limit all of them."""
    settings = job.config.checkpointing
    if settings.keep_top_k is not None:
        return settings.keep_top_k + 2
    return math.ceil(job.steps / settings.save_period) if job.steps and settings.save_period > 0 else 5
