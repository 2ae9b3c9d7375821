"""A profile's time limit becomes the time by which a checkpoint has to be saved."""

from __future__ import annotations

from pathlib import Path

import pytest

from nemotron.profiles.model import SlurmProfile
from tests.in_process import nemotron

PROFILE = '[a]\nexecutor = "slurm"\nremote_job_dir = "{folder}"\ntime = "{time}"\n'


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("30", 1800),
        ("4:30", 270),
        ("04:00:00", 14400),
        ("2-12", 216000),
        ("1-00:30", 88200),
        ("1-01:02:03", 90123),
        ("UNLIMITED", None),
        ("<time>", None),
    ],
)
def test_slurms_forms_of_time(text: str, seconds: int | None) -> None:
    assert SlurmProfile.model_validate({"executor": "slurm", "time": text}).limit_s == seconds


def must_save_by(folder: Path, time: str, *overrides: str) -> str:
    (folder / "env.toml").write_text(PROFILE.format(folder=folder, time=time))
    words = (
        "steps",
        "run",
        "rl/nemo_rl/rlhf",
        "-c",
        "tiny",
        "engine=embedded",
        "-b",
        "a",
        "--dry-run",
        "--show-config",
    )
    done = nemotron(*words, *overrides, cwd=folder)
    assert done.code == 0, done.stderr
    line = next(line for line in done.stdout.splitlines() if "checkpoint_must_save_by" in line)
    return line.partition(":")[2].strip().strip("'\"")


def test_the_config_is_given_the_limit_less_the_start(tmp_path: Path) -> None:
    assert must_save_by(tmp_path, "04:00:00") == "00:03:48:00"
    assert must_save_by(tmp_path, "1-00:00:00") == "00:22:48:00"


def test_what_the_user_says_stays_and_short_limits_are_left_alone(tmp_path: Path) -> None:
    own = "checkpointing.checkpoint_must_save_by='00:01:00:00'"
    assert must_save_by(tmp_path, "04:00:00", own) == "00:01:00:00"
    assert must_save_by(tmp_path, "00:20:00") == "null"


def test_the_layers_of_the_value_are_explained_with_the_profile(tmp_path: Path) -> None:
    (tmp_path / "env.toml").write_text(PROFILE.format(folder=tmp_path, time="04:00:00"))
    words = ("steps", "run", "rlhf", "-c", "tiny", "--explain", "checkpointing.checkpoint_must_save_by", "-b", "a")
    done = nemotron(*words, cwd=tmp_path)
    assert done.code == 0, done.stderr
    assert "00:03:48:00" in done.stdout
    assert "env.toml" in done.stdout
