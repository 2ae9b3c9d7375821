"""`steps run rl/nemo_rl/dpo`: the whole step, killed and resumed to the same bits, and what is read when it fails."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import sys
from pathlib import Path
from typing import Any

import pytest
from syrupy.assertion import SnapshotAssertion

import nemotron
from tests.steps.commands import Moment, Result, kill_when, kills, metrics, only_run, run_here

pytestmark = pytest.mark.timeout(600)

ASSETS = Path(nemotron.__file__).parent / "assets" / "tiny_world"
SHORT = (
    "dpo.max_num_steps=6",
    "dpo.val_period=2",
    "checkpointing.save_period=2",
    "checkpointing.keep_top_k=null",
    "eval.heldout.max_samples=8",
    "dpo.val_batches=1",
    "dpo.val_global_batch_size=20",
    "policy.train_global_batch_size=32",
    "policy.train_micro_batch_size=32",
    # The reference scores all pairs before the first step.
    "data.train.data_path=${asset:tiny_world/data/pairs_heldout.jsonl}",
)
MOMENTS: dict[str, Moment] = {
    "while the reference is computed": lambda runs: any(runs.glob("*/cache")),
    "while a checkpoint is written": lambda runs: any(runs.glob("*/checkpoints/tmp_step_*/*")),
    "between two checkpoints": lambda runs: logged(runs) >= 3,
}


def command(runs_dir: Path, *words: str) -> list[str]:
    step = [sys.executable, "-m", "nemotron", "steps", "run", "rl/nemo_rl/dpo", "-c", "tiny"]
    return [*step, "--runs-dir", str(runs_dir), *words]


def run(runs_dir: Path, *words: str) -> Result:
    return run_here(command(runs_dir, *words))


def logged(runs: Path) -> int:
    """Training steps in the metrics so far."""
    found = list(runs.glob("*/metrics.jsonl"))
    return found[0].read_bytes().count(b'"train/loss"') if found else 0


def weights(folder: Path) -> bytes:
    return (folder / "checkpoints/step_6/policy/weights/hf/model.safetensors").read_bytes()


def trained(folder: Path) -> list[dict[str, Any]]:
    """Rows of steps and validations without what depends on the clock."""
    timed = ("wall_s", "timing/")
    return [{k: v for k, v in row.items() if not k.startswith(timed)} for row in metrics(folder)]


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    runs = tmp_path_factory.mktemp("whole")
    result = run(runs, *SHORT)
    assert result.code == 0, result.stderr
    return only_run(runs)


def test_a_run_goes_on_from_the_checkpoint_before_one_whose_weights_are_damaged(
    uninterrupted: Path, tmp_path: Path
) -> None:
    """Nobody has another copy of a checkpoint that the run wrote: what the hint tells to do works."""
    copy = tmp_path / "runs" / uninterrupted.name
    shutil.copytree(uninterrupted, copy)
    newest = copy / "checkpoints" / "step_6"
    os.truncate(next(newest.rglob("*.distcp")), 1000)
    words = ("runs", "resume", str(copy), "--max-steps", "7")
    failed = run_here([sys.executable, "-m", "nemotron", *words])
    assert failed.code == 6
    assert "the run then resumes from the checkpoint before it" in failed.stderr
    shutil.rmtree(newest)
    resumed = run_here([sys.executable, "-m", "nemotron", *words])
    assert resumed.code == 0, resumed.stderr


def test_a_run_leaves_what_the_manifest_promises(uninterrupted: Path) -> None:
    status = json.loads((uninterrupted / "status.json").read_text())
    assert (status["state"], status["steps_done"]) == ("finished", 6)
    assert status["heldout_before"].keys() == status["heldout_after"].keys()
    rows = metrics(uninterrupted)
    assert rows[0]["data/pairs"] == 200
    assert [row["step"] for row in rows if "validation-default_accuracy" in row] == [0, 2, 4, 6]
    last = [row for row in rows if "train/loss" in row][-1]
    assert last["train/loss"] < 0.69
    assert last["train/accuracy"] > 0.6
    sides = {json.loads(line).get("side") for line in (uninterrupted / "samples.jsonl").read_text().splitlines()}
    assert {"chosen", "rejected"} <= sides
    assert "<svg" in (text := (uninterrupted / "report.html").read_text()) or "plotly" in text.lower()
    record = json.loads((uninterrupted / "checkpoints/step_6/policy/weights/nemotron_artifact.json").read_text())
    assert {entry["key"] for entry in record["inputs"]} >= {"data.train.data_path", "policy.pretrained_checkpoint.path"}


# A reference that was cut short is computed again: tests/unit/rl/test_reference_cache.py.
@kills(MOMENTS, drawn_from=[*MOMENTS][1:])
def test_killed_and_resumed_is_bitwise_the_uninterrupted_run(
    moments: list[Moment], uninterrupted: Path, tmp_path: Path
) -> None:
    argv = command(tmp_path, *SHORT)
    resume: list[str] = []
    for moment in moments:
        assert kill_when([*argv, *resume], lambda: moment(tmp_path)) == -signal.SIGKILL  # noqa: B023
        resume = ["--resume"]
    resumed = run_here([*argv, "--resume"])
    assert resumed.code == 0, resumed.stderr
    assert "reference log-probs" not in resumed.stderr, "they are on disk"
    folder = only_run(tmp_path)
    assert weights(folder) == weights(uninterrupted)
    assert trained(folder) == trained(uninterrupted)
    assert not list(folder.glob("checkpoints/*tmp*"))


def resume(runs_dir: Path, *words: str) -> Result:
    return run_here([sys.executable, "-m", "nemotron", "runs", "resume", "last", "--runs-dir", str(runs_dir), *words])


@pytest.mark.full
def test_a_finished_run_that_is_extended_ends_as_one_that_was_longer_from_the_start(
    uninterrupted: Path, tmp_path: Path
) -> None:
    short = run(tmp_path, *SHORT[1:], "dpo.max_num_steps=3")
    assert short.code == 0, short.stderr
    folder = only_run(tmp_path)
    before = json.loads((folder / "status.json").read_text())
    extended = resume(tmp_path, "--max-steps", "6")
    assert extended.code == 0, extended.stderr
    assert "`dpo.max_num_steps` 3 -> 6" in extended.stderr
    assert weights(folder) == weights(uninterrupted)
    status = json.loads((folder / "status.json").read_text())
    assert (status["state"], status["steps_done"], status["steps_total"]) == ("finished", 6, 6)
    assert status["heldout_before"] == before["heldout_before"]
    samples = [json.loads(line) for line in (folder / "samples.jsonl").read_text().splitlines()]
    assert {row["step"] for row in samples if row["phase"] == "heldout_after"} == {6}
    job = json.loads((folder / "job.json").read_text())
    [attempt] = job["asked"]["resumed"]
    assert (attempt["key"], attempt["was"], attempt["now"]) == ("dpo.max_num_steps", 3, 6)
    assert attempt["command"][:2] == ["runs", "resume"]
    assert job["config"]["dpo"]["max_num_steps"] == 6
    assert "dpo.max_num_steps 3 → 6" in (folder / "report.html").read_text()

    again = resume(tmp_path, "--max-steps", "6")
    assert (again.code, "has made 6 steps already" in again.stderr) == (2, True)


def readable(result: Result, tmp_path: Path) -> str:
    """The last error of stderr with what differs between machines written out of it."""
    assert "Traceback" not in result.stderr, result.stderr
    text = result.stderr[result.stderr.index("error:") :].replace(str(tmp_path), "TMP")
    return f"exit code: {result.code}\n{text}"


def pairs(path: Path, count: int, **change: Any) -> Path:
    rows = [{"prompt": f"Please order {i} desks.", "chosen": "Gladly.", "rejected": "Ugh."} for i in range(count)]
    rows[3].update(change)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.mark.parametrize(
    "change", [{"rejected": "Gladly."}, {"chosen": ""}, {"rejected": None}, {"prompt": []}], ids=lambda c: str(c)
)
def test_rows_that_are_no_pairs(change: dict[str, Any], tmp_path: Path, snapshot: SnapshotAssertion) -> None:
    data = pairs(tmp_path / "train.jsonl", 70, **change)
    assert readable(run(tmp_path / "runs", f"data.train.data_path={data}", "--dry-run"), tmp_path) == snapshot


def test_pairs_the_wrong_way_round(tmp_path: Path, snapshot: SnapshotAssertion) -> None:
    same = {"prompt": "Please order 1 desks.", "chosen": "Ugh.", "rejected": "Gladly."}
    data = pairs(tmp_path / "train.jsonl", 70, **same)
    assert readable(run(tmp_path / "runs", f"data.train.data_path={data}", "--dry-run"), tmp_path) == snapshot


@pytest.mark.parametrize(
    "words",
    [
        ["dpo.max_num_steps=-1"],
        ["dpo.preference_loss_weight=0"],
        ["dpo.reference_policy_kl_penalty=0"],
        ["dpo.beta=0.1"],
        ["policy.train_global_batch_size=1600"],
        ["~policy.generation"],
        ["data.max_input_seq_length=97"],
    ],
    ids=" ".join,
)
def test_settings_that_cannot_work(words: list[str], tmp_path: Path, snapshot: SnapshotAssertion) -> None:
    assert readable(run(tmp_path / "runs", *words, "--dry-run"), tmp_path) == snapshot


def test_pairs_that_are_too_long_are_counted_or_stop_the_run(tmp_path: Path, snapshot: SnapshotAssertion) -> None:
    data = pairs(tmp_path / "train.jsonl", 70, chosen="Gladly. " * 40)
    words = (f"data.train.data_path={data}", "dpo.max_num_steps=1", "eval.heldout=null", "dpo.val_batches=1")
    result = run(tmp_path / "runs", *words)
    assert result.code == 0, result.stderr
    folder = only_run(tmp_path / "runs")
    [left_out] = [json.loads(line) for line in (folder / "rejected_pairs.jsonl").read_text().splitlines()]
    assert (left_out["id"], left_out["set"], left_out["reason"]) == ("train.jsonl:4", "train", "too-long")
    assert (metrics(folder)[0]["data/pairs"], metrics(folder)[0]["data/rejected_pairs"]) == (69, 1)
    stopped = run(tmp_path / "other", *words, "limits.max_rejected_share=0.01")
    assert readable(stopped, tmp_path) == snapshot


def test_a_damaged_policy(tmp_path: Path, snapshot: SnapshotAssertion) -> None:
    shutil.copytree(ASSETS / "policy_megatron", tmp_path / "policy")
    file = tmp_path / "policy/iter_0000000/__0_0.distcp"
    file.write_bytes(file.read_bytes()[:1000])
    result = run(tmp_path / "runs", f"policy.pretrained_checkpoint.path={tmp_path / 'policy'}", *SHORT)
    assert re.sub(r"\d+ bytes", "N bytes", readable(result, tmp_path)) == snapshot
