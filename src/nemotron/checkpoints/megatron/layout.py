"""Where the parts of a Megatron checkpoint lie on disk (torch-free).

::

    ROOT/latest_checkpointed_iteration.txt      which iteration is newest
    ROOT/latest_train_state.pt
    ROOT/iter_0000000/                          the checkpoint itself: `.metadata`, `*.distcp`, `common.pt`,
                                                `metadata.json`, `run_config.yaml`, `tokenizer/`

NeMo-RL puts such a root at ``step_N/policy/weights`` and the tokenizer at ``step_N/policy/tokenizer``.
"""

from __future__ import annotations

import re
from pathlib import Path

from nemotron.checkpoints import hf
from nemotron.disk.documents import read_bytes
from nemotron.disk.faults import reason
from nemotron.errors import ArtifactError

TRACKER = "latest_checkpointed_iteration.txt"
METADATA_JSON = "metadata.json"
SIDECAR = "hf_config"
"""Our own folder in an iteration: what the model had beside its weights in the form of Hugging Face."""
_ITERATION = re.compile(r"iter_(\d{1,18})")
_MOST_TRACKED = 1 << 10
_MOST_DIGITS = 18


def iteration_name(iteration: int) -> str:
    """Folder name of an iteration, e.g. ``iter_0000000``."""
    return f"iter_{iteration:07d}"


def is_iteration(folder: Path) -> bool:
    """``folder`` itself is a distributed checkpoint."""
    return (folder / METADATA_JSON).is_file() or (folder / ".metadata").is_file()


def find_iteration(path: Path) -> Path | None:
    """The iteration folder that ``path`` means: itself, the newest of a root, or the one in a NeMo-RL ``step_N``."""
    if not path.is_dir():
        return None
    if is_iteration(path):
        return path
    nested = path / "policy" / "weights"
    if nested.is_dir():
        return find_iteration(nested)
    tracker = path / TRACKER
    if tracker.is_file():
        named = _tracked(path, tracker)
        return named if named.is_dir() else None
    found = [(int(match[1]), entry) for entry in path.iterdir() if (match := _ITERATION.fullmatch(entry.name))]
    return max(found)[1] if found else None


def _tracked(root: Path, tracker: Path) -> Path:
    try:
        text = read_bytes(tracker, _MOST_TRACKED).decode("utf-8", "replace").strip()
    except OSError as error:
        raise ArtifactError(
            f"`{tracker}` cannot be read: {reason(error)}",
            hint="name the `iter_*` folder itself",
        ) from error
    if text == "release":
        return root / "release"
    if not (text.isascii() and text.isdecimal() and len(text) < _MOST_DIGITS):
        raise ArtifactError(
            f"`{tracker}` holds `{text[:40]}`, expected the number of an iteration",
            hint="name the `iter_*` folder itself",
        )
    return root / iteration_name(int(text))


def resolve(path: Path) -> Path:
    """As :func:`find_iteration`.

    Raises:
        ArtifactError: there is no Megatron-Core ``torch_dist`` checkpoint at ``path``; the message says what there is.
    """
    if not path.exists():
        raise ArtifactError(f"there is no checkpoint at `{path}`", hint="check the path")
    found = find_iteration(path)
    if found is None and (model := hf.in_step(path)) is not None:
        family = hf.read_config(model).get("model_type", "?")
        raise ArtifactError(
            f"`{path}` holds its `{family}` model in Hugging Face form already, without a Megatron checkpoint",
            hint=f"there is nothing to convert: use `{model}` as it is, wherever a model is named",
        )
    if found is None:
        raise ArtifactError(
            f"`{path}` is not a Megatron-Core checkpoint",
            hint=f"name an `iter_*` folder, a folder with `{TRACKER}`, or a NeMo-RL `step_N`",
        )
    return found


def tokenizer_of(iteration: Path) -> Path | None:
    """Folder with the tokenizer of a checkpoint: inside it, or NeMo-RL's ``policy/tokenizer`` beside its weights."""
    for folder in (iteration / "tokenizer", iteration.parent.parent / "tokenizer"):
        if (folder / "tokenizer_config.json").is_file() or (folder / "tokenizer.json").is_file():
            return folder
    return None


def beside(path: Path) -> Path | None:
    """The folder with what a model has beside its weights: of any checkpoint that we read, where it keeps one."""
    folder = path if hf.is_hf(path) else hf.in_step(path)
    if folder is None and (iteration := find_iteration(path)) is not None:
        folder = iteration / SIDECAR
    return folder if folder is not None and folder.is_dir() else None
