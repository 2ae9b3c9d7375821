"""Read back what loggers wrote: TensorBoard event files, and the record file of an offline W&B run."""

from __future__ import annotations

import json
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from wandb.proto import wandb_internal_pb2 as records

_BLOCK = 32768


def scalars(folder: Path) -> dict[str, list[tuple[int, float]]]:
    """Tag -> (step, value) in order, as TensorBoard shows them."""
    events = EventAccumulator(str(folder), size_guidance={"scalars": 0})
    events.Reload()
    return {tag: [(event.step, event.value) for event in events.Scalars(tag)] for tag in events.Tags()["scalars"]}


def history(path: Path) -> list[dict[str, Any]]:
    """The rows of a ``.wandb`` file, with ``_step``."""
    return [
        {item.key or ".".join(item.nested_key): json.loads(item.value_json) for item in record.history.item}
        for record in _records(path)
        if record.WhichOneof("record_type") == "history"
    ]


def run_of(path: Path) -> Any:
    """Id, project, display name and config of a ``.wandb`` file."""
    return next(record.run for record in _records(path) if record.WhichOneof("record_type") == "run")


def _records(path: Path) -> Iterator[Any]:
    """The file is a LevelDB log: blocks of 32 KiB, chunks of (checksum, length, kind), after a header of 7 bytes."""
    data = path.read_bytes()
    assert data[:4] == b":W&B"
    at, record = 7, b""
    while at + 7 <= len(data):
        left = _BLOCK - at % _BLOCK
        _, length, kind = struct.unpack("<IHB", data[at : at + 7])
        if left < 7 or kind == 0:
            at += left
            continue
        record = (b"" if kind in (1, 2) else record) + data[at + 7 : at + 7 + length]
        at += 7 + length
        if kind in (1, 4):
            yield records.Record.FromString(record)
