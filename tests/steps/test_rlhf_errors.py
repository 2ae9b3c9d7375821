"""What goes wrong while a run starts or works: one clear error, the right exit code, a true status, no traceback."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web
from syrupy.assertion import SnapshotAssertion

import nemotron
from tests.limited import longest_file
from tests.steps.commands import (
    JUDGE,
    Result,
    command,
    kill_when,
    only_run,
    run,
    run_here,
    scripted_judge,
    steps_logged,
)
from tests.unit.judge.scripted_judge import Scripted

QUICK = ("grpo.max_num_steps=2", "eval.heldout=null")
REMOTE = (*QUICK, f"{JUDGE}.model=judge", "judge.ready_timeout_s=2", "judge.max_retries=1")


def readable(result: Result, tmp_path: Path) -> str:
    """The last error of stderr with what differs between machines written out of it."""
    assert "Traceback" not in result.stderr, result.stderr
    text = result.stderr[result.stderr.index("error:") :].replace(str(tmp_path), "TMP")
    text = re.sub(r"127\.0\.0\.1:\d+", "127.0.0.1:PORT", text)
    return f"exit code: {result.code}\n{text}"


def status(runs: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((only_run(runs) / "status.json").read_text())
    return found


def test_judge_endpoint_down(tmp_path: Path, snapshot: SnapshotAssertion) -> None:
    result = run(tmp_path, *REMOTE, f"{JUDGE}.base_url=http://127.0.0.1:9/v1")
    assert readable(result, tmp_path) == snapshot
    assert status(tmp_path)["state"] == "failed"
    assert not list(only_run(tmp_path).glob("checkpoints/step_*"))


def test_judge_answers_garbage(tmp_path: Path, snapshot: SnapshotAssertion) -> None:
    async def garbage(k: int, body: dict[str, Any]) -> web.Response:
        message = {"role": "assistant", "content": "I like both."}
        return web.json_response({"choices": [{"index": 0, "message": message, "finish_reason": "stop"}]})

    with Scripted(garbage) as judge:
        words = (*REMOTE, f"{JUDGE}.base_url={judge.base_url}")
        result = run(tmp_path / "all-the-same", *words, "--no-probe-judge")
        unfit = run(tmp_path / "probed", *words)
    assert readable(result, tmp_path) == snapshot
    assert status(tmp_path / "all-the-same")["exit_code"] == 7
    assert readable(unfit, tmp_path) == snapshot(name="probed")
    assert status(tmp_path / "probed")["steps_done"] == 0


def test_a_step_without_a_judge_has_none_to_probe(tmp_path: Path) -> None:
    result = run_here([*command(tmp_path)[:5], "rlvr", "-c", "tiny", "--runs-dir", str(tmp_path), "--probe-judge"])
    assert result.code == 2
    assert "trains with no judge" in result.stderr


def test_judge_serves_another_model(tmp_path: Path, snapshot: SnapshotAssertion) -> None:
    async def never(k: int, body: dict[str, Any]) -> web.Response:
        raise AssertionError("a judge of another name must not be asked")

    with Scripted(never, models=("other",)) as judge:
        result = run(tmp_path, *REMOTE, f"{JUDGE}.base_url={judge.base_url}")
    assert readable(result, tmp_path) == snapshot


def test_judge_is_no_model(tmp_path: Path, snapshot: SnapshotAssertion) -> None:
    result = run(tmp_path, *QUICK, f"{JUDGE}.model={tmp_path / 'gone'}")
    assert readable(result, tmp_path) == snapshot
    assert not list(tmp_path.iterdir())


def test_optimizer_that_torch_does_not_have(tmp_path: Path, snapshot: SnapshotAssertion) -> None:
    result = run(tmp_path, *QUICK, "policy.optimizer.name=torch.optim.AdamV")
    assert readable(result, tmp_path) == snapshot


DAMAGED = {
    "policy": ("policy/model.safetensors", ("~policy.pretrained_checkpoint", "policy.model_name={}")),
    "policy_megatron": ("policy_megatron/iter_0000000/__0_0.distcp", ("policy.pretrained_checkpoint.path={}",)),
}


@pytest.mark.parametrize("name", DAMAGED)
def test_damaged_policy(name: str, tmp_path: Path, snapshot: SnapshotAssertion) -> None:
    file, words = DAMAGED[name]
    shutil.copytree(Path(nemotron.__file__).parent / "assets" / "tiny_world" / name, tmp_path / name)
    content = (tmp_path / file).read_bytes()
    (tmp_path / file).write_bytes(content[: len(content) // 2])
    result = run(tmp_path / "runs", *QUICK, *(word.format(tmp_path / name) for word in words))
    assert readable(result, tmp_path) == snapshot


def test_a_broken_row_is_named(tmp_path: Path, snapshot: SnapshotAssertion) -> None:
    rows = [json.dumps({"prompt": f"Hi {i}", "agent_ref": {"name": "a"}}) for i in range(12)]
    data = tmp_path / "train.jsonl"
    data.write_text("\n".join([*rows[:7], '{"prompt": ', *rows[7:]]) + "\n")
    result = run(tmp_path / "runs", *QUICK, f"data.train.data_path={data}")
    assert readable(result, tmp_path) == snapshot


def test_a_prompt_that_leaves_no_room_is_named(tmp_path: Path, snapshot: SnapshotAssertion) -> None:
    rows = [{"prompt": "Hello. " * (40 if i == 3 else 1), "agent_ref": {"name": "a"}} for i in range(12)]
    data = tmp_path / "train.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    result = run(tmp_path / "runs", *QUICK, f"data.train.data_path={data}", "data.shuffle=false")
    assert readable(result, tmp_path) == snapshot


@pytest.mark.full
def test_the_kl_limit_stops_with_a_checkpoint(tmp_path: Path, snapshot: SnapshotAssertion) -> None:
    result = run(tmp_path, "eval.heldout=null", "limits.max_kl=0.0001", "checkpointing.save_period=100")
    assert (
        re.sub(r"is [\d.]+ nats per token in step \d+", "is KL nats per token in step N", readable(result, tmp_path))
        == snapshot
    )
    assert status(tmp_path)["state"] == "stopped"
    assert len(list(only_run(tmp_path).glob("checkpoints/step_*"))) == 1


def test_a_judge_that_dies_ends_the_run_at_once(tmp_path: Path) -> None:
    argv = command(tmp_path, "grpo.max_num_steps=200", "eval.heldout=null")

    def judge_killed() -> bool:
        if steps_logged(tmp_path) < 2:
            return False
        log = next(tmp_path.glob("*/attempts/1/logs/judge.log"))
        [pid] = [pid for pid in os.listdir("/proc") if pid.isdecimal() and _is_judge(pid, log)]
        os.kill(int(pid), signal.SIGKILL)
        return True

    # Signal 0 only looks: the run has to end by itself.
    assert kill_when(argv, judge_killed, signum=0) == 7
    assert status(tmp_path)["state"] == "failed"
    assert "judge" in status(tmp_path)["error"]


def _is_judge(pid: str, log: Path) -> bool:
    try:
        return os.readlink(f"/proc/{pid}/fd/2") == str(log)
    except OSError:  # it ended while we looked, or belongs to another user
        return False


def test_disk_full_keeps_the_last_checkpoint_and_says_how_to_go_on(tmp_path: Path) -> None:
    with scripted_judge() as judge, longest_file(2 * 2**20):
        result = run(tmp_path, *judge, "grpo.max_num_steps=4", "eval.heldout=null", "checkpointing.save_period=1")
    assert result.code == 8, result.stderr
    assert "Traceback" not in result.stderr
    assert not list(only_run(tmp_path).glob("checkpoints/tmp_*"))
