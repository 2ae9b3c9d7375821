"""Checkpoints of a run in NeMo-RL's layout: written beside, fsynced, renamed; the best and the latest kept.

::

    <checkpoint_dir>/step_<N>/              N counts finished optimizer rounds, from 1
        training_info.json                  counters and metrics
        config.yaml                         the resolved config
        policy/weights/hf/                  Hugging Face safetensors in float32 (masters)
        policy/optimizer/  policy/tokenizer/
        train_dataloader.pt  rng_state.pt

A crash leaves at most ``tmp_step_<N>``, which a resumed run ignores and removes.
"""

from __future__ import annotations

import json
import re
import shutil
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nemotron.checkpoints.publish import sync, sync_tree
from nemotron.errors import ArtifactError, OutputError

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
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            tempfile.TemporaryFile(dir=self.folder).close()
        except OSError as error:
            raise OutputError(
                f"cannot write checkpoints to `{self.folder}`: {error.strerror or error}",
                hint="set `checkpointing.checkpoint_dir` to a folder you may write to",
            ) from error
        for entry in list(self.folder.iterdir()):
            if entry.name.startswith("tmp_step_"):
                shutil.rmtree(entry)
            elif entry.name.startswith("old_step_"):
                final = self.folder / entry.name.removeprefix("old_")
                if final.exists():
                    shutil.rmtree(entry)
                else:
                    entry.rename(final)

    def save(self, step: int, info: Mapping[str, Any], write: Callable[[Path], None]) -> Path:
        """Write checkpoint ``step``: ``write(folder)`` fills it, then it appears under its name in one rename.

        Raises:
            OutputError: the disk is full or the folder cannot be written; earlier checkpoints are untouched.
        """
        final = self.folder / f"step_{step}"
        temporary = self.folder / f"tmp_step_{step}"
        try:
            if temporary.exists():
                shutil.rmtree(temporary)
            temporary.mkdir(parents=True)
            write(temporary)
            (temporary / "training_info.json").write_text(json.dumps(dict(info), indent=2) + "\n")
            sync_tree(temporary)
            self._publish(temporary, final)
            self._prune()
        except OutputError:
            shutil.rmtree(temporary, ignore_errors=True)
            raise
        except OSError as error:
            shutil.rmtree(temporary, ignore_errors=True)
            raise OutputError(
                f"cannot write checkpoint `{final}`: {error.strerror or error}",
                hint="free disk space or set `checkpointing.checkpoint_dir`; the run resumes from the last checkpoint",
            ) from error
        return final

    def _publish(self, temporary: Path, final: Path) -> None:
        replaced = self.folder / f"old_{final.name}"
        if final.exists():
            final.rename(replaced)
        temporary.rename(final)
        sync(self.folder)
        if replaced.exists():
            shutil.rmtree(replaced)

    def _prune(self) -> None:
        if self.keep_top_k is None:
            return
        steps = self.steps()
        ranked = sorted(steps, key=lambda step: (self._rank(step), step), reverse=True)
        for step in set(steps[:-1]) - set(ranked[: self.keep_top_k]):
            shutil.rmtree(self.folder / f"step_{step}")

    def _rank(self, step: int) -> float:
        """Sort key of a checkpoint; one without the metric ranks worst, as upstream."""
        if self.metric_name is None:
            return 0.0
        value = read_info(self.folder / f"step_{step}").get(self.metric_name)
        if value is None:
            return float("-inf")
        return float(value) if self.higher_is_better else -float(value)


def read_info(checkpoint: Path) -> dict[str, Any]:
    """``training_info.json`` of a checkpoint.

    Raises:
        ArtifactError: it is missing or not JSON.
    """
    path = checkpoint / "training_info.json"
    try:
        info: dict[str, Any] = json.loads(path.read_text())
    except (OSError, json.JSONDecodeError) as error:
        raise ArtifactError(
            f"checkpoint `{checkpoint}` has no readable training_info.json",
            hint="remove that folder; the run then resumes from the checkpoint before it",
        ) from error
    return info
