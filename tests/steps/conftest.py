"""What runs start beside themselves costs most of a short run, unless it is a fork."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests import forked


@pytest.fixture
def own_threads(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Runs compute with as many threads as they take by themselves, as nobody told them how many."""
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    with forked.nowhere():
        yield


@pytest.fixture(autouse=True, scope="module")
def judges_and_critics_are_forks() -> Iterator[None]:
    """Of runs in the tests' own process. That a new process has all they need is shown by
    tests/unit/judge/test_judge_local.py, and by those of `make full` that have `own_threads`."""
    with forked.helpers_are_forks():
        yield
