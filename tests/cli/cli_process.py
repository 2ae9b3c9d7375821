"""The real command in a fresh process."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

SOURCE = Path(__file__).parents[2] / "src"


def environment(**extra: str) -> dict[str, str]:
    """The caller's environment without what would change the output."""
    noise = ("RL_", "NEMOTRON_", "HF_", "NO_COLOR", "FORCE_COLOR", "COLUMNS", "LINES", "TERM")
    kept = {name: value for name, value in os.environ.items() if not name.startswith(noise)}
    return {**kept, "PYTHONPATH": os.environ.get("PYTHONPATH", str(SOURCE)), "OMP_NUM_THREADS": "1", **extra}


def nemotron(*words: str, cwd: Path, **extra: str) -> subprocess.CompletedProcess[str]:
    """One `nemotron` process."""
    return subprocess.run(
        [sys.executable, "-m", "nemotron", *words],
        cwd=cwd,
        env=environment(**extra),
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


def readable(text: str, cwd: Path) -> str:
    """Output without what differs from machine to machine: folders, ids, times, hashes."""
    text = text.replace(str(cwd), "[CWD]")
    text = re.sub(r"\S*/(site-packages|src|overlay)/?nemotron/", "[PACKAGE]/", text)
    text = re.sub(r"\b\d{8}-\d{6}-[\w-]+-[0-9a-f]{4}\b", "[RUN]", text)
    return re.sub(r"\b[0-9a-f]{64}\b", "[HASH]", text)
