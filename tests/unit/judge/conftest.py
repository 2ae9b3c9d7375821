"""Fixtures of the judge's tests."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.unit.judge.tiny_judge_model import make_tiny_judge


@pytest.fixture(scope="session")
def tiny_judge(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a random judge."""
    return make_tiny_judge(tmp_path_factory.mktemp("judge") / "tiny-judge")
