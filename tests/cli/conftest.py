"""Run the command and show everything it said."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.cli.cli_process import readable
from tests.in_process import nemotron


@pytest.fixture
def run(tmp_path: Path) -> Callable[..., str]:
    """``run("steps", "list")`` gives exit code, stdout and stderr as one text; nothing may be left in the folder.

    Errors keep to three rules that every case is checked for: no traceback, nothing on stdout, no file written.
    """

    def run_it(*words: str, writes: bool = False, **extra: str) -> str:
        before = sorted(tmp_path.rglob("*"))
        result = nemotron(*words, cwd=tmp_path, env=extra, bare=True)
        assert "Traceback" not in result.stderr, result.stderr
        if result.code:
            assert result.stdout == ""
            assert result.stderr.startswith(("error:", "warning:", "note:", "Usage:"))
        if not writes:
            assert sorted(tmp_path.rglob("*")) == before
        parts = [f"exit code: {result.code}", "----- stdout", result.stdout, "----- stderr", result.stderr]
        return readable("\n".join(part.rstrip("\n") for part in parts), tmp_path)

    return run_it
