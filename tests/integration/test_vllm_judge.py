"""A real vLLM serves the shipped judge: our client talks to it, and it says what our own server says."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from nemotron.config.schema.judge import GenrmCompareConfig, GenrmResponsesCreateParams, JudgeConfig
from nemotron.judge.endpoint import Endpoint
from nemotron.judge.groups import JudgeSettings
from nemotron.judge.local import LocalJudge
from nemotron.judge.pool import JudgePool
from nemotron.judge.types import GroupRequest, GroupResult, JudgedResponse
from nemotron.processes.child import ServerChild
from tests.integration.slurm.lab import free_port

pytestmark = [pytest.mark.integration, pytest.mark.timeout(600)]

ROOT = Path(__file__).parents[2]
VENV = Path(os.environ.get("NEMOTRON_VLLM_VENV", ROOT / "build" / "vllm"))
JUDGE = ROOT / "src" / "nemotron" / "assets" / "tiny_world" / "judge"
SAMPLES = ROOT / "src" / "nemotron" / "assets" / "tiny_world" / "data" / "heldout.jsonl"
READY_S = 240
TOKEN = "a-token-for-this-test"


@pytest.fixture(scope="module")
def vllm() -> Iterator[Endpoint]:
    """`vllm serve` on a free loopback port, as its documentation starts it."""
    if not (VENV / "bin" / "vllm").exists():
        pytest.fail(f"no vLLM in {VENV}; run tests/integration/vllm_cpu/install.sh {VENV}")
    port = free_port()
    argv = [str(VENV / "bin" / "vllm"), "serve", str(JUDGE), "--served-model-name", "judge", "--dtype", "float32"]
    argv += ["--enforce-eager", "--max-model-len", "256", "--max-num-seqs", "32", "--api-key", TOKEN]
    argv += ["--kv-cache-memory-bytes", str(64 << 20), "--host", "127.0.0.1", "--port", str(port)]
    env = {
        "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
        "OMP_NUM_THREADS": "1",
        "HF_HUB_OFFLINE": "1",
        "VLLM_NO_USAGE_STATS": "1",
    }
    server = ServerChild("vllm", hidden=[TOKEN])
    try:
        server.start_on_leash(argv, env)
        if not server.answers(f"http://127.0.0.1:{port}/health", READY_S):
            pytest.fail(f"vLLM is not ready (exit code {server.returncode()}){server.tail()}")
        yield Endpoint(f"http://127.0.0.1:{port}/v1", "judge", TOKEN)
    finally:
        server.close(patience_s=60)


def requests() -> list[GroupRequest]:
    rows = [json.loads(line) for line in SAMPLES.read_text().splitlines()[:6]]
    answers = ["Sure, here it is.", "No.", "Thank you for asking, of course.", "What do you want now?"]
    responses = [JudgedResponse("", answer) for answer in answers]
    return [GroupRequest(row["responses_create_params"]["input"], responses, row.get("principle")) for row in rows]


def settings() -> JudgeSettings:
    sampling = GenrmResponsesCreateParams(max_output_tokens=64, temperature=0.0)
    compare = GenrmCompareConfig(
        num_rollouts_per_prompt=4,
        comparison_strategy="all_pairs",
        use_principle=True,
        genrm_responses_create_params=sampling,
    )
    return JudgeSettings(compare, JudgeConfig())


def judged_by(endpoint: Endpoint) -> list[GroupResult]:
    with JudgePool(endpoint, settings()) as pool:
        futures = [pool.submit(request, seed=i) for i, request in enumerate(requests())]
        return [future.result(120) for future in futures]


def test_vllm_and_our_server_give_the_same_verdicts(vllm: Endpoint) -> None:
    theirs = judged_by(vllm)
    with LocalJudge(JUDGE, JudgeConfig()) as local:
        ours = judged_by(local.endpoint)
    assert sum(result.missing for result in theirs) == 0
    pairs = [
        (a.verdict, b.verdict)
        for mine, other in zip(ours, theirs, strict=True)
        for a, b in zip(mine.comparisons, other.comparisons, strict=True)
    ]
    # vLLM computes in float32, ours in float64: a tie between two digits may fall either way, rarely.
    assert sum(a == b for a, b in pairs) >= len(pairs) - 1


def test_a_run_trains_on_a_judge_served_by_vllm(vllm: Endpoint, tmp_path: Path) -> None:
    block = "env.nemo_gym.genrm_model.responses_api_models.vllm_model"
    argv = [
        sys.executable,
        "-m",
        "nemotron",
        "steps",
        "run",
        "rl/nemo_rl/rlhf",
        "-c",
        "tiny",
        "--runs-dir",
        str(tmp_path),
    ]
    argv += [f"{block}.base_url={vllm.base_url}", f"{block}.model=judge", f"{block}.api_key=${{oc.env:JUDGE_KEY}}"]
    argv += ["grpo.max_num_steps=2", "eval.heldout.max_samples=8"]
    done = subprocess.run(
        argv, capture_output=True, text=True, timeout=300, env={**os.environ, "JUDGE_KEY": TOKEN}, check=False
    )
    assert done.returncode == 0, done.stderr
    [run] = list(tmp_path.iterdir())
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert [row["train/missing_share"] for row in rows if "train/missing_share" in row] == [0.0, 0.0]
    written = b"".join(path.read_bytes() for path in run.rglob("*") if path.is_file())
    assert TOKEN.encode() not in written
