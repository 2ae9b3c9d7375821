"""W&B and TensorBoard of a run that is killed and resumed: every step once, one W&B run, no secret anywhere."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

from tests.logger_files import history, run_of, scalars
from tests.steps.commands import command, kill_when, metrics, only_run, run_here, steps_logged

pytestmark = [pytest.mark.full, pytest.mark.timeout(600)]

SECRETS = ("sk-reward-key-0123456789", "0123456789abcdef" * 3)
WORDS = (
    "grpo.max_num_steps=3",
    "checkpointing.save_period=2",
    "checkpointing.save_consolidated=false",
    "eval.heldout.max_samples=8",
    "logger.wandb_enabled=true",
    "logger.tensorboard_enabled=true",
    "logger.wandb.project=tests",
    "logger.wandb.name=killed",
    # On the command line too: W&B would keep the words of the command with the run.
    f"env.nemo_gym.genrm_model.responses_api_models.vllm_model.api_key={SECRETS[0]}",
)


@pytest.fixture(scope="module")
def killed_and_resumed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run killed in its last step, after the checkpoint of step 2, and resumed."""
    runs = tmp_path_factory.mktemp("loggers")
    os.environ |= {"WANDB_MODE": "offline", "WANDB_API_KEY": SECRETS[1]}
    try:
        argv = command(runs, *WORDS)
        kill_when(argv, lambda: steps_logged(runs) >= 3)
        resumed = run_here([*argv, "--resume"])
    finally:
        for name in ("WANDB_MODE", "WANDB_API_KEY"):
            del os.environ[name]
    assert resumed.code == 0, resumed.stderr
    assert "W&B offline" in resumed.stderr
    assert "TensorBoard: " in resumed.stderr
    return only_run(runs)


def expected(folder: Path) -> list[dict[str, Any]]:
    """One row a step of what `metrics.jsonl` holds, numbers only."""
    merged: dict[int, dict[str, Any]] = {}
    for row in metrics(folder):
        merged.setdefault(row["step"], {}).update({k: v for k, v in row.items() if k != "step" and v is not None})
    return [{"step": step, **merged[step]} for step in sorted(merged)]


def test_tensorboard_has_every_step_once(killed_and_resumed: Path) -> None:
    found = scalars(killed_and_resumed / "logs" / "tensorboard")
    rows = expected(killed_and_resumed)
    for name in ("train/loss", "train/reward", "train/kl_penalty", "heldout/fully_right", "timing/train/generation"):
        wanted = [(row["step"], row[name]) for row in rows if name in row]
        assert [step for step, _ in found[name]] == [step for step, _ in wanted], name
        assert [value for _, value in found[name]] == pytest.approx([value for _, value in wanted], rel=1e-6), name


def test_wandb_is_one_run_with_every_step_once(killed_and_resumed: Path) -> None:
    [file] = killed_and_resumed.glob("logs/wandb/offline-run-*/*.wandb")
    rows = history(file)
    assert [row["_step"] for row in rows] == [0, 1, 2, 3]
    for row, wanted in zip(rows, expected(killed_and_resumed), strict=True):
        del wanted["step"]
        assert {name: row[name] for name in wanted} == pytest.approx(wanted)
    made = run_of(file)
    assert (made.project, made.display_name) == ("tests", "killed")
    assert made.run_id == json.loads((killed_and_resumed / "wandb.json").read_text())["id"]
    config = {item.key: json.loads(item.value_json) for item in made.config.update}
    assert config["grpo"]["max_num_steps"] == 3


def test_no_secret_is_written(killed_and_resumed: Path) -> None:
    for path in killed_and_resumed.rglob("*"):
        if path.is_file():
            content = path.read_bytes()
            for secret in SECRETS:
                assert secret.encode() not in content, path
