"""``nemotron_artifact.json``: what made an artifact, kept beside it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from nemotron.disk.documents import read_json
from nemotron.runs.provenance import provenance

RECORD = "nemotron_artifact.json"


def write_record(
    folder: Path,
    *,
    kind: str,
    step: str,
    fingerprint: str,
    inputs: list[Mapping[str, Any]],
    details: Mapping[str, Any],
) -> None:
    """Write the record of the artifact in ``folder``. ``inputs`` are objects with ``type``, ``path``, ``fingerprint``.

    Raises:
        OSError: it cannot be written.
    """
    record = {
        "type": kind,
        "fingerprint": fingerprint,
        "step": step,
        "inputs": [dict(one) for one in inputs],
        **details,
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "provenance": provenance().model_dump(),
    }
    (folder / RECORD).write_text(json.dumps(record, indent=2) + "\n")


def read_record(path: Path) -> dict[str, Any] | None:
    """The record at ``path``, inside of it (a NeMo-RL ``step_N`` has its root at ``policy/weights``) or above it (a
    Megatron iteration lies in its root); ``None`` without one."""
    for folder in (path, path / "policy" / "weights", path.parent):
        try:
            record = read_json(folder / RECORD)
        except (OSError, ValueError):
            continue  # a lost record makes an artifact no less usable
        if isinstance(record, dict) and not (folder == path.parent and record.get("type") == "prepared_data"):
            return record  # what lies in a folder inside of prepared data is none of them
    return None
