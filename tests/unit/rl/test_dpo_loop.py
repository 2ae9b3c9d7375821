"""The DPO loop with a small real policy: it learns, counts pairs, validates, and repeats itself after a resume."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from nemotron.checkpoints.store import CheckpointStore
from nemotron.config.schema.dpo import DpoConfig
from nemotron.data.rows import PairRow
from nemotron.data.stream import RowStream
from nemotron.errors import EngineError, LimitError
from nemotron.rl.loops.dpo import Dpo, train
from nemotron.rl.optim import Optimization
from nemotron.rl.pairs import TokenPair, tokenise
from nemotron.rl.policy import Policy
from nemotron.rl.reference_cache import ReferenceCache
from nemotron.rl.saving import POLICY, Progress, Provenance, Saver, Trained, weights_of
from nemotron.rl.stopping import Deadline
from tests.unit.rl.tiny_policy import tiny_chat, tiny_policy

WORDS = ("abc", "deed", "fog", "hi", "jk", "lemon", "nose", "pq", "rust", "tuv", "wxy", "a b")
START = {"max_num_steps": 4, "max_num_epochs": 100, "seed": 1, "val_period": 2, "val_batches": -1}


class Log:
    """A recorder that remembers."""

    def __init__(self) -> None:
        self.rows: list[dict[str, float]] = []
        self.checkpoints: list[Path] = []
        self.kept: list[Mapping[str, Any]] = []

    def write(self, step: int, metrics: Mapping[str, float]) -> None:
        self.rows.append({"step": step, **metrics})

    def samples(self, step: int, rows: Iterable[Mapping[str, Any]]) -> None:
        self.kept += rows

    def step(self, step: int, metrics: Mapping[str, float]) -> None:
        self.write(step, metrics)

    def checkpoint(self, path: Path) -> None:
        self.checkpoints.append(path)


def pairs(folder: Path) -> list[TokenPair]:
    """The answer that ends in z is preferred."""
    rows = [
        PairRow(f"f:{i}", [{"role": "user", "content": word}], f"{word[::-1]}z", f"{word[::-1]}q", {})
        for i, word in enumerate(WORDS)
    ]
    found, _ = tokenise(rows, tiny_chat(), limit=64)
    cache = ReferenceCache(folder, "w", lambda: tiny_policy(scale=2.0), 4, report=lambda text: None)
    return cache.fill("pairs", found)


def job(
    folder: Path, *, policy: Policy | None = None, lr: float = 0.01, gbs: int = 4, mbs: int = 4, **changes: Any
) -> Dpo:
    config = DpoConfig.model_validate({**START, **changes})
    policy = policy or tiny_policy(scale=2.0)
    every = pairs(folder / "cache")
    optimizer = {"name": "torch.optim.Adam", "kwargs": {"lr": lr}}
    optimization = Optimization.build(policy.parameters(), optimizer=optimizer)
    stream = RowStream(every[:8], gbs, config.seed, True, kind="pairs")
    made_by = Provenance(step_id="s", config_yaml="a: 1\n", config_fingerprint="f", inputs=[])
    return Dpo(
        config=config,
        global_batch_size=gbs,
        micro_batch_size=mbs,
        save_period=2,
        policy=policy,
        optimization=optimization,
        stream=stream,
        validation={"default": every[8:]},
        saver=Saver(
            store=CheckpointStore(folder / "steps", None, "val:validation-default_loss", False),
            tokenizer=tiny_chat().tokenizer,
            trained={POLICY: Trained(policy.model, optimization)},
            stream=stream,
            provenance=lambda: made_by,
            save_hf=False,
        ),
        recorder=Log(),
    )


def log_of(done: Dpo) -> Log:
    assert isinstance(done.recorder, Log)
    return done.recorder


def weights(policy: Policy) -> torch.Tensor:
    return torch.cat([parameter.detach().flatten() for parameter in policy.parameters()])


def test_it_learns_what_is_preferred(tmp_path: Path) -> None:
    work = job(tmp_path, max_num_steps=16, reference_policy_kl_penalty=0.5)
    progress = train(work, Progress())
    first, *_, last = [row for row in log_of(work).rows if "train/loss" in row]
    assert first["train/loss"] == pytest.approx(torch.log(torch.tensor(2.0)).item(), abs=1e-5)
    assert last["train/loss"] < 0.2
    assert last["train/accuracy"] == 1.0
    assert last["train/margin"] > 3
    assert last["train/margin"] == last["train/rewards_chosen_mean"] - last["train/rewards_rejected_mean"]
    assert (progress.step, progress.consumed_samples, progress.current_epoch) == (16, 64, 8)


def test_counts_are_of_pairs_and_rows(tmp_path: Path) -> None:
    work = job(tmp_path, max_num_steps=1)
    train(work, Progress())
    row = log_of(work).rows[-1]
    assert row["train/num_valid_samples"] == 4
    assert row["train/global_valid_seqs"] == 8
    assert len(log_of(work).kept) == 8
    lengths = [len(sample["response"]) + 1 for sample in log_of(work).kept]
    assert row["train/global_valid_toks"] == sum(lengths)


def test_micro_batches_change_nothing(tmp_path: Path) -> None:
    whole, parts = job(tmp_path, mbs=4, sft_loss_weight=0.2), job(tmp_path, mbs=3, sft_loss_weight=0.2)
    train(whole, Progress())
    train(parts, Progress())
    torch.testing.assert_close(weights(whole.policy), weights(parts.policy), rtol=1e-4, atol=1e-4)
    for a, b in zip(log_of(whole).rows, log_of(parts).rows, strict=True):
        for name, value in a.items():
            if "timing" not in name and "accuracy" not in name:
                assert b[name] == pytest.approx(value, rel=1e-3, abs=1e-3), name


@pytest.mark.parametrize("changes", [{}, {"sft_loss_weight": 0.3}, {"preference_average_log_probs": True}])
def test_a_resumed_run_repeats_the_bits(tmp_path: Path, changes: dict[str, Any]) -> None:
    whole = job(tmp_path / "whole", **changes)
    train(whole, Progress())
    cut = job(tmp_path / "cut", **changes)
    train(replace(cut, config=cut.config.model_copy(update={"max_num_steps": 2})), Progress())
    checkpoint = log_of(cut).checkpoints[-1]
    resumed = job(tmp_path / "cut", policy=Policy.load_checkpoint(weights_of(checkpoint)), **changes)
    progress = resumed.saver.load(checkpoint)
    assert progress.step == 2
    assert train(resumed, progress).step == 4
    assert torch.equal(weights(resumed.policy), weights(whole.policy))
    losses = [row["train/loss"] for work in (cut, resumed) for row in log_of(work).rows if "train/loss" in row]
    assert losses == [row["train/loss"] for row in log_of(whole).rows if "train/loss" in row]


def test_validation_is_named_and_ranked_as_in_nemo_rl(tmp_path: Path) -> None:
    work = job(tmp_path)
    train(work, Progress())
    measured = [row["step"] for row in log_of(work).rows if "validation-default_loss" in row]
    assert measured == [0, 2, 4]
    info = json.loads((log_of(work).checkpoints[-1] / "training_info.json").read_text())
    assert info["val:validation-default_loss"] == log_of(work).rows[-1]["validation-default_loss"]
    assert info["train:accuracy"] == log_of(work).rows[-1]["train/accuracy"]


def test_the_epochs_end_the_run(tmp_path: Path) -> None:
    work = job(tmp_path, max_num_steps=100, max_num_epochs=2, val_at_end=True, val_period=0)
    assert train(work, Progress()).step == 4
    assert [row["step"] for row in log_of(work).rows if "validation-default_loss" in row] == [0, 4]
    assert [path.name for path in log_of(work).checkpoints] == ["step_2", "step_4"]


def test_a_time_limit_saves_and_stops(tmp_path: Path) -> None:
    work = replace(job(tmp_path, max_num_steps=40), save_period=100, deadline=Deadline(0.0))
    with pytest.raises(LimitError, match="after step 1"):
        train(work, Progress())
    assert [path.name for path in log_of(work).checkpoints] == ["step_1"]


def test_a_loss_that_is_not_finite_stops_before_the_weights_change(tmp_path: Path) -> None:
    policy = tiny_policy(scale=2.0)
    with torch.no_grad():
        next(policy.parameters())[3] = float("nan")
    before = weights(policy).clone()
    work = job(tmp_path, policy=policy, val_at_start=False)
    with pytest.raises(EngineError, match="not finite"):
        train(work, Progress())
    assert torch.equal(weights(policy).nan_to_num(), before.nan_to_num())
