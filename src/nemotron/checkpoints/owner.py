"""Whose a checkpoint folder is: one run's. Two runs in it would delete and continue each other's checkpoints.

``owner.json`` names the run, ``.owner.lock`` is held while a process of it works. The critic of a PPO run writes into
the checkpoint that its actor has begun and claims nothing: the two are one pair, and the actor is its owner.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path

from nemotron.checkpoints.store import PLACE, CheckpointStore
from nemotron.disk import lock
from nemotron.disk.atomic import write_atomic
from nemotron.disk.documents import read_object
from nemotron.disk.faults import output_errors
from nemotron.errors import OutputError

OWNER = "owner.json"
LOCK = ".owner.lock"
JOB = "job.json"
"""What makes a folder that of a run."""


@dataclass(frozen=True, slots=True)
class Owner:
    """The run that writes here."""

    run: str
    """Its id."""
    folder: str
    """Where it lies."""


def claim(folder: Path, owner: Owner) -> None:
    """Make ``folder`` the owner's until :func:`release` or the end of this process; it is made when it is not there.

    Raises:
        OutputError: another run holds it or has checkpoints in it, or it cannot be written.
    """
    with output_errors(folder, what="checkpoints to ", place=PLACE):
        folder.mkdir(parents=True, exist_ok=True)
    before = owner_of(folder)
    mine = _belongs(folder, owner)
    if not mine and before is not None and before.run == owner.run and _is_copy(owner, before):
        raise OutputError(
            f"the checkpoint folder `{folder}` is that of the run in `{before.folder}`, of which this one is a copy",
            hint="go on with that run, or start one from its weights with a `checkpointing.checkpoint_dir` of its own",
        )
    whose = f" of run `{before.run}`" if before and before.run != owner.run else ""
    lock.acquire(
        folder / LOCK,
        what=f"the checkpoint folder `{folder}`{whose}",
        hint="set another `checkpointing.checkpoint_dir`, or wait until that run ends",
    )
    refusal = None if mine else used_by_another(folder, owner.run)
    if refusal is not None:
        release(folder)
        raise refusal
    if before != owner:
        write_atomic(folder / OWNER, json.dumps(asdict(owner), indent=2).encode() + b"\n")


def release(folder: Path) -> None:
    """Nobody of this process works in ``folder`` any more; it stays its owner's."""
    lock.release(folder / LOCK)


def owner_of(folder: Path) -> Owner | None:
    """The run that claimed ``folder``; ``None`` when nobody has, or nobody can say who."""
    try:
        said = read_object(folder / OWNER)
        return Owner(str(said["run"]), str(said["folder"]))
    except (OSError, ValueError, KeyError, TypeError):
        return None


def used_by_another(folder: Path, run: str | None) -> OutputError | None:
    """Why the run of id ``run`` (``None``: a new one) cannot have ``folder``; ``None`` when it can. Writes nothing."""
    owner = owner_of(folder)
    if owner is not None and owner.run == run:
        return None
    try:
        newest = CheckpointStore(folder, None, None, True).latest()
        # A lock of this process is the asking run's own.
        live = run is None and lock.is_held(folder / LOCK)
    except PermissionError:
        return None  # that it cannot be written either is said elsewhere
    if newest is None and not live:
        return None
    elsewhere = "set another `checkpointing.checkpoint_dir`"
    if newest is not None:
        elsewhere += f", or start from its weights with `policy.pretrained_checkpoint.path={newest}`"
    if owner is None:
        who = "a run that left no name here"
    else:
        who = f"run `{owner.run}`"
        if Path(owner.folder).is_dir():
            elsewhere = f"go on with that run by `nemotron runs resume {owner.folder}`, {elsewhere}"
    if live:
        return OutputError(
            f"the checkpoint folder `{folder}` is in use by {lock.holder(folder / LOCK)}, {who}", hint=elsewhere
        )
    return OutputError(f"the checkpoint folder `{folder}` holds checkpoints of {who}", hint=elsewhere)


def _is_copy(owner: Owner, before: Owner) -> bool:
    """Whether the run that claimed a folder still lies elsewhere; one that was moved does not."""
    here, there = Path(owner.folder), Path(before.folder)
    return here.resolve() != there.resolve() and (there / JOB).is_file()


def _belongs(folder: Path, owner: Owner) -> bool:
    """Whether ``folder`` lies in the run folder of ``owner``: then it is nobody else's, whatever is written in it."""
    return folder.resolve().is_relative_to(Path(owner.folder).resolve())
