"""The names that may rank checkpoints are those that the loops write, all of them and no others."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import pytest

from nemotron.compile.jobs import measured
from nemotron.rl.saving import Progress
from tests.unit.rl import test_dpo_loop, test_grpo_loop, test_ppo_loop, test_reward_model_loop, test_sft_loop

LOOPS: dict[str, tuple[Any, tuple[str, ...], dict[str, Any]]] = {
    "grpo": (test_grpo_loop, measured.GRPO, {}),
    "ppo": (test_ppo_loop, measured.PPO, {}),
    "dpo": (test_dpo_loop, measured.DPO, {}),
    "sft": (test_sft_loop, measured.SFT, {}),
    "reward model": (test_reward_model_loop, measured.REWARD_MODEL, {}),
}


def written(module: Any, folder: Path, prefix: str, **changes: Any) -> set[str]:
    work = module.job(folder, max_num_steps=1, **changes)
    module.train(work, Progress())
    rows: Iterable[Mapping[str, float]] = work.recorder.rows
    return {name.removeprefix(prefix) for row in rows for name in row if name.startswith(prefix)}


@pytest.mark.parametrize("name", LOOPS)
def test_the_names_of_a_step(tmp_path: Path, name: str) -> None:
    module, known, changes = LOOPS[name]
    assert written(module, tmp_path, "train/", **changes) == set(known)


@pytest.mark.parametrize("module", [test_grpo_loop, test_ppo_loop], ids=["grpo", "ppo"])
def test_the_names_of_a_validation(tmp_path: Path, module: Any) -> None:
    assert written(module, tmp_path, "validation/", val_at_end=True) == set(measured.VALIDATION)


def test_what_only_some_configs_measure(tmp_path: Path) -> None:
    changes = {"seq_logprob_error_threshold": 2.0, "reward_scaling": {"enabled": True}}
    more = written(test_grpo_loop, tmp_path, "train/", **changes) - set(measured.GRPO)
    assert more == {"num_masked_seqs_by_logprob_error", "reward_clamped_share"}
