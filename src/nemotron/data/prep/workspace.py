"""The output folder and the working state in it: who may write, what is there already, what an attempt left behind."""

from __future__ import annotations

import resource
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import orjson

from nemotron.data.manifest import FILE, read_manifest, resolve_manifest
from nemotron.disk.atomic import remove_drafts, write_atomic
from nemotron.disk.documents import read_object
from nemotron.disk.faults import output_errors
from nemotron.disk.lock import alone
from nemotron.errors import DataError, OutputError

WORK = ".rl_prep"
PLACE, AFTER = "set `output_dir` to a folder that you may write to", ", then give the command again"
LOCK_PATIENCE_S = 20.0


@dataclass(frozen=True)
class Workspace:
    """An output folder, and the work folder of one plan in it.

    ``plan`` is a hash of all that decides what work files hold; those of another plan are of no use.
    """

    output: Path
    plan: str

    @property
    def manifest(self) -> Path:
        """Where the manifest goes."""
        return self.output / FILE

    @property
    def folder(self) -> Path:
        """Work files of this plan."""
        return self.output / WORK / self.plan

    @property
    def pieces(self) -> Path:
        """Pieces of the first pass."""
        return self.folder / "pieces"

    @property
    def receipts(self) -> Path:
        """Receipts of finished shards."""
        return self.folder / "shards"

    def check(self) -> None:
        """Look whose data are there; nothing is written.

        Raises:
            OutputError: the folder holds another data set.
        """
        # Work files of this plan beside a manifest: a version that wrote the state last was killed before it did.
        if self.manifest.exists() and self._finished_plan() != self.plan and not self.folder.is_dir():
            raise OutputError(
                f"`{self.output}` holds another data set, or one of other input or config",
                hint="set `force=true` to replace it, or choose another `output_dir`",
            )

    def ready(self) -> dict[str, Any] | None:
        """The manifest, when exactly this output is there already.

        Raises:
            OutputError: the folder holds another data set.
        """
        self.check()
        if not self.manifest.exists():
            return None
        try:
            resolve_manifest(self.manifest)
        except DataError:
            # A shard is missing or was changed: it is made again.
            return None
        return read_manifest(self.manifest)

    def tidy(self) -> None:
        """Remove what an attempt left that was killed when the manifest was there.

        Raises:
            OutputError: it cannot be written.
        """
        if self.folder.is_dir():
            # Without the work files the state alone says whose the manifest is.
            write_atomic(self._state, orjson.dumps({"plan": self.plan}))
            shutil.rmtree(self.folder, ignore_errors=True)

    def start(self, *, afresh: bool) -> None:
        """Make the work folders; what other plans left (or all, when ``afresh``) goes, an old manifest first.

        Raises:
            OutputError: it cannot be written.
        """
        with output_errors(self.output, place=PLACE, after=AFTER):
            if self.manifest.exists():
                old = _listed_files(self.manifest)
                # Never may a manifest name shards that are not there.
                self.manifest.unlink()
                for name in old:
                    (self.output / name).unlink(missing_ok=True)
            for folder in (self.output / WORK).iterdir():
                if folder.is_dir() and (folder != self.folder or afresh):
                    for receipt in folder.glob("shards/*.json"):
                        (self.output / receipt.stem).unlink(missing_ok=True)
                    shutil.rmtree(folder)
            self.pieces.mkdir(parents=True, exist_ok=True)
            self.receipts.mkdir(exist_ok=True)

    def finish(self, manifest: dict[str, Any]) -> dict[str, Any]:
        """Write the manifest, after which the work files go; returns it as it reads.

        The state comes first: without a manifest it means nothing, and a manifest without it is somebody else's.

        Raises:
            OutputError: it cannot be written.
        """
        write_atomic(self._state, orjson.dumps({"plan": self.plan}))
        write_atomic(self.manifest, orjson.dumps(manifest, option=orjson.OPT_INDENT_2) + b"\n")
        shutil.rmtree(self.folder, ignore_errors=True)
        return read_manifest(self.manifest)

    @property
    def _state(self) -> Path:
        return self.output / WORK / "state.json"

    def _finished_plan(self) -> str | None:
        """The plan of the manifest that is there."""
        try:
            return str(read_object(self._state)["plan"])
        except (OSError, ValueError, KeyError):
            return None


def _listed_files(manifest: Path) -> list[str]:
    """Files that a manifest names, as long as they are plain names beside it."""
    try:
        value = read_manifest(manifest)
    except DataError:
        return []
    names = [value.get("rejects", {}).get("path", "")]
    for split in value["splits"].values():
        for entry in split.values():
            if isinstance(entry, list):
                names += [item.get("path", "") for item in entry if isinstance(item, dict)]
    return [name for name in names if name and "/" not in name]


def allow_files(wanted: int) -> None:
    """Every piece stays open while the pieces are merged."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft < wanted:
        resource.setrlimit(
            resource.RLIMIT_NOFILE, (wanted if hard == resource.RLIM_INFINITY else min(wanted, hard), hard)
        )


@contextmanager
def locked(output: Path) -> Iterator[None]:
    """One run at a time in an output folder; helpers of a run that was killed may need a moment to notice.

    Raises:
        OutputError: another run writes to this folder.
    """
    path = output / WORK / "lock"
    with output_errors(output, place=PLACE, after=AFTER):
        path.parent.mkdir(parents=True, exist_ok=True)
    with alone(
        path,
        busy=f"another run prepares data in `{output}`",
        hint="wait for it, or choose another `output_dir`",
        patience_s=LOCK_PATIENCE_S,
    ):
        remove_drafts(output, path.parent)
        yield
