"""`steps run rl/nemo_rl/rm`: the whole step, killed and resumed to the same bits; its result; errors."""

from __future__ import annotations

import json
import signal
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from syrupy.assertion import SnapshotAssertion
from transformers import AutoModelForSequenceClassification, AutoTokenizer

import nemotron
from tests.steps.commands import Moment, Result, kill_when, kills, metrics, only_run, run_here

pytestmark = pytest.mark.timeout(600)

ASSETS = Path(nemotron.__file__).parent / "assets" / "tiny_world"
SHORT = (
    "rm.max_num_steps=6",
    "rm.val_period=2",
    "rm.val_batches=1",
    "bradley_terry.statistics_pairs=32",
    "checkpointing.save_period=2",
    "checkpointing.keep_top_k=null",
    "eval.heldout.max_samples=24",
)
FEW = "data.train.data_path=${asset:tiny_world/data/pairs_heldout.jsonl}"
"""Every row is read before the first step."""
MOMENTS: dict[str, Moment] = {
    "before the first checkpoint": lambda runs: logged(runs) >= 1,
    "while a checkpoint is written": lambda runs: any(runs.glob("*/checkpoints/tmp_step_*/*")),
    "between two checkpoints": lambda runs: logged(runs) >= 5,
}


def command(runs_dir: Path, *words: str) -> list[str]:
    step = [sys.executable, "-m", "nemotron", "steps", "run", "rl/nemo_rl/rm", "-c", "tiny"]
    return [*step, "--runs-dir", str(runs_dir), *words]


def run(runs_dir: Path, *words: str) -> Result:
    return run_here(command(runs_dir, *words))


def logged(runs: Path) -> int:
    """Training steps in the metrics so far."""
    found = list(runs.glob("*/metrics.jsonl"))
    return found[0].read_bytes().count(b'"train/loss"') if found else 0


def result_of(folder: Path) -> Path:
    return folder / "checkpoints/step_6/policy/weights/hf"


def untimed(folder: Path) -> list[dict[str, Any]]:
    timed = ("wall_s", "timing/")
    return [{k: v for k, v in row.items() if not k.startswith(timed)} for row in metrics(folder)]


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    runs = tmp_path_factory.mktemp("whole")
    result = run(runs, *SHORT, FEW)
    assert result.code == 0, result.stderr
    return only_run(runs)


def test_a_run_leaves_what_the_manifest_promises(uninterrupted: Path) -> None:
    status = json.loads((uninterrupted / "status.json").read_text())
    assert (status["state"], status["steps_done"]) == ("finished", 6)
    assert status["heldout_before"].keys() == status["heldout_after"].keys() == {"accuracy"}
    rows = metrics(uninterrupted)
    assert (rows[0]["data/pairs"], rows[0]["data/rejected_pairs"]) == (200, 0)
    assert [row["step"] for row in rows if "validation-default_accuracy" in row] == [0, 2, 4, 6]
    samples = [json.loads(line) for line in (uninterrupted / "samples.jsonl").read_text().splitlines()]
    assert {"chosen", "rejected"} <= {row.get("side") for row in samples}
    assert (uninterrupted / "report.html").stat().st_size > 10_000
    record = json.loads((result_of(uninterrupted) / "nemotron_artifact.json").read_text())
    assert record["type"] == "checkpoint_hf"
    assert {entry["key"] for entry in record["inputs"]} >= {"data.train.data_path", "policy.model_name"}


def test_the_result_ranks_held_out_pairs_alike_in_transformers(uninterrupted: Path) -> None:
    folder = result_of(uninterrupted)
    model, tokenizer = AutoModelForSequenceClassification.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    lines = (ASSETS / "data/pairs_heldout.jsonl").read_text().splitlines()[:24]
    chats = [
        [*pair["prompt"], {"role": "assistant", "content": pair[side]}]
        for pair in map(json.loads, lines)
        for side in ("chosen", "rejected")
    ]
    batch = tokenizer.apply_chat_template(chats, padding=True, return_dict=True, return_tensors="pt")
    with torch.inference_mode():
        scores = model.eval()(**batch).logits[:, 0]
    after = [
        row
        for line in (uninterrupted / "samples.jsonl").read_text().splitlines()
        if (row := json.loads(line))["phase"] == "heldout_after"
    ]
    ours = torch.tensor([[row["reward"], row["rejected_reward"]] for row in after])
    torch.testing.assert_close(scores.view(-1, 2), ours, atol=1e-5, rtol=1e-5)
    assert [row["accuracy"] for row in after] == (scores[::2] > scores[1::2]).tolist()
    assert model.config.reward_std > 0


@kills(MOMENTS)
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
    for name in ("model.safetensors", "config.json"):
        assert (result_of(folder) / name).read_bytes() == (result_of(uninterrupted) / name).read_bytes()
    assert untimed(folder) == untimed(uninterrupted)
    assert not list(folder.glob("checkpoints/*tmp*"))


@pytest.mark.full
def test_prepared_tokens_train_the_same_model_as_text(uninterrupted: Path, tmp_path: Path) -> None:
    prep = [sys.executable, "-m", "nemotron", "steps", "run", "data_prep/rl_prep", "-c", "tiny"]
    prep += ["--runs-dir", str(tmp_path / "prep")]
    splits = ", ".join(f"{name}: [{ASSETS}/data/pairs_{name}.jsonl]" for name in ("train", "validation", "heldout"))
    words = (
        f"blend={{{splits}}}",
        f"output_dir={tmp_path / 'data'}",
        f"tokenize={{tokenizer: {ASSETS / 'policy'}, max_length: 96, chat_template: default, "
        "on_too_long: reject, pad_to_multiple_of: 1}",
    )
    prepared = run_here([*prep, *words])
    assert prepared.code == 0, prepared.stderr
    argv = (f"data.manifest_path={tmp_path / 'data'}", *SHORT, "data.shuffle=false")
    folders = []
    for name, shards in (("text", "false"), ("tokens", "true")):
        done = run(tmp_path / name, *argv, f"data.use_tokens={shards}")
        assert done.code == 0, done.stderr
        folders.append(only_run(tmp_path / name))
    losses = [[row["train/loss"] for row in metrics(folder) if "train/loss" in row] for folder in folders]
    assert len(losses[0]) == 6
    assert losses[0] == losses[1]


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
    "words",
    [
        ["policy.reward_model_cfg.reward_model_type=regression"],
        ["policy.reward_model_cfg.enabled=false"],
        ["policy.reward_model_cfg.reward_model_type=bradly_terry"],
        ["policy.train_micro_batch_size=5"],
        ["policy.train_global_batch_size=1600"],
        ["rm.max_num_steps=0"],
        ["rm.beta=0.1"],
        ["data.validation=null"],
        ["data.use_tokens=true"],
        ["bradley_terry.center_rewards_coefficient=-1"],
    ],
    ids=" ".join,
)
def test_settings_that_cannot_work(words: list[str], tmp_path: Path, snapshot: SnapshotAssertion) -> None:
    assert readable(run(tmp_path / "runs", *words, "--dry-run"), tmp_path) == snapshot


def test_pairs_that_are_too_long_are_counted_or_stop_the_run(tmp_path: Path, snapshot: SnapshotAssertion) -> None:
    data = pairs(tmp_path / "train.jsonl", 70, chosen="Gladly. " * 40)
    words = (f"data.train.data_path={data}", "rm.max_num_steps=1", "eval.heldout=null", "rm.val_batches=1")
    result = run(tmp_path / "runs", *words)
    assert result.code == 0, result.stderr
    folder = only_run(tmp_path / "runs")
    [left_out] = [json.loads(line) for line in (folder / "rejected_pairs.jsonl").read_text().splitlines()]
    assert left_out == {"id": "train.jsonl:4", "reason": "too-long"}
    assert (metrics(folder)[0]["data/pairs"], metrics(folder)[0]["data/rejected_pairs"]) == (69, 1)
    stopped = run(tmp_path / "other", *words, "limits.max_rejected_share=0.01")
    assert readable(stopped, tmp_path) == snapshot


def test_a_margin_that_is_missing(tmp_path: Path, snapshot: SnapshotAssertion) -> None:
    data = pairs(tmp_path / "train.jsonl", 70)
    words = (f"data.train.data_path={data}", "bradley_terry.margin_key=margin", *SHORT)
    assert readable(run(tmp_path / "runs", *words), tmp_path) == snapshot
