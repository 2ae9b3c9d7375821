"""What is true of a checkpoint at the moment when it appears under its name."""

from __future__ import annotations

import json
import os
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch

from nemotron.artifacts.fingerprint import fingerprint
from nemotron.artifacts.record import RECORD
from nemotron.checkpoints.owner import owner_of
from nemotron.compile.plan import compile_job
from nemotron.config.layers import load
from nemotron.config.overrides import parse_overrides
from nemotron.config.schema.dpo import DpoRunConfig
from nemotron.disk import lock
from nemotron.engines.embedded.parts import TrainingParts
from nemotron.errors import OutputError
from nemotron.manifest import declaration, find_step
from nemotron.rl.saving import POLICY, Progress, Saver, Trained
from nemotron.runs.folder import LOCK, RunFolder
from tests.compiled_jobs import attempt_at

WEIGHT_FILES = (".distcp", "model.safetensors")
_listeners: list[Any] = []
sys.addaudithook(lambda event, arguments: [tell(event, arguments) for tell in _listeners] and None)


@contextmanager
def listening(tell: Any) -> Iterator[None]:
    """Hear what Python does: files that are opened and renamed, and by which thread."""
    _listeners.append(tell)
    try:
        yield
    finally:
        _listeners.remove(tell)


class Data:
    """Training data that have no position."""

    def state_dict(self) -> dict[str, int]:
        return {}

    def load_state_dict(self, state: Any) -> None:
        assert state == {}


def make_run(runs: Path, *words: str, step: str = "rl/nemo_rl/dpo") -> RunFolder:
    found = find_step(step)
    code = declaration(found)
    overrides = parse_overrides(list(enumerate(words, start=5)))
    run_dir = str(runs / "RUN_ID")
    resolved = load(found.config_dir, "tiny", overrides, run_dir=run_dir, model=code.config)
    return RunFolder.create(runs, compile_job(found, resolved, code, runs_dir=runs).job())


@contextmanager
def saver_of(run: RunFolder) -> Iterator[Saver]:
    with attempt_at(run) as attempt:
        parts = TrainingParts(attempt, attempt.settings(DpoRunConfig))
        policy = parts.load_start()
        trained = {POLICY: Trained(policy.model, parts.optimization(policy.parameters()))}
        yield parts.saver(trained, Data())


@pytest.fixture
def run(tmp_path: Path) -> Iterator[RunFolder]:
    made = make_run(tmp_path / "runs", "checkpointing.save_consolidated=true")
    yield made
    lock.release(made.path / LOCK)


def test_weights_are_hashed_beside_the_training_thread(run: RunFolder) -> None:
    readers, records = set(), {}

    def hear(event: str, arguments: tuple[Any, ...]) -> None:
        # `os.open` tells no mode, but its flags: the one reader of files does not wait for a pipe, a sync may.
        reads = event == "open" and bool(arguments[2] & os.O_NONBLOCK)
        if reads and "tmp_step_1" in str(arguments[0]) and str(arguments[0]).endswith(WEIGHT_FILES):
            readers.add(threading.current_thread() is threading.main_thread())
        if event == "os.rename" and str(arguments[1]).endswith("/step_1"):
            for path in Path(arguments[0]).rglob(RECORD):
                records[path.parent.name] = json.loads(path.read_bytes())["fingerprint"]

    with saver_of(run) as saver, listening(hear):
        checkpoint = saver.save(Progress(total_steps=1), {})
    assert readers == {False}
    weights = checkpoint / POLICY / "weights"
    assert records == {
        "weights": fingerprint(weights, "checkpoint_megatron"),
        "hf": fingerprint(weights / "hf", "checkpoint_hf"),
    }


def test_rows_are_on_the_disk_before_the_checkpoint_that_counts_on_them(
    run: RunFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    order: list[str] = []
    synced = os.fsync

    def fsync(descriptor: int) -> None:
        order.append(Path(os.readlink(f"/proc/self/fd/{descriptor}")).name)
        synced(descriptor)

    def hear(event: str, arguments: tuple[Any, ...]) -> None:
        if event == "os.rename" and str(arguments[1]).endswith("/step_1"):
            order.append("the checkpoint appears")

    run.append_metrics({"step": 1})
    run.append_samples([{"step": 1}])
    monkeypatch.setattr(os, "fsync", fsync)
    with saver_of(run) as saver, listening(hear):
        saver.save(Progress(total_steps=1), {})
    before = order[: order.index("the checkpoint appears")]
    assert {"metrics.jsonl", "samples.jsonl", run.path.name} <= set(before)


def test_state_that_a_gpu_wrote_is_read_on_a_machine_without(run: RunFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    with saver_of(run) as saver, monkeypatch.context() as gpu:
        optimizer = saver.trained[POLICY].optimization.optimizer
        for parameter in optimizer.param_groups[0]["params"]:
            parameter.grad = torch.ones_like(parameter)
        optimizer.step()
        # What torch writes of a tensor on a GPU: the bytes, and this name of the place where they were.
        gpu.setattr(torch.serialization, "location_tag", lambda storage: "cuda:0")
        checkpoint = saver.save(Progress(total_steps=1), {})
        said = optimizer.state_dict()["state"]
    file = next(checkpoint.rglob("optimizer.pt"))
    with pytest.raises(RuntimeError, match="CUDA"):
        torch.load(file, weights_only=True)
    with saver_of(run) as saver:
        saver.load(checkpoint)
        found = saver.trained[POLICY].optimization.optimizer.state_dict()["state"]
    for number, entries in said.items():
        for name, entry in entries.items():
            torch.testing.assert_close(found[number][name], entry, rtol=0, atol=0)


def test_a_run_claims_its_folder_and_lets_go_of_it(tmp_path: Path) -> None:
    word = f"checkpointing.checkpoint_dir={tmp_path / 'shared'}"
    first, second = make_run(tmp_path / "runs", word), make_run(tmp_path / "runs", word)
    try:
        with saver_of(first) as saver:
            saver.save(Progress(total_steps=1), {})
            claimed = owner_of(tmp_path / "shared")
            assert claimed is not None
            assert claimed.run == first.id
        with pytest.raises(OutputError, match=f"holds checkpoints of run `{first.id}`"), saver_of(second):
            pytest.fail("it went on from the checkpoints of the other")
        with saver_of(first) as saver:
            assert saver.store.steps() == [1]
    finally:
        for made in (first, second):
            lock.release(made.path / LOCK)
