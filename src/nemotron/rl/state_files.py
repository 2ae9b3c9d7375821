"""Files of a checkpoint that hold no model: optimizer, data position, random state."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import torch

from nemotron.disk.documents import regular
from nemotron.errors import ArtifactError


def read_state(path: Path, hint: str) -> Any:
    """What ``torch.save`` wrote, on the CPU; nothing in it is executed.

    Args:
        hint: of the error.

    Raises:
        ArtifactError: missing or damaged.
    """
    try:
        # A file says on which device each tensor was, which this machine need not have.
        return torch.load(regular(path), weights_only=True, map_location="cpu")
    except (OSError, RuntimeError, EOFError, pickle.UnpicklingError) as error:
        raise ArtifactError(f"`{path}` cannot be read: {error}", hint=hint) from error
