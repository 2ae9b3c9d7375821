"""The reward model loop with a small real model: it learns, counts pairs, keeps its statistics, and repeats itself."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from nemotron.checkpoints.store import CheckpointStore
from nemotron.config.schema.rm import RmConfig
from nemotron.data.rows import PairRow
from nemotron.data.stream import RowStream
from nemotron.errors import EngineError, LimitError
from nemotron.rl.loops.reward_model import RewardTraining, score_pairs, train
from nemotron.rl.optim import Optimization
from nemotron.rl.reward_pairs import RewardPair, from_rows
from nemotron.rl.saving import POLICY, Progress, Provenance, Saver, Trained
from nemotron.rl.scalar_model import ScalarModel
from nemotron.rl.stopping import Deadline
from tests.unit.rl.tiny_policy import tiny_chat, tiny_policy

WORDS = ("abc", "deed", "fog", "hi", "jk", "lemon", "nose", "pq", "rust", "tuv", "wxy", "a b")
CONFIG = {
    "max_num_epochs": 100,
    "max_num_steps": 4,
    "val_period": 2,
    "val_batches": -1,
    "val_global_batch_size": 4,
    "val_micro_batch_size": 4,
    "val_at_start": True,
    "val_at_end": False,
    "seed": 1,
}


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


def pairs() -> list[RewardPair]:
    """The answer that ends in z is preferred."""
    rows = [
        PairRow(f"f:{i}", [{"role": "user", "content": word}], f"{word[::-1]}z", f"{word[::-1]}q", {})
        for i, word in enumerate(WORDS)
    ]
    return from_rows(rows, tiny_chat(), limit=64).pairs


def job(
    folder: Path,
    *,
    model: ScalarModel | None = None,
    lr: float = 0.01,
    mbs: int = 4,
    margin: float = 0.0,
    **changes: Any,
) -> RewardTraining:
    config = RmConfig.model_validate({**CONFIG, **changes})
    model = model or ScalarModel.from_policy(tiny_policy(scale=2.0), seed=3)
    every = [replace(pair, margin=margin) for pair in pairs()]
    optimization = Optimization.build(model.parameters(), optimizer={"name": "torch.optim.Adam", "kwargs": {"lr": lr}})
    stream = RowStream(every[:8], 4, config.seed, True, kind="pairs")
    tokenizer = tiny_chat().tokenizer
    tokenizer.pad_token = "<unk>"
    model.model.config.pad_token_id = tokenizer.pad_token_id
    return RewardTraining(
        config=config,
        centring=0.01,
        global_batch_size=4,
        micro_batch_size=mbs,
        save_period=2,
        model=model,
        optimization=optimization,
        chat=tiny_chat(),
        stream=stream,
        validation={"default": every[8:]},
        statistics=stream.rows,
        saver=Saver(
            store=CheckpointStore(folder / "steps", None, "val:validation-default_loss", False),
            tokenizer=tokenizer,
            trained={POLICY: Trained(model.model, optimization, layout="hf")},
            stream=stream,
            provenance=lambda: Provenance(step_id="s", config_yaml="a: 1\n", config_fingerprint="f", inputs=[]),
            save_hf=False,
        ),
        recorder=Log(),
    )


def log_of(done: RewardTraining) -> Log:
    assert isinstance(done.recorder, Log)
    return done.recorder


def weights(model: ScalarModel) -> torch.Tensor:
    return torch.cat([parameter.detach().flatten() for parameter in model.parameters()])


def test_it_learns_what_is_preferred(tmp_path: Path) -> None:
    work = job(tmp_path, max_num_steps=16)
    progress = train(work, Progress())
    first, *_, last = [row for row in log_of(work).rows if "train/loss" in row]
    assert last["train/loss"] < 0.5 * first["train/loss"]
    assert last["train/accuracy"] == 1.0
    assert last["train/margin"] == last["train/rewards_chosen_mean"] - last["train/rewards_rejected_mean"]
    assert last["validation-default_accuracy"] == 1.0
    assert (progress.step, progress.consumed_samples, progress.current_epoch) == (16, 64, 8)


def test_counts_are_of_pairs_and_rows(tmp_path: Path) -> None:
    work = job(tmp_path, max_num_steps=1)
    train(work, Progress())
    row = log_of(work).rows[-1]
    assert (row["train/num_valid_samples"], row["train/global_valid_seqs"]) == (4, 8)
    assert [sample["side"] for sample in log_of(work).kept] == ["chosen", "rejected"] * 4
    sampled = [len(sample["prompt"]) + len(sample["response"]) + 1 for sample in log_of(work).kept]
    assert row["train/global_valid_toks"] == sum(sampled)


def test_micro_batches_change_nothing(tmp_path: Path) -> None:
    whole, parts = job(tmp_path / "a", margin=0.5), job(tmp_path / "b", mbs=3, margin=0.5)
    train(whole, Progress())
    train(parts, Progress())
    torch.testing.assert_close(weights(whole.model), weights(parts.model), rtol=1e-4, atol=1e-4)


def test_a_margin_asks_for_a_larger_lead(tmp_path: Path) -> None:
    losses = []
    for margin in (0.0, 2.0):
        work = job(tmp_path / str(margin), max_num_steps=1, margin=margin)
        train(work, Progress())
        losses.append(log_of(work).rows[-1]["train/loss"])
    assert losses[1] > losses[0] + 1


def test_a_resumed_run_repeats_the_bits(tmp_path: Path) -> None:
    whole = job(tmp_path / "whole")
    train(whole, Progress())
    cut = job(tmp_path / "cut", max_num_steps=2)
    train(cut, Progress())
    checkpoint = log_of(cut).checkpoints[-1]
    resumed = job(tmp_path / "cut", model=ScalarModel.load(checkpoint / "policy/weights/hf", device="cpu"))
    progress = resumed.saver.load(checkpoint)
    assert progress.step == 2
    assert train(resumed, progress).step == 4
    assert torch.equal(weights(resumed.model), weights(whole.model))


def test_every_checkpoint_is_a_reward_model_with_the_statistics_of_its_scores(tmp_path: Path) -> None:
    work = job(tmp_path)
    train(work, Progress())
    folder = log_of(work).checkpoints[0] / "policy/weights/hf"
    config = json.loads((folder / "config.json").read_text())
    loaded = ScalarModel.load(folder, device="cpu")
    scores = score_pairs(loaded, work.statistics, 4).double()
    assert config["reward_mean"] == pytest.approx(float(scores.mean()), abs=1e-6)
    assert config["reward_std"] == pytest.approx(float(scores.std(unbiased=False)), abs=1e-6)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    assert config["pad_token_id"] == tokenizer.pad_token_id != tokenizer.eos_token_id
    plain = AutoModelForSequenceClassification.from_pretrained(folder).eval()
    rows = [pair.group.prompt_ids + c.token_ids for pair in work.statistics for c in pair.group.completions]
    padded = tokenizer.pad({"input_ids": rows}, return_tensors="pt")
    torch.testing.assert_close(
        plain(input_ids=padded["input_ids"], attention_mask=padded["attention_mask"]).logits[:, 0].double(),
        scores,
        atol=1e-5,
        rtol=1e-5,
    )
    info = json.loads((log_of(work).checkpoints[0] / "training_info.json").read_text())
    assert "val:validation-default_loss" in info


def test_the_epochs_end_the_run(tmp_path: Path) -> None:
    work = job(tmp_path, max_num_steps=-1, max_num_epochs=2, val_at_end=True, val_period=0)
    assert train(work, Progress()).step == 4
    assert [row["step"] for row in log_of(work).rows if "validation-default_loss" in row] == [0, 4]
    assert [path.name for path in log_of(work).checkpoints] == ["step_2", "step_4"]


def test_a_time_limit_leaves_a_checkpoint(tmp_path: Path) -> None:
    times = iter(range(0, 1000, 10))
    work = replace(job(tmp_path, max_num_steps=100), deadline=Deadline(35, clock=lambda: next(times)))
    with pytest.raises(LimitError):
        train(work, Progress())
    assert log_of(work).checkpoints[-1].name == f"step_{log_of(work).rows[-1]['step']}"


def test_a_loss_that_is_not_finite_stops_before_the_weights_change(tmp_path: Path) -> None:
    work = job(tmp_path, val_at_start=False)
    with torch.no_grad():
        next(work.model.parameters())[:] = float("nan")
    before = work.model.model.score.weight.clone()
    with pytest.raises(EngineError, match="not finite"):
        train(work, Progress())
    assert torch.equal(work.model.model.score.weight, before)
