"""Checkpoints of a run in NeMo-RL's layout: written beside, fsynced, renamed; the best and the latest kept.

::

    <checkpoint_dir>/step_<N>/              N counts finished optimizer rounds, from 1
        training_info.json                  counters and metrics
        config.yaml                         the resolved config
        policy/weights/hf/                  Hugging Face safetensors in float32 (masters)
        policy/optimizer/  policy/tokenizer/
        train_dataloader.pt  rng_state.pt

What is on its way in or out is called ``tmp_step_<N>...``: a resumed run ignores it and removes it. A checkpoint that
is pruned or replaced is renamed first and removed beside training, so ``step_<N>`` is whole whenever the process dies.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import sys
import tempfile
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from nemotron.disk.atomic import sync, sync_tree
from nemotron.disk.documents import read_object
from nemotron.disk.faults import RESUME, output_errors
from nemotron.errors import ArtifactError, OutputError

PLACE = "set `checkpointing.checkpoint_dir` to a folder you may write to"
_AFTER = f"{RESUME}: it begins at the last checkpoint that is whole"
_STEP = re.compile(r"step_(\d+)")


@dataclass(frozen=True)
class CheckpointStore:
    """The ``checkpoints`` folder of one run.

    ``metric_name`` is a NeMo-RL name such as ``val:accuracy``; with ``None`` the newest ``keep_top_k`` are kept.
    """

    folder: Path
    keep_top_k: int | None
    metric_name: str | None
    higher_is_better: bool
    _removals: list[threading.Thread] = field(default_factory=list, init=False, repr=False, compare=False)

    def steps(self) -> list[int]:
        """Finished checkpoints, oldest first."""
        if not self.folder.is_dir():
            return []
        found = (_STEP.fullmatch(entry.name) for entry in self.folder.iterdir())
        return sorted(int(match[1]) for match in found if match)

    def latest(self) -> Path | None:
        """The newest complete checkpoint; it is complete because only a rename makes that name."""
        steps = self.steps()
        return self.folder / f"step_{steps[-1]}" if steps else None

    def recover(self) -> None:
        """Remove what a killed run left half-written, and put back a checkpoint caught between two renames.

        Raises:
            OutputError: no checkpoint could be written here; better known now than after the first training steps.
        """
        with output_errors(self.folder, what="checkpoints to ", place=PLACE):
            self.folder.mkdir(parents=True, exist_ok=True)
            tempfile.TemporaryFile(dir=self.folder).close()
        for entry in list(self.folder.iterdir()):
            final = self.folder / entry.name.removeprefix("old_")
            if entry.name.startswith("old_step_") and not final.exists():
                with output_errors(final, what="checkpoint ", place=PLACE):
                    entry.rename(final)
            elif entry.name.startswith(("tmp_step_", "old_step_")):
                _remove(entry)

    def wait(self) -> None:
        """Wait until what was pruned is gone from the disk, too."""
        while self._removals:
            self._removals.pop().join()

    def save(
        self,
        step: int,
        info: Mapping[str, Any],
        write: Callable[[Path], None],
        finish: Callable[[Path], None] | None = None,
    ) -> Path:
        """Write checkpoint ``step``: ``write(folder)`` fills it, then it appears under its name in one rename.

        ``finish(folder)`` is called when all that is on the disk, for the little that waits for work beside it.

        Raises:
            OutputError: the disk is full or the folder cannot be written; earlier checkpoints are untouched.
        """
        final = self.folder / f"step_{step}"
        temporary = self.folder / f"tmp_step_{step}"
        try:
            with output_errors(final, what="checkpoint ", place=PLACE, after=_AFTER):
                if os.path.lexists(temporary):
                    _take_away(temporary)
                temporary.mkdir(parents=True)
                write(temporary)
                (temporary / "training_info.json").write_text(json.dumps(dict(info), indent=2) + "\n")
                sync_tree(temporary)
                if finish is not None:
                    finish(temporary)
                    sync_tree(temporary)
                self._publish(temporary, final)
        except OutputError:
            shutil.rmtree(temporary, ignore_errors=True)
            raise
        self._prune()
        return final

    def _publish(self, temporary: Path, final: Path) -> None:
        replaced = self.folder / f"old_{final.name}"
        if final.exists():
            final.rename(replaced)
        temporary.rename(final)
        sync(self.folder)
        if replaced.exists():
            self._discard(replaced)

    def _prune(self) -> None:
        """Never fatal: what could not be removed is said, and tried again after the next checkpoint."""
        if self.keep_top_k is None:
            return
        steps = self.steps()
        ranked = sorted(steps, key=lambda step: (self._rank(step), step), reverse=True)
        for step in sorted(set(steps[:-1]) - set(ranked[: self.keep_top_k])):
            self._discard(self.folder / f"step_{step}")

    def _discard(self, checkpoint: Path) -> None:
        """Take a checkpoint's name away at once, its files beside training."""
        doomed = self.folder / f"tmp_{checkpoint.name.removeprefix('old_')}.pruned"
        try:
            if doomed.exists():
                self.wait()
                shutil.rmtree(doomed)
            checkpoint.rename(doomed)
        except OSError as error:
            _warn(f"the old checkpoint `{checkpoint}` stays: {error.strerror or error}")
            return
        self._removals[:] = [one for one in self._removals if one.is_alive()]
        removal = threading.Thread(target=_remove, args=(doomed,), name="prune-checkpoints")
        removal.start()
        self._removals.append(removal)

    def _rank(self, step: int) -> float:
        """Sort key of a checkpoint; one without the metric ranks worst, as upstream."""
        if self.metric_name is None:
            return 0.0
        try:
            value = read_info(self.folder / f"step_{step}").get(self.metric_name)
        except ArtifactError as error:
            _warn(f"{error.message}; it ranks last")
            value = None
        if value is None:
            return float("-inf")
        return float(value) if self.higher_is_better else -float(value)


def _remove(path: Path) -> None:
    """Remove a folder that has no meaning any more; a failure is no reason to stop."""
    try:
        _take_away(path)
    except OSError as error:
        _warn(f"`{path}` cannot be removed: {error.strerror or error}")


def _take_away(path: Path) -> None:
    """Remove a folder, or what somebody left under its name: of a link the link, never what it leads to."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink()


def _warn(text: str) -> None:
    print(f"warning: {text}", file=sys.stderr)


def damaged_hint(checkpoint: Path) -> str:
    """How a run goes on when something of its own newest checkpoint is damaged: of a part alone it cannot."""
    return f"remove `{checkpoint}`; the run then resumes from the checkpoint before it"


def read_info(checkpoint: Path) -> dict[str, Any]:
    """``training_info.json`` of a checkpoint.

    Raises:
        ArtifactError: it is missing or not JSON.
    """
    path = checkpoint / "training_info.json"
    try:
        info = read_object(path)
    except (OSError, ValueError) as error:
        raise ArtifactError(
            f"checkpoint `{checkpoint}` has no readable training_info.json",
            hint=damaged_hint(checkpoint),
        ) from error
    return info
