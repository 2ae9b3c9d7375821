"""Memory that does not suffice is no bug: it is said with the keys that decide it, and the run's status says it too."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from nemotron.cli import main as cli
from nemotron.config.layers import load
from nemotron.engines.base import Attempt
from nemotron.engines.embedded import scene
from nemotron.engines.worker import work
from nemotron.errors import EngineError
from nemotron.manifest import declaration, load_catalog
from nemotron.out_of_memory import keys_to_lower, out_of_memory
from nemotron.runs.folder import RunFolder
from tests.unit.compile.compile_world import LAPTOP, Compile, named

# More than the address space of any machine, so the allocation fails everywhere and at once.
LARGE = 2**55
ALLOCATIONS: dict[str, Callable[[], object]] = {
    "python": lambda: bytes(LARGE),
    "numpy": lambda: np.empty(LARGE),
    "torch": lambda: torch.empty(LARGE),
}


def failure(allocate: Callable[[], object]) -> BaseException:
    with pytest.raises((MemoryError, RuntimeError)) as caught:
        allocate()
    return caught.value


@pytest.mark.parametrize("name", ALLOCATIONS)
def test_every_library_s_complaint_is_recognised(name: str) -> None:
    known = out_of_memory(failure(ALLOCATIONS[name]), {"policy": {"train_micro_batch_size": 64}})
    assert known is not None
    assert known.exit_code == 9
    assert known.message.startswith("this machine has not enough memory")
    assert known.hint == "lower `policy.train_micro_batch_size`, take a smaller model, or a machine with more memory"


def test_a_gpu_and_a_fork_that_find_no_memory() -> None:
    gpu = type("OutOfMemoryError", (RuntimeError,), {})(
        "CUDA out of memory. Tried to allocate 2.50 GiB. GPU 0 has a total capacity of 79 GiB"
    )
    known = out_of_memory(gpu)
    assert known is not None
    assert known.message == "the GPU has not enough memory: 2.50 GiB were asked for at once"
    assert out_of_memory(OSError(12, "Cannot allocate memory")) is not None


@pytest.mark.parametrize("away", [None, False, True])
def test_a_gpu_may_leave_the_optimizer_s_state_to_the_host(away: bool | None) -> None:
    policy = {"optimizer": {"name": "torch.optim.AdamW"}, "train_micro_batch_size": 8}
    values = {"policy": policy if away is None else {**policy, "offload_optimizer_for_logprob": away}}
    of_a_gpu = out_of_memory(RuntimeError("CUDA error: out of memory"), values)
    of_the_host = out_of_memory(MemoryError(), values)
    without = out_of_memory(RuntimeError("CUDA error: out of memory"), {"policy": {"train_micro_batch_size": 8}})
    assert of_a_gpu is not None
    assert of_the_host is not None
    assert without is not None
    assert of_the_host.hint == without.hint
    key = "" if away else "set `policy.offload_optimizer_for_logprob=true`, "
    assert of_a_gpu.hint == f"{key}{without.hint}"


def test_other_errors_stay_what_they_are() -> None:
    for error in (RuntimeError("shape mismatch"), OSError(28, "No space left on device"), ValueError("out of range")):
        assert out_of_memory(error) is None


@pytest.mark.parametrize("step", load_catalog().steps, ids=lambda step: str(step.id))
def test_the_hint_names_keys_of_the_step(step: Any) -> None:
    values = load(step.config_dir, "tiny", [], run_dir="r", model=declaration(step).config).values
    for key in keys_to_lower(values):
        at: Any = values
        for part in key.split("."):
            at = at[part]
    if step.category == "rl":
        assert keys_to_lower(values)[0] == "policy.train_micro_batch_size"


def test_the_memory_warning_of_the_plan_names_keys_of_the_step(compiled: Compile) -> None:
    plan = compiled("own.yaml", place=replace(LAPTOP, memory_bytes=1))
    (finding,) = named(plan, "memory")
    assert finding.hint is not None
    assert "`policy.train_micro_batch_size`" in finding.hint


def greedy(attempt: Attempt) -> None:
    """An entry that asks for more than there is."""
    torch.empty(LARGE)


def test_the_run_says_it_too(compiled: Compile, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scene, "judged_grpo", greedy)
    run = RunFolder.create(tmp_path / "runs", compiled("own.yaml").job())
    with pytest.raises(EngineError, match="not enough memory"):
        work(run, {})
    status = run.status()
    assert (status.state, status.exit_code) == ("failed", 9)
    assert status.error is not None
    assert status.error.startswith("this machine has not enough memory")


def test_a_command_without_a_run_says_it_too(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(cli, "_dispatch", lambda words: bytes(LARGE))
    assert cli.main(["steps", "list"]) == 9
    assert capsys.readouterr().err == (
        "error: this machine has not enough memory\n"
        "hint: take a smaller model or less data, or a machine with more memory\n"
    )
