"""Becomes a resources server of ours: what NeMo-Gym starts in place of a server of its own.

This file is copied beside the config and runs under an interpreter of NeMo-Gym's, so it needs nothing but Python. The
interpreter and the code of the job stand in ``server.json`` beside it; what NeMo-Gym says stays in the environment.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

MODULE = "nemotron.gym.under_gym"
NOT_OURS = ("PYTHONPATH", "PYTHONHOME", "VIRTUAL_ENV")
"""What NeMo-Gym sets for its own interpreter and code."""


def command(said: Mapping[str, Any], env: Mapping[str, str]) -> tuple[list[str], dict[str, str]]:
    """The words and the environment of the server."""
    kept = {name: value for name, value in env.items() if name not in NOT_OURS}
    return [said["python"], "-P", "-m", MODULE], {**kept, "PYTHONPATH": said["path"]}


if __name__ == "__main__":
    words, environment = command(json.loads(Path(__file__).with_suffix(".json").read_text()), os.environ)
    os.execve(words[0], words, environment)
