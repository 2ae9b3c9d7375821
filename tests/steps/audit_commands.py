"""Run the audit step as a command, against judges with one fault each."""

from __future__ import annotations

import json
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

from aiohttp import web

import nemotron
from tests.steps.commands import Result, only_run, run_here
from tests.unit.judge.scripted_judge import Scripted, verdict

JUDGE = "env.nemo_gym.genrm_model.responses_api_models.vllm_model"
COMPARE = "env.nemo_gym.genrm_compare_resources_server.resources_servers.genrm_compare"
PAIRS = Path(nemotron.__file__).parent / "assets" / "tiny_world" / "data" / "pairs_heldout.jsonl"
CHOSEN = {json.loads(line)["chosen"] for line in PAIRS.read_text(encoding="utf-8").splitlines()}
SHORT = ("audit.pairs=60", "audit.repeat_pairs=10")

Play = Callable[[int, dict[str, Any]], Awaitable[web.Response]]
Verdict = Callable[[str, str], tuple[float, float, float]]


def command(runs_dir: Path, *words: str) -> list[str]:
    step = ("steps", "run", "eval/reward_audit", "-c", "tiny", "--runs-dir", str(runs_dir))
    return [sys.executable, "-m", "nemotron", *step, *words]


def audit(runs_dir: Path, *words: str) -> Result:
    """`steps run eval/reward_audit -c tiny` to its end."""
    return run_here(command(runs_dir, *words))


def remote(judge: Scripted) -> tuple[str, ...]:
    """Words that point the audit at an endpoint."""
    words = (f"{JUDGE}.base_url={judge.base_url}", f"{JUDGE}.model=judge", "judge.ready_timeout_s=5")
    return (*words, "judge.max_retries=1", f"{COMPARE}.genrm_parse_retry_sleep_s=0")


def judging(decide: Verdict) -> Play:
    """A judge that decides by the two answers."""

    async def play(k: int, body: dict[str, Any]) -> web.Response:
        return verdict(*decide(*answers(body)))

    return play


def answers(body: dict[str, Any]) -> tuple[str, str]:
    """The two answers of a question."""
    said = {message["role"]: message["content"] for message in body["messages"]}
    return said["response_1"], said["response_2"]


def knows_the_labels(first: str, second: str) -> tuple[float, float, float]:
    return (5, 2, 1) if first in CHOSEN else (2, 5, 6)


def likes_the_first(first: str, second: str) -> tuple[float, float, float]:
    return (4, 3, 2)


def likes_length(first: str, second: str) -> tuple[float, float, float]:
    return (4, 2, 2) if len(first) > len(second) else (2, 4, 5) if len(second) > len(first) else (3, 3, 3.5)


def results(runs_dir: Path) -> dict[str, Any]:
    """The results of the one run."""
    found: dict[str, Any] = json.loads(result_file(runs_dir).read_bytes())
    return found


def result_file(runs_dir: Path) -> Path:
    return only_run(runs_dir) / "results" / "eval_results.json"


def samples(runs_dir: Path) -> list[bytes]:
    """Whole lines of the run's samples so far."""
    found = list(runs_dir.glob("2*/samples.jsonl"))
    return [line for line in found[0].read_bytes().splitlines(keepends=True) if line.endswith(b"\n")] if found else []
