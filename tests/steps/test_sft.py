"""`steps run sft/nemo_rl`: the whole step, killed and resumed to the same bits, and what is read when it fails."""

from __future__ import annotations

import json
import signal
import sys
from pathlib import Path
from typing import Any

import pytest

import nemotron
from tests.steps.commands import Moment, Result, kill_when, kills, metrics, only_run, run_here
from tests.steps.test_dpo import logged, trained, weights

pytestmark = pytest.mark.timeout(600)

ASSETS = Path(nemotron.__file__).parent / "assets" / "tiny_world"
SHORT = (
    "sft.max_num_steps=6",
    "sft.val_period=2",
    "sft.val_batches=1",
    "sft.val_global_batch_size=20",
    "checkpointing.save_period=2",
    "checkpointing.keep_top_k=null",
    "eval.heldout.max_samples=8",
    "policy.train_global_batch_size=32",
    "policy.train_micro_batch_size=32",
)
FEW = "data.train.data_path=${asset:tiny_world/data/pairs_heldout.jsonl}"
"""Every row is read before the first step."""
MOMENTS: dict[str, Moment] = {
    "while a checkpoint is written": lambda runs: any(runs.glob("*/checkpoints/tmp_step_*/*")),
    "between two checkpoints": lambda runs: logged(runs) >= 3,
}


def command(runs_dir: Path, *words: str) -> list[str]:
    step = [sys.executable, "-m", "nemotron", "steps", "run", "sft", "-c", "tiny"]
    return [*step, "--runs-dir", str(runs_dir), *words]


def run(runs_dir: Path, *words: str) -> Result:
    return run_here(command(runs_dir, *words))


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    runs = tmp_path_factory.mktemp("whole")
    result = run(runs, *SHORT, FEW)
    assert result.code == 0, result.stderr
    return only_run(runs)


def test_a_run_leaves_what_the_manifest_promises(uninterrupted: Path) -> None:
    status = json.loads((uninterrupted / "status.json").read_text())
    assert (status["state"], status["steps_done"]) == ("finished", 6)
    assert status["heldout_before"].keys() == status["heldout_after"].keys()
    assert "-sft-tiny-" in uninterrupted.name
    rows = metrics(uninterrupted)
    assert rows[0]["data/conversations"] == 200
    assert [row["step"] for row in rows if "validation/val_loss" in row] == [0, 2, 4, 6]
    losses = [row["validation/val_loss"] for row in rows if "validation/val_loss" in row]
    assert losses == sorted(losses, reverse=True)
    assert "plotly" in (uninterrupted / "report.html").read_text().lower()
    record = json.loads((uninterrupted / "checkpoints/step_6/policy/weights/nemotron_artifact.json").read_text())
    assert {entry["key"] for entry in record["inputs"]} >= {"data.train.data_path", "policy.pretrained_checkpoint.path"}


@kills(MOMENTS, drawn_from=[*MOMENTS])
def test_killed_and_resumed_is_bitwise_the_uninterrupted_run(
    moments: list[Moment], uninterrupted: Path, tmp_path: Path
) -> None:
    argv = command(tmp_path, *SHORT, FEW)
    resume: list[str] = []
    for moment in moments:
        assert kill_when([*argv, *resume], lambda: moment(tmp_path)) == -signal.SIGKILL  # noqa: B023
        resume = ["--resume"]
    resumed = run_here([*argv, "--resume"])
    assert resumed.code == 0, resumed.stderr
    folder = only_run(tmp_path)
    assert weights(folder) == weights(uninterrupted)
    assert trained(folder) == trained(uninterrupted)
    assert not list(folder.glob("checkpoints/*tmp*"))


def rows(path: Path, count: int, **change: Any) -> Path:
    turns = [{"role": "user", "content": "Please order desks."}, {"role": "assistant", "content": "Gladly."}]
    made: list[dict[str, Any]] = [{"messages": turns} for _ in range(count)]
    made[3] = {**made[3], **change}
    path.write_text("".join(json.dumps(row) + "\n" for row in made))
    return path


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (("sft.max_num_steps=-1",), 3, "`sft.max_num_steps`"),
        (("data.train.output_key=reply",), 5, "check `output_key` of the data set"),
        (("policy.train_global_batch_size=2000",), 5, "fewer than one batch of 2000 conversations"),
        (("checkpointing.metric_name=val:accuracy",), 3, "val:val_loss"),
        (("data.validation=null",), 5, "data.validation"),
        (("sft.only_unmask_finals=true",), 3, "only_unmask_final"),
        (("policy.sequence_packing.enabled=true",), 3, "sequence_packing"),
    ],
    ids=lambda value: value[0] if isinstance(value, tuple) else "",
)
def test_mistakes_are_found_before_the_start(tmp_path: Path, words: tuple[str, ...], code: int, said: str) -> None:
    result = run(tmp_path, *words, "--dry-run")
    assert (result.code, said in result.stderr) == (code, True), result.stderr
    assert "Traceback" not in result.stderr
    assert not list(tmp_path.iterdir())


def test_a_row_that_cannot_be_learned_is_named(tmp_path: Path) -> None:
    data = rows(tmp_path / "rows.jsonl", 64, messages=[{"role": "user", "content": "Hi"}])
    result = run(tmp_path / "runs", f"data.train.data_path={data}", "--dry-run")
    assert result.code == 5
    assert "rows.jsonl:4" in result.stderr
    assert "ends with a turn of `user`" in result.stderr


def test_conversations_that_are_too_long_are_counted_and_end_it_when_they_are_many(tmp_path: Path) -> None:
    long = [{"role": "user", "content": "Please order desks."}, {"role": "assistant", "content": "Gladly. " * 200}]
    data = rows(tmp_path / "rows.jsonl", 64, messages=long)
    result = run(tmp_path / "runs", *SHORT[1:], f"data.train.data_path={data}", "sft.max_num_steps=1")
    assert result.code == 0, result.stderr
    folder = only_run(tmp_path / "runs")
    [left_out] = [json.loads(line) for line in (folder / "rejected_conversations.jsonl").read_text().splitlines()]
    assert (left_out["id"], left_out["reason"], left_out["set"]) == ("rows.jsonl:4", "too-long", "train")
    assert metrics(folder)[0]["data/rejected_conversations"] == 1
    many = run(tmp_path / "many", f"data.train.data_path={data}", "limits.max_rejected_share=0.01")
    assert (many.code, "1 of 64 training conversations are longer" in many.stderr) == (5, True), many.stderr
