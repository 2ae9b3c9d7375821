"""Rules of what the run writes. Nothing is written here."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

from nemotron.checkpoints.owner import used_by_another
from nemotron.compile.jobs.base import AnyJob
from nemotron.compile.jobs.files import folders
from nemotron.compile.probes.folders import existing
from nemotron.compile.probes.model_files import read_model
from nemotron.compile.rules.base import Rules
from nemotron.errors import Finding, OutputError

rules: Rules[AnyJob] = Rules("output")


@rules.rule("output-folder", number=80)
def folders_can_be_written(job: AnyJob) -> Iterator[Finding]:
    """The nearest folder that exists must let us create the rest."""
    seen: set[Path] = set()
    for purpose, (key, path) in folders(job).items():
        if not job.sees(path):
            continue
        place = existing(path)
        if place in seen:
            continue
        seen.add(place)
        if not place.is_dir():
            yield job.error(key, f"the {purpose} `{path}` cannot be made: `{place}` is not a folder", kind=OutputError)
        elif not os.access(place, os.W_OK | os.X_OK):
            yield job.error(
                key,
                f"the {purpose} `{path}` cannot be made: `{place}` is not writable",
                kind=OutputError,
                hint="choose another place with `--runs-dir`" if not key else f"set `{key}`",
            )


@rules.rule("checkpoint-folder-owner")
def checkpoint_folder_is_free(job: AnyJob) -> Iterator[Finding]:
    """A new run would go on from another run's checkpoints, and each would delete the other's."""
    folder = job.config.checkpointing.checkpoint_dir
    # A critic alone writes into the checkpoints of its actor, which owns them.
    if job.resume or getattr(job.config, "only", None) == "critic" or not job.sees(folder):
        return
    refusal = used_by_another(Path(folder).expanduser(), run=None)
    if refusal is not None:
        yield job.error("checkpointing.checkpoint_dir", refusal.message, kind=OutputError, hint=refusal.hint)


@rules.rule("disk-space")
def checkpoints_fit(job: AnyJob) -> Iterator[Finding]:
    """Weights and two optimizer moments in float32, for every checkpoint that is kept at once."""
    checkpointing = job.config.checkpointing
    model = read_model(job.config.policy.model_name, job.place)
    if not checkpointing.enabled or model is None or model.parameters is None:
        return
    if not job.sees(checkpointing.checkpoint_dir):
        return
    one = model.parameters * (12 if checkpointing.save_optimizer is not False else 4)
    kept = (checkpointing.keep_top_k or 3) + 2
    free = shutil.disk_usage(existing(Path(checkpointing.checkpoint_dir))).free
    if one * kept > free:
        yield job.warning(
            "checkpointing.keep_top_k",
            f"{kept} checkpoints of {one / 2**30:.1f} GiB need more than the {free / 2**30:.1f} GiB that are free",
            hint="lower `checkpointing.keep_top_k`, or set `checkpointing.save_optimizer=false`",
        )
