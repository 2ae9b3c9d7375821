"""The RLVR step as a command: a run killed anywhere ends with the same bits; rewards from servers; what goes wrong."""

from __future__ import annotations

import json
import os
import re
import signal
import sys
from pathlib import Path
from typing import Any

import pytest
from syrupy.assertion import SnapshotAssertion

import nemotron
from tests.steps.commands import Result, kill_when, metrics, only_run, run_here, steps_logged, weights

pytestmark = pytest.mark.timeout(600)

ASSETS = Path(nemotron.__file__).parent / "assets" / "tiny_world"
SHORT = ("grpo.max_num_steps=4", "checkpointing.save_period=2", "eval.heldout.max_samples=16")
QUICK = ("grpo.max_num_steps=2", "eval.heldout=null", "checkpointing.enabled=false")
GYM = (
    f"policy.model_name={ASSETS / 'policy_tasks'}",
    "policy.precision=float32",
    "policy.max_total_sequence_length=96",
    "policy.train_global_batch_size=32",
    "policy.train_micro_batch_size=32",
    "policy.generation.max_new_tokens=24",
    "policy.optimizer.kwargs.lr=4.0e-4",
    "policy.scheduler=null",
    "grpo.num_prompts_per_step=8",
    "grpo.num_generations_per_prompt=4",
    "grpo.max_num_steps=2",
    "grpo.val_period=0",
    "grpo.val_at_start=false",
    "checkpointing.metric_name=null",
    "engine=embedded",
)
"""`-c nemo_gym` at tiny size."""


def command(runs_dir: Path, *words: str, config: str = "tiny") -> list[str]:
    return [sys.executable, "-m", "nemotron", "steps", "run", "rlvr", "-c", config, "--runs-dir", str(runs_dir), *words]


def samples(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "samples.jsonl").read_text().splitlines()]


def readable(result: Result, tmp_path: Path) -> str:
    """The last error of stderr with what differs between machines written out of it."""
    assert "Traceback" not in result.stderr, result.stderr
    text = result.stderr[result.stderr.index("error:") :].replace(str(tmp_path), "TMP")
    return f"exit code: {result.code}\n{re.sub(r'127.0.0.1:[0-9]+', '127.0.0.1:PORT', text)}"


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    runs = tmp_path_factory.mktemp("whole")
    result = run_here(command(runs, *SHORT))
    assert result.code == 0, result.stderr
    return only_run(runs)


def test_a_run_reports_every_check(uninterrupted: Path) -> None:
    rows = [row for row in metrics(uninterrupted) if "train/reward" in row]
    assert [row["step"] for row in rows] == [1, 2, 3, 4]
    for row in rows:
        assert row["train/missing_share"] == 0
        assert 0 < row["train/pass_rate"] < 1
        mixed = 0.7 * row["reward/math/mean"] + 0.3 * row["reward/format/mean"]
        assert row["train/reward"] == pytest.approx(mixed, abs=1e-5)
        assert row["train/reward_minus_kl"] <= row["train/reward"] + 1e-6
    kept = samples(uninterrupted)
    trained = [sample for sample in kept if sample["phase"] == "train"]
    assert len(trained) == 4 * 64
    assert all(sample["passed"] == (sample["components"] == {"math": 1.0, "format": 1.0}) for sample in trained)
    heldout = [sample for sample in kept if sample["phase"] == "heldout_before"]
    assert {sample["row_id"].split(":")[0] for sample in heldout} == {"tasks_heldout.jsonl"}
    assert all(sample["fully_right"] == (sample["math"] and sample["format"]) for sample in heldout)


@pytest.mark.full
def test_killed_and_resumed_is_bitwise_the_uninterrupted_run(uninterrupted: Path, tmp_path: Path) -> None:
    argv = command(tmp_path, *SHORT)
    assert kill_when(argv, lambda: steps_logged(tmp_path) >= 3) == -signal.SIGKILL
    resumed = run_here([*argv, "--resume"])
    assert resumed.code == 0, resumed.stderr
    folder = only_run(tmp_path)
    assert weights(folder) == weights(uninterrupted)
    same = ("train/loss", "train/reward", "train/pass_rate", "reward/math/mean")
    assert [[row[name] for name in same] for row in metrics(folder) if "train/loss" in row] == [
        [row[name] for name in same] for row in metrics(uninterrupted) if "train/loss" in row
    ]
    assert sorted(map(str, samples(folder))) == sorted(map(str, samples(uninterrupted)))


def test_rewards_from_our_own_servers(tmp_path: Path) -> None:
    data = tmp_path / "mixed.jsonl"
    sums = (ASSETS / "data" / "tasks_train.jsonl").read_text().splitlines()[:40]
    letters = (ASSETS / "data" / "choices_train.jsonl").read_text().splitlines()[:40]
    data.write_text("\n".join([*sums, *letters]) + "\n")
    result = run_here(command(tmp_path / "runs", *GYM, f"data.train.data_path={data}", config="nemo_gym"))
    assert result.code == 0, result.stderr
    folder = only_run(tmp_path / "runs")
    rows = [row for row in metrics(folder) if "train/reward" in row]
    assert len(rows) == 2
    assert all(row["train/missing_share"] == 0 and row["reward/requests"] == 64 for row in rows)
    assert {"reward/math/mean", "reward/mcqa/mean"} <= set().union(*rows)
    kept = samples(folder)
    assert {sample["server"] for sample in kept} == {"math", "mcqa"}
    for sample in kept:
        assert sample["passed"] == (sample["reward"] == 1.0)
        if sample["server"] == "mcqa" and sample["passed"]:
            assert f"\\boxed{{{sample['verified']['extracted_answer']}}}" in sample["response"]


def test_a_server_that_is_not_there_ends_the_run_at_once(tmp_path: Path, snapshot: SnapshotAssertion) -> None:
    words = ("gym.servers.math.base_url=http://127.0.0.1:9", "gym.servers.math.kind=null", "gym.ready_timeout_s=0.5")
    result = run_here(command(tmp_path, *GYM, *words, config="nemo_gym"))
    assert readable(result, tmp_path) == snapshot


BROKEN = "def score(row, response, *, ended):\n    raise RuntimeError('no')\n"


def test_a_function_that_always_fails_ends_the_run(tmp_path: Path, snapshot: SnapshotAssertion) -> None:
    (tmp_path / "mine.py").write_text(BROKEN)
    function = f"rewards.functions=[{{name: user, function: 'mine:score', search_path: '{tmp_path}'}}]"
    result = run_here(command(tmp_path / "runs", *QUICK, function))
    assert readable(result, tmp_path) == snapshot
    [reason] = {json.dumps(sample["missing"]) for sample in samples(only_run(tmp_path / "runs"))}
    assert "RuntimeError" in reason


@pytest.mark.parametrize(
    "words",
    [
        ("rewards.functions=[{name: maths}]",),
        ("rewards.functions=[{name: exact, answer_field: solution}]",),
        ("rewards.functions=[{name: user, function: 'gone:score'}]",),
        ("rewards.functions=[{name: math, weight: -1.0}]",),
        ("gym={servers: {math: {kind: math, agents: [a]}}}",),
        ("-c", "nemo_gym", "gym.servers.math.kind=code"),
        ("-c", "nemo_gym", "gym.servers.math.base_url=localhost:12001", "gym.servers.math.kind=null"),
    ],
    ids=" ".join,
)
def test_wrong_inputs(words: tuple[str, ...], tmp_path: Path, snapshot: SnapshotAssertion) -> None:
    config, rest = (words[1], words[2:]) if words[0] == "-c" else ("tiny", words)
    result = run_here(command(tmp_path, *rest, "--dry-run", config=config))
    text = readable(result, tmp_path).replace(os.getcwd(), "CWD")
    # Lines of the shipped configs move; those of the user's own words do not.
    text = re.sub(r"\.yaml:\d+:\d+", ".yaml:LINE", text)
    assert re.sub(r"\S*src/nemotron/", "[PACKAGE]/", text) == snapshot
    assert not list(tmp_path.iterdir())


def test_a_prompt_that_nemo_rl_would_mask_is_refused(tmp_path: Path) -> None:
    """There it is cut, answered and scored, and nothing is learned from it."""
    result = run_here(command(tmp_path, *QUICK, "data.max_input_seq_length=8"))
    assert result.code == 5, result.stderr
    assert re.search(r"prompt \S+ has \d+ tokens, more than `data.max_input_seq_length` \(8\)", result.stderr)
    assert "tasks_train.jsonl:" in result.stderr
