"""Whether an artifact is whole: every file, every byte that has a checksum, every name and shape."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from nemotron.artifacts.fingerprint import fingerprint
from nemotron.artifacts.inspect import inspect
from nemotron.artifacts.kinds import Kind, data_lines, data_row, jsonl_files, located
from nemotron.artifacts.record import read_record
from nemotron.checkpoints import hf
from nemotron.checkpoints.megatron import families
from nemotron.checkpoints.megatron.names import hf_parts
from nemotron.data.manifest import Manifest
from nemotron.errors import ArtifactError, DataError
from nemotron.suggest import listed


@dataclass(frozen=True, slots=True)
class Verified:
    """A whole artifact. ``recorded``: its content is what its record says; ``None`` without a record."""

    path: str
    type: Kind
    fingerprint: str
    checks: tuple[str, ...]
    recorded: bool | None


def verify(path: Path, *, progress: Callable[[int], None] | None = None) -> Verified:
    """Check the artifact at ``path``.

    Raises:
        ArtifactError, DataError: the first thing that is wrong with it.
    """
    path = located(path)
    found = inspect(path)
    if found.type == "checkpoint_megatron":
        checks = _megatron(path)
    elif found.type == "checkpoint_lora":
        from nemotron.checkpoints.lora import Adapter

        checks = [f"{len(Adapter.read(path).tensors)} matrices of an adapter can be read"]
    elif found.type == "checkpoint_hf":
        checks = _hf(path)
    elif found.type == "prepared_data":
        checks = _prepared(path)
    elif found.type == "training_jsonl":
        checks = _data(path)
    else:
        checks = ["every file is JSON with results"]
    content = fingerprint(path, found.type, progress=progress)
    recorded = _compare(path, found.type, content)
    if recorded:
        checks.append("the content is what its record says")
    return Verified(str(path), found.type, content, tuple(checks), recorded)


def _compare(path: Path, kind: Kind, content: str) -> bool | None:
    record = read_record(path if path.is_dir() else path.parent)
    wanted = record.get("fingerprint") if record and record.get("type") == kind else None
    if not wanted:
        return None
    if wanted != content:
        raise ArtifactError(
            f"`{path}` was changed after it was written: its content is {content[:19]}..., its record says"
            f" {str(wanted)[:19]}...",
            hint="copy it again from where it was made, or make it again",
        )
    return True


def _megatron(path: Path) -> list[str]:
    from nemotron.checkpoints.megatron.reader import open_weights

    with open_weights(path) as weights:
        for name in weights:
            weights[name]  # compares the checksum of every chunk it touches
        return ["every tensor of the model is there", f"the checksums of {len(weights)} weights match"]


def _hf(path: Path) -> list[str]:
    headers = hf.headers(path)
    config = hf.read_config(path)
    checks = ["every file is as long as its header says"]
    if config.get("model_type") not in families.ARCHITECTURES or config.get("quantization_config"):
        return checks
    shape = families.from_hf(config, f"`{path}`")
    for name, part in hf_parts(shape).items():
        if name not in headers or headers[name].shape != part.shape:
            has = f"has shape {list(headers[name].shape)}" if name in headers else "is missing"
            raise ArtifactError(
                f"`{path}`: `{name}` {has}, the config means {list(part.shape)}",
                hint="the config belongs to another model, or a file is missing",
            )
    return [*checks, f"the {len(headers)} weights are those of a {shape.family} model of this config"]


def _prepared(path: Path) -> list[str]:
    manifest = Manifest.read(path)
    for problem in manifest.problems(verify=True, tokens=True):
        raise problem
    return [
        f"the rows of {listed(sorted(manifest.splits))} are as many as the manifest says",
        f"the SHA-256 of {len(manifest.shards())} shards match",
    ]


def _data(path: Path) -> list[str]:
    rows = 0
    for file in jsonl_files(path):
        for number, line in data_lines(file):
            data_row(file, number, line)
            rows += 1
    if not rows:
        raise DataError(f"`{path}` holds no rows")
    return [f"{rows} rows are JSON objects"]
