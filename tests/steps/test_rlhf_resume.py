"""kill -9 at any moment, then `--resume`: the same bits as a run that nobody killed."""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from tests.steps.commands import (
    SHORT,
    Moment,
    command,
    kill_when,
    metrics,
    only_run,
    run,
    run_here,
    steps_logged,
    weights,
)

pytestmark = pytest.mark.timeout(900)

MOMENTS: dict[str, Moment] = {
    "before the run folder exists": lambda runs: True,
    "before the first checkpoint": lambda runs: steps_logged(runs) >= 1,
    "while a checkpoint is written": lambda runs: any(runs.glob("*/checkpoints/tmp_step_*/*")),
    "between two checkpoints": lambda runs: steps_logged(runs) >= 3,
}
if os.environ.get("EVERY_MOMENT"):
    MOMENTS["while the models load"] = lambda runs: any(runs.glob("2*/status.json"))


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    runs = tmp_path_factory.mktemp("whole")
    result = run_here(command(runs, *SHORT))
    assert result.code == 0, result.stderr
    return only_run(runs)


# `make full` kills at each of them.
SOME = ("while a checkpoint is written",)


@pytest.mark.parametrize("moment", [pytest.param(m, marks=[] if m in SOME else pytest.mark.full) for m in MOMENTS])
def test_killed_and_resumed_is_bitwise_the_uninterrupted_run(moment: str, uninterrupted: Path, tmp_path: Path) -> None:
    argv = command(tmp_path, *SHORT)
    assert kill_when(argv, lambda: MOMENTS[moment](tmp_path)) == -signal.SIGKILL
    assert _gone(str(tmp_path), within_s=60), "the judge outlived the run that started it"
    resumed = run_here([*argv, "--resume"])
    assert resumed.code == 0, resumed.stderr
    folder = only_run(tmp_path)
    assert weights(folder) == weights(uninterrupted)
    whole = [row["train/loss"] for row in metrics(uninterrupted) if "train/loss" in row]
    assert [row["train/loss"] for row in metrics(folder) if "train/loss" in row] == whole
    assert not list(folder.glob("checkpoints/*tmp*"))
    assert json.loads((folder / "checkpoints/owner.json").read_text())["run"] == folder.name
    wanted, found = (sorted((path / "samples.jsonl").read_text().splitlines()) for path in (uninterrupted, folder))
    assert found == wanted


def test_the_result_is_a_megatron_checkpoint_that_converts_and_generates(uninterrupted: Path, tmp_path: Path) -> None:
    target = tmp_path / "hf"
    step = uninterrupted / "checkpoints" / "step_4"
    convert = [sys.executable, "-m", "nemotron", "steps", "run", "convert/megatron_to_hf", "--runs-dir", str(tmp_path)]
    result = run_here([*convert, f"megatron_path={step}", f"output_dir={target}"])
    assert result.code == 0, result.stderr
    tokenizer, model = AutoTokenizer.from_pretrained(target), AutoModelForCausalLM.from_pretrained(target)
    for name, tensor in load_file(step / "policy" / "weights" / "hf" / "model.safetensors").items():
        assert torch.equal(model.state_dict()[name], tensor), name
    prompt = tokenizer.apply_chat_template(
        [{"role": "user", "content": "Please order a kettle for Paris."}],
        add_generation_prompt=True,
        return_tensors="pt",
        return_dict=True,
    )
    answer = model.generate(**prompt, max_new_tokens=24, do_sample=False)
    assert tokenizer.decode(answer[0, prompt["input_ids"].shape[1] :], skip_special_tokens=True).strip()


@pytest.mark.full
def test_a_run_starts_from_the_checkpoint_of_another(uninterrupted: Path, tmp_path: Path) -> None:
    start = uninterrupted / "checkpoints" / "step_4"
    words = (f"policy.pretrained_checkpoint.path={start}", "grpo.max_num_steps=1", "eval.heldout=null")
    result = run(tmp_path, *words)
    assert result.code == 0, result.stderr
    record = json.loads((only_run(tmp_path) / "checkpoints/step_1/policy/weights/nemotron_artifact.json").read_text())
    assert str(start) in [source["path"] for source in record["inputs"]]


@pytest.mark.full
def test_terminate_leaves_a_truthful_status_and_runs_resume_goes_on(uninterrupted: Path, tmp_path: Path) -> None:
    argv = command(tmp_path, *SHORT)
    assert kill_when(argv, lambda: steps_logged(tmp_path) >= 3, signum=signal.SIGTERM) == 130
    folder = only_run(tmp_path)
    assert '"interrupted"' in (folder / "status.json").read_text()
    resumed = run_here([*argv[:3], "runs", "resume", "last", "--runs-dir", str(tmp_path)])
    assert resumed.code == 0, resumed.stderr
    assert weights(folder) == weights(uninterrupted)


def _gone(text: str, *, within_s: float) -> bool:
    """Whether no judge server is left whose log file lies below ``text``."""
    deadline = time.monotonic() + within_s
    while time.monotonic() < deadline:
        if not any(_holds_open(pid, text) for pid in os.listdir("/proc") if pid.isdecimal()):
            return True
        time.sleep(0.1)
    return False


def _holds_open(pid: str, text: str) -> bool:
    try:
        links = [os.readlink(f"/proc/{pid}/fd/{name}") for name in os.listdir(f"/proc/{pid}/fd")]
    except OSError:  # it ended while we looked, or belongs to another user
        return False
    return any(text in link for link in links)
