"""docs/reference says what the code says."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_the_pages_are_those_of_the_code() -> None:
    script = ROOT / "scripts" / "build_reference.py"
    done = subprocess.run([sys.executable, str(script), "--check"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"run `python scripts/build_reference.py`; stale: {done.stdout}{done.stderr}"
    assert list((ROOT / "docs" / "reference" / "steps").glob("*.md"))
