"""The SFT loop with a small real policy: it learns, counts tokens, validates, and repeats itself after a resume."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from nemotron.checkpoints.store import CheckpointStore
from nemotron.config.schema.sft import SftConfig
from nemotron.data.conversations import ConversationRow
from nemotron.data.stream import RowStream
from nemotron.errors import EngineError
from nemotron.rl.conversations import TokenConversation, Writing, tokenise
from nemotron.rl.loops.sft import VALIDATION_LOSS, Sft, train
from nemotron.rl.optim import Optimization
from nemotron.rl.policy import Policy
from nemotron.rl.saving import POLICY, Progress, Provenance, Saver, Trained, weights_of
from tests.unit.rl.test_dpo_loop import WORDS, Log, log_of, weights
from tests.unit.rl.tiny_policy import tiny_chat, tiny_policy

START = {"max_num_steps": 4, "max_num_epochs": 100, "seed": 1, "val_period": 2, "val_micro_batch_size": 3}


def conversations() -> list[TokenConversation]:
    """Every word backwards, and a second exchange in some rows."""
    rows = []
    for i, word in enumerate(WORDS):
        turns = [{"role": "user", "content": word}, {"role": "assistant", "content": word[::-1]}]
        rows.append(ConversationRow(f"f:{i}", turns * (1 + i % 2), (1, 3) if i % 2 else (1,), {}))
    found, refused = tokenise(rows, Writing(tiny_chat()), limit=64)
    assert not refused
    return found


def job(
    folder: Path, *, policy: Policy | None = None, lr: float = 0.01, gbs: int = 4, mbs: int = 4, **changes: Any
) -> Sft:
    config = SftConfig.model_validate({**START, **changes})
    policy = policy or tiny_policy(scale=2.0)
    every = conversations()
    optimization = Optimization.build(policy.parameters(), optimizer={"name": "torch.optim.Adam", "kwargs": {"lr": lr}})
    stream = RowStream(every[:8], gbs, config.seed, True, kind="conversations")
    made_by = Provenance(step_id="s", config_yaml="a: 1\n", config_fingerprint="f", inputs=[])
    return Sft(
        config=config,
        global_batch_size=gbs,
        micro_batch_size=mbs,
        save_period=2,
        policy=policy,
        optimization=optimization,
        stream=stream,
        validation=every[8:],
        saver=Saver(
            store=CheckpointStore(folder / "steps", None, "val:val_loss", False),
            tokenizer=tiny_chat().tokenizer,
            trained={POLICY: Trained(policy.model, optimization)},
            stream=stream,
            provenance=lambda: made_by,
            save_hf=False,
        ),
        recorder=Log(),
    )


def test_it_learns_the_answers(tmp_path: Path) -> None:
    work = job(tmp_path, max_num_steps=20)
    progress = train(work, Progress())
    first, *_, last = [row for row in log_of(work).rows if "train/loss" in row]
    assert last["train/loss"] < 0.3 * first["train/loss"]
    assert (progress.step, progress.consumed_samples, progress.current_epoch) == (20, 80, 10)


def test_the_loss_is_the_mean_over_learned_tokens_of_the_models_own(tmp_path: Path) -> None:
    """Against transformers' loss with the unlearned labels at -100."""
    work = job(tmp_path, max_num_steps=1, gbs=8, mbs=3)
    nats, tokens = 0.0, 0
    with torch.no_grad():
        for row in conversations()[:8]:
            ids = row.group.prompt_ids + row.group.completions[0].token_ids
            labels = [-100] * len(row.group.prompt_ids)
            labels += [t if on else -100 for t, on in zip(row.group.completions[0].token_ids, row.learned, strict=True)]
            out = work.policy.model(input_ids=torch.tensor([ids]), labels=torch.tensor([labels]))
            nats += float(out.loss) * sum(row.learned)
            tokens += sum(row.learned)
    train(work, Progress())
    [row] = [row for row in log_of(work).rows if "train/loss" in row]
    assert row["train/loss"] == pytest.approx(nats / tokens, abs=1e-5)
    assert row["train/global_valid_toks"] == row["train/num_unmasked_tokens"] == tokens
    assert row["train/global_valid_seqs"] == row["train/num_valid_samples"] == 8


def test_micro_batches_change_nothing(tmp_path: Path) -> None:
    whole, parts = job(tmp_path / "a", mbs=4), job(tmp_path / "b", mbs=3)
    train(whole, Progress())
    train(parts, Progress())
    torch.testing.assert_close(weights(whole.policy), weights(parts.policy), atol=1e-4, rtol=1e-3)


def test_validation_is_of_all_its_rows_and_ranks_checkpoints(tmp_path: Path) -> None:
    work = job(tmp_path, val_at_end=True)
    train(work, Progress())
    measured = {row["step"]: row[VALIDATION_LOSS] for row in log_of(work).rows if VALIDATION_LOSS in row}
    assert list(measured) == [0, 2, 4]
    assert [path.name for path in log_of(work).checkpoints] == ["step_2", "step_4"]
    other = job(tmp_path / "other", val_micro_batch_size=1, max_num_steps=1)
    train(other, Progress())
    assert log_of(other).rows[0][VALIDATION_LOSS] == pytest.approx(measured[0], abs=1e-5)


def test_a_resumed_run_has_the_same_bits(tmp_path: Path) -> None:
    whole = job(tmp_path / "whole")
    train(whole, Progress())
    half = job(tmp_path / "half", max_num_steps=2)
    train(half, Progress())
    newest = tmp_path / "half/steps/step_2"
    again = job(tmp_path / "half", policy=Policy.load_checkpoint(weights_of(newest), device="cpu"))
    progress = again.saver.load(newest)
    assert train(again, progress).step == 4
    assert torch.equal(weights(again.policy), weights(whole.policy))


def test_a_loss_that_is_not_finite_ends_it(tmp_path: Path) -> None:
    work = job(tmp_path, lr=1e30)
    with pytest.raises(EngineError, match="is not finite"):
        train(work, Progress())
