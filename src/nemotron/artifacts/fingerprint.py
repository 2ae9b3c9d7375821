"""A hash of an artifact's content. The order of files, times, owners and our own record beside them do not count.

* Checkpoints: the relative name and SHA-256 of every file that belongs to the model. A Megatron root, its iteration
  folder and the NeMo-RL ``step_N`` around it have the same fingerprint.
* Prepared data: the SHA-256 of every shard that the manifest names, whose own text says where the rows lay.
* Data and results: the SHA-256 of every file, whatever it is called: renaming or reordering shards changes nothing.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from pathlib import Path

from nemotron.artifacts.kinds import Kind, artifact_files, jsonl_files, located, recognise, result_files
from nemotron.artifacts.record import RECORD
from nemotron.checkpoints import hf
from nemotron.checkpoints.adapter_files import CONFIG, WEIGHTS
from nemotron.checkpoints.megatron import layout
from nemotron.data.manifest import Manifest
from nemotron.disk.documents import open_regular
from nemotron.disk.faults import reason
from nemotron.errors import ArtifactError

_HF_FILES = (hf.CONFIG, "generation_config.json", hf.INDEX)


def fingerprint(path: Path, kind: Kind | None = None, *, progress: Callable[[int], None] | None = None) -> str:
    """``sha256:`` and 64 hex digits.

    Raises:
        ArtifactError: nothing known at ``path``, or a file of it cannot be read.
    """
    kind = kind or recognise(path)
    root, files, named = _content(path, kind)
    lines = []
    for file in files:
        digest = _digest(file, progress)
        lines.append(f"{file.relative_to(root).as_posix()} {digest}" if named else digest)
    return _of_lines(kind, lines)


def fingerprint_files(files: Sequence[Path], progress: Callable[[int], None] | None = None) -> str:
    """The fingerprint of the data set that some files make up, wherever they are.

    Raises:
        ArtifactError: a file cannot be read.
    """
    return _of_lines("training_jsonl", [_digest(file, progress) for file in files])


def fingerprint_as_named(manifest: Path) -> str:
    """That of prepared data by the hashes that their manifest holds: for who has just written the shards.

    Raises:
        DataError: it is no manifest. ArtifactError: it cannot be read.
    """
    return _of_lines("prepared_data", [shard.sha256 for shard in Manifest.read(manifest).shards()])


def _of_lines(kind: Kind, lines: Sequence[str]) -> str:
    """Of what is known of every file, in any order."""
    return "sha256:" + hashlib.sha256("\n".join([kind, *sorted(lines)]).encode()).hexdigest()


def _content(path: Path, kind: Kind) -> tuple[Path, list[Path], bool]:
    """Folder, files that count, and whether their names do."""
    if kind == "training_jsonl":
        return path, jsonl_files(path), False
    if kind == "prepared_data":
        manifest = Manifest.read(path)
        return path, [shard.path for shard in manifest.shards()], False
    if kind == "eval_results":
        return path, result_files(path), False
    if kind == "checkpoint_lora":
        return path, [path / CONFIG, path / WEIGHTS], True
    if kind == "checkpoint_hf":
        path = located(path)
        extra = [path / name for name in _HF_FILES if (path / name).is_file()]
        # Pickled weights are hashed like any other bytes; nothing here loads them.
        pickled = (
            [] if any((path / name).is_file() for name in (hf.SINGLE, hf.INDEX)) else path.glob("pytorch_model*.bin")
        )
        weights = sorted(pickled) or hf.weight_files(path)
        return path, [*extra, *weights, *hf.tokenizer_files(path)], True
    folder = layout.resolve(path)
    return folder, [file for file in artifact_files(folder) if file.name != RECORD], True


def _digest(file: Path, progress: Callable[[int], None] | None) -> str:
    try:
        with open_regular(file) as opened:
            digest = hashlib.file_digest(opened, "sha256").hexdigest()
            if progress:
                progress(opened.tell())
    except OSError as error:
        raise ArtifactError(f"`{file}` cannot be read: {reason(error)}") from error
    return digest
