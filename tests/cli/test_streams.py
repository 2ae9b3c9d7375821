"""Streams that are closed, full or without a reader, and a folder that is gone: never a bug, and never a run's end."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.in_process import nemotron

pytestmark = pytest.mark.timeout(240)

COMMANDS = {
    "list": ("steps", "list"),
    "help": ("--help",),
    "plan": ("steps", "run", "hf_to_megatron", "-c", "tiny", "--dry-run", "--json"),
    "no runs": ("runs", "list", "--runs-dir", "/nonexistent"),
    "mistake": ("steps", "lst"),
}
STREAMS = {
    "stdout full": ">/dev/full",
    "stdout closed": ">&-",
    "stderr full": "2>/dev/full",
    "stderr closed": "2>&-",
    "both full": ">/dev/full 2>&1",
    "all closed": "<&- >&- 2>&-",
    "no reader": "| true",
}


def shell(line: str, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    script = f'set -o pipefail; nemotron() {{ {sys.executable} -m nemotron "$@"; }}; {line}'
    return subprocess.run(["bash", "-c", script], capture_output=True, text=True, cwd=cwd, check=False, timeout=200)


# A process each. Every stream of a command that prints and of one that fails, what is hard for any; the rest in full.
ALWAYS = ("list", "mistake"), ("stdout full", "all closed")
CASES = [
    pytest.param(name, streams, marks=[] if name in ALWAYS[0] or streams in ALWAYS[1] else pytest.mark.full)
    for name in COMMANDS
    for streams in STREAMS
]


@pytest.mark.parametrize(("name", "streams"), CASES)
def test_a_command_ends_as_it_would_or_says_what_is_wrong_with_stdout(name: str, streams: str) -> None:
    command = " ".join(COMMANDS[name])
    done = shell(f"nemotron {command} {STREAMS[streams]}")
    usual = 2 if name == "mistake" else 0
    prints = name not in ("mistake", "no runs")
    if streams in ("stdout full", "both full") and prints:
        assert done.returncode == 8
        assert streams == "both full" or "error: cannot write to stdout: no space left on device" in done.stderr
    elif streams == "no reader":
        assert done.returncode in (usual, 1)
    else:
        assert done.returncode == usual
    assert "bug in nemotron" not in done.stdout + done.stderr
    assert "Exception ignored" not in done.stderr


@pytest.mark.parametrize(
    "command",
    ["steps list", "steps run rlvr -c tiny -d", "steps run rlvr -c tiny", "runs list", "runs show last",
     "runs resume last", "artifacts inspect model", "steps show rlvr", "steps run rl_prep blend_path=rows.jsonl"],
)  # fmt: skip
def test_a_folder_that_is_gone(tmp_path: Path, command: str) -> None:
    (tmp_path / "gone").mkdir()
    done = shell(f"rmdir ../gone; nemotron {command}", cwd=tmp_path / "gone")
    assert "bug in nemotron" not in done.stderr
    assert "loading libraries" not in done.stderr
    assert done.returncode in (0, 4, 5, 6, 8), done.stderr


@pytest.mark.parametrize(
    "command",
    ["steps run rlhf -c tiny -d data.train.data_path=locked/x.jsonl",
     "steps run dpo -c tiny -d policy.model_name=./locked", "steps run rlhf -d -c locked/x.yaml",
     "steps run rl_prep -d blend_path=locked/x.jsonl output_dir=o", "pipelines run locked/p.yaml",
     "runs show locked/r", "artifacts verify locked/m", "runs list --runs-dir locked/r"],
)  # fmt: skip
def test_a_folder_that_one_may_not_enter(tmp_path: Path, command: str) -> None:
    """Such as a colleague's on a shared disk. The rights of root are laid aside."""
    drop = "setpriv --bounding-set=-dac_override,-dac_read_search" if os.getuid() == 0 else ""
    if drop and shutil.which("setpriv") is None:
        pytest.skip("root may enter every folder, and there is no setpriv")
    (tmp_path / "locked").mkdir()
    done = shell(f"chmod 000 locked; {drop} {sys.executable} -m nemotron {command}", cwd=tmp_path)
    (tmp_path / "locked").chmod(0o700)
    assert "bug in nemotron" not in done.stderr
    assert done.returncode in (3, 4, 5, 6, 8), done.stderr
    assert "ermission denied" in done.stderr
    assert "locked" in done.stderr


@pytest.mark.parametrize("where", ["folder", "word"])
def test_a_name_that_is_no_text(tmp_path: Path, where: str) -> None:
    strange = os.fsdecode(b"caf\xe9")
    folder = tmp_path / (strange if where == "folder" else "usual")
    folder.mkdir()
    word = "rows.jsonl" if where == "folder" else "$'caf\\xe9.jsonl'"
    done = shell(f"nemotron steps run rl_prep -d output_dir=o blend_path={word}", cwd=folder)
    assert done.returncode == 2, done.stderr
    assert "is no text in utf-8" in done.stderr
    assert "caf\\xe9" in done.stderr


@pytest.mark.full
def test_a_run_ends_well_without_streams_and_without_the_folder_that_it_was_started_in(tmp_path: Path) -> None:
    """Nobody reads what it says, and the folder goes while it works: neither is the run's affair."""
    (tmp_path / "gone").mkdir()
    words = "grpo.max_num_steps=2 eval.heldout.max_samples=8 checkpointing.enabled=false"
    line = f"nemotron steps run rlvr -c tiny --runs-dir {tmp_path / 'runs'} {words}"
    watched = f"(while [ ! -s {tmp_path}/runs/*/metrics.jsonl ]; do sleep 0.05; done; rmdir ../gone) & "
    done = shell(f"{watched} {line} >&- 2> >(head -c 1 >/dev/null)", cwd=tmp_path / "gone")
    assert done.returncode == 0, done.stderr
    assert not (tmp_path / "gone").exists()
    [status] = (tmp_path / "runs").glob("*/status.json")
    assert json.loads(status.read_bytes())["state"] == "finished"
    assert (status.parent / "report.html").is_file()


DAMAGED = [
    ("policy.optimizer.kwargs.betas=(0.9,0.95)", "`betas` of AdamW is a list of 2 numbers"),
    (
        "policy.scheduler=[{name: torch.optim.lr_scheduler.StepLR, kwargs: {step_size: 0}}]",
        "`step_size` of StepLR is a whole number from 1, not `0`",
    ),
    (
        "policy.scheduler=[{name: torch.optim.lr_scheduler.LinearLR, kwargs: {end_factor: 7, total_iters: 5}}]",
        "`end_factor` of LinearLR is a number from 0 to 1, not `7`",
    ),
]


@pytest.mark.parametrize(
    ("step", "section", "words", "says"),
    # Each with one of the steps, with all in `make full`.
    [
        pytest.param(*step, *damaged, marks=[] if at == number else pytest.mark.full)
        for at, step in enumerate([("rlvr", "grpo"), ("dpo", "dpo"), ("rm", "rm")])
        for number, damaged in enumerate(DAMAGED)
    ],
)
def test_a_damaged_value_of_an_option_is_said_before_models_are_loaded(
    tmp_path: Path, step: str, section: str, words: str, says: str
) -> None:
    done = nemotron(
        *("steps", "run", step, "-c", "tiny", "--runs-dir", str(tmp_path), words, f"{section}.max_num_steps=1"),
        "eval.heldout=null",
    )
    assert done.code == 3, done.stderr
    assert says in done.stderr
    assert "loading policy" not in done.stderr
