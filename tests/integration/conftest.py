"""What several integration tests need."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.integration.vllm_runs import VENV

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="session")
def smollm2() -> Path:
    """The folder of SmolLM2-135M-Instruct; ``NEMOTRON_SMOLLM2`` names another than that of install.sh."""
    folder = Path(os.environ.get("NEMOTRON_SMOLLM2", ROOT / "build" / "smollm2" / "model"))
    if not (folder / "config.json").exists():
        pytest.fail(f"no SmolLM2 in {folder}; run tests/integration/smollm2/install.sh build/smollm2")
    return folder


@pytest.fixture(scope="session")
def vllm() -> Path:
    """The environment of a real CPU vLLM; ``NEMOTRON_VLLM_VENV`` names another than that of install.sh."""
    if not (VENV / "bin" / "vllm").exists():
        pytest.fail(f"no vLLM in {VENV}; run tests/integration/vllm_cpu/install.sh {VENV}")
    return VENV


@pytest.fixture
def temporary(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Where a run's temporary files go and nobody else's, so that what is left of it can be told from what others need.

    Short, as sockets lie there.
    """
    folder = Path(tempfile.mkdtemp(prefix="run-"))
    monkeypatch.setenv("TMPDIR", str(folder))
    yield folder
    shutil.rmtree(folder)
