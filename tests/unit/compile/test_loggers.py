"""Loggers are known to work before the start."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from nemotron.compile.probes.wandb_login import wandb_can_start
from nemotron.config.schema.logger import WandbConfig
from nemotron.install import install_extra
from tests.unit.compile.compile_world import LAPTOP, MODULES

WITH_LOGGERS = replace(LAPTOP, modules={**MODULES, "tensorboard": True, "wandb": True})


def test_what_is_not_installed_says_how_to_install_it(compiled) -> None:
    plan = compiled("tiny", "logger.wandb_enabled=true", "+logger.wandb.mode=offline", env={})
    (error,) = plan.errors
    assert (error.name, error.hint, error.exit_code) == ("logger-not-installed", install_extra("wandb"), 10)


def test_offline_needs_no_account_and_tensorboard_none_at_all(compiled) -> None:
    words = ("logger.wandb_enabled=true", "logger.tensorboard_enabled=true", "+logger.tensorboard.log_dir=x")
    plan = compiled("tiny", *words, place=WITH_LOGGERS, env={"WANDB_MODE": "offline"})
    assert plan.errors == ()
    refused = compiled("tiny", *words, place=WITH_LOGGERS, env={"HOME": "/nonexistent"})
    assert [error.name for error in refused.errors] == ["wandb-login"]


def test_a_time_limit_is_honoured(compiled) -> None:
    plan = compiled("tiny", "checkpointing.checkpoint_must_save_by='00:03:30:00'")
    assert plan.errors == ()
    assert "checkpoint_must_save_by" not in str(plan.findings)


@pytest.mark.parametrize(
    ("env", "netrc", "settings", "expected"),
    [
        ({}, "", "", False),
        ({"WANDB_API_KEY": "k"}, "", "", True),
        ({"WANDB_MODE": "disabled"}, "", "", True),
        ({}, "machine api.wandb.ai\n  login user\n  password k\n", "", True),
        ({"WANDB_BASE_URL": "https://wandb.example.com"}, "machine api.wandb.ai login u password k", "", False),
        ({"WANDB_BASE_URL": "https://wandb.example.com"}, "machine wandb.example.com login u password k", "", True),
        ({}, "", "[default]\nmode = offline\n", True),
        ({}, "", "not an ini file", False),
    ],
)
def test_where_a_key_may_be(env: dict[str, str], netrc: str, settings: str, expected: bool, tmp_path: Path) -> None:
    (tmp_path / ".netrc").write_text(netrc)
    folder = tmp_path / ".config" / "wandb"
    folder.mkdir(parents=True)
    (folder / "settings").write_text(settings)
    assert wandb_can_start(WandbConfig(), {"HOME": str(tmp_path), **env}) is expected
    assert wandb_can_start(WandbConfig.model_validate({"mode": "offline"}), {"HOME": str(tmp_path), **env})


@pytest.mark.parametrize(
    ("key", "word"),
    [
        ("logger.log_dir", "logger.log_dir=/dev/null/x"),
        ("logger.tensorboard.log_dir", "+logger.tensorboard.log_dir=/dev/null/x"),
    ],
)
def test_a_folder_of_logs_that_cannot_be_made_is_found_before_the_start(compiled, key: str, word: str) -> None:
    """Where a logger writes into it."""
    plan = compiled("tiny", "logger.tensorboard_enabled=true", word, place=WITH_LOGGERS)
    (error,) = plan.errors
    assert (error.name, error.key, error.exit_code) == ("output-folder", key, 8)
    assert error.hint == f"set `{key}`"
    assert compiled("tiny", word, place=WITH_LOGGERS).errors == ()


def test_logs_are_no_result_that_two_runs_cannot_share(compiled, tmp_path: Path) -> None:
    words = ("logger.tensorboard_enabled=true", f"logger.log_dir={tmp_path}")
    plan = compiled("tiny", *words, place=WITH_LOGGERS)
    assert plan.errors == ()
    assert [one.role for one in plan.outputs] == ["run folder", "checkpoints"]
