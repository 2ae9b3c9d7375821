"""A policy and a judge on loopback, and a NeMo-Gym that is started on a section of ours."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import random
import re
import subprocess
import threading
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from aiohttp import web
from omegaconf import OmegaConf

from tests.integration.slurm.lab import free_port

ROOT = Path(__file__).parents[2]
VENV = Path(os.environ.get("NEMOTRON_NEMO_GYM_VENV", ROOT / "build" / "nemo-gym"))
READY_S = 240
_QUALITY = re.compile(r"quality (\d)")


class Models:
    """A policy that answers after a while, and a judge that scores an answer by what it says of itself."""

    def __init__(self, answers: dict[str, list[str]], *, spread_s: float, judge_s: tuple[float, float]) -> None:
        """``answers``: what the policy says to a prompt, one answer a request, each up to ``spread_s`` later."""
        self.answers, self.spread_s, self.judge_s = answers, spread_s, judge_s
        self.asked: Counter[str] = Counter()
        self.judged = 0
        self.keys: set[str] = set()
        self.unfit = False
        """The judge says nothing that can be read."""
        self._random = random.Random(1)
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self.base_url = ""

    def __enter__(self) -> Models:
        self._thread.start()
        asyncio.run_coroutine_threadsafe(self._start(), self._loop).result(30)
        return self

    def __exit__(self, *exc: object) -> None:
        asyncio.run_coroutine_threadsafe(self._runner.cleanup(), self._loop).result(30)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(30)

    async def _start(self) -> None:
        app = web.Application(client_max_size=2**26)
        app.router.add_get("/v1/models", self._list)
        app.router.add_post("/v1/chat/completions", self._chat)
        app.router.add_post("/tokenize", self._tokenize)
        self._runner = web.AppRunner(app, shutdown_timeout=0.1)
        await self._runner.setup()
        await web.TCPSite(self._runner, "127.0.0.1", 0).start()
        self.base_url = f"http://127.0.0.1:{self._runner.addresses[0][1]}/v1"

    async def _list(self, request: web.Request) -> web.Response:
        return web.json_response({"data": [{"id": "judge"}, {"id": "policy"}]})

    async def _tokenize(self, request: web.Request) -> web.Response:
        return web.json_response({"tokens": [1, 2, 3]})

    async def _chat(self, request: web.Request) -> web.Response:
        body = await request.json()
        roles = {message["role"]: message["content"] for message in body["messages"]}
        if body["model"] == "judge":
            self.judged += 1
            self.keys.add(request.headers.get("Authorization", ""))
            await asyncio.sleep(self._random.uniform(*self.judge_s))
            one, two = (int(_QUALITY.findall(roles[name])[-1]) for name in ("response_1", "response_2"))
            verdict = {"score_1": one, "score_2": two, "ranking": 3.5}
            return _says("hm" if self.unfit else json.dumps(verdict))
        prompt = roles["user"]
        number = self.asked[prompt]
        self.asked[prompt] += 1
        await asyncio.sleep(self._random.uniform(0, self.spread_s))
        return _says(self.answers[prompt][number % len(self.answers[prompt])])


def _says(text: str) -> web.Response:
    choice = {
        "index": 0,
        "finish_reason": "stop",
        "message": {"role": "assistant", "content": text},
        "logprobs": {"content": [{"token": "token_id:7", "logprob": -0.5, "top_logprobs": []}], "refusal": None},
    }
    usage = {"prompt_tokens": 3, "completion_tokens": 1, "total_tokens": 4}
    said = {"id": "c", "object": "chat.completion", "created": 1, "model": "m", "choices": [choice], "usage": usage}
    return web.json_response(said)


@contextlib.contextmanager
def started(folder: Path, policy: str) -> Iterator[dict[str, str]]:
    """The agents' addresses of a NeMo-Gym that runs what ``folder/config.yaml`` has for it."""
    if not (VENV / ".ready").exists():
        pytest.fail(f"no nemo-gym in {VENV}; run tests/integration/nemo_gym/install.sh {VENV}")
    # NeMo-RL resolves its config once before the actor sees it.
    config: Any = OmegaConf.to_container(OmegaConf.load(folder / "config.yaml"), resolve=True)
    section = {
        **config["env"]["nemo_gym"],
        **{"policy_model_name": "policy", "policy_api_key": "dummy_key", "policy_base_url": [policy]},
        "head_port": free_port(),
    }
    said = folder / "gym" / "agents.json"
    said.parent.mkdir()
    (said.parent / "section.json").write_text(json.dumps(section))
    program = ROOT / "tests" / "integration" / "nemo_gym" / "start.py"
    argv = [VENV / "bin" / "python", program, said.parent / "section.json", said]
    # A Ray of its own, not the one that somebody else has left behind on this machine.
    env = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "VIRTUAL_ENV")}
    env["RAY_ADDRESS"] = "local"
    with (folder / "gym.log").open("wb") as log:
        process = subprocess.Popen(
            argv, cwd=said.parent, env=env, stdin=subprocess.PIPE, stdout=log, stderr=subprocess.STDOUT
        )
    try:
        deadline = time.monotonic() + READY_S
        while not said.exists():
            assert process.poll() is None, (folder / "gym.log").read_text()[-8000:]
            assert time.monotonic() < deadline, (folder / "gym.log").read_text()[-8000:]
            time.sleep(0.2)
        yield json.loads(said.read_text())
    finally:
        if process.stdin:
            process.stdin.close()
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(30)
        process.kill()
        process.wait()


def run_rows(agent: str, rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """All rows at once through an agent, as NeMo-RL does; its answers."""

    async def run() -> list[dict[str, Any]]:
        timeout, connector = aiohttp.ClientTimeout(total=240), aiohttp.TCPConnector(limit=0)
        async with aiohttp.ClientSession(timeout=timeout, connector=connector) as session:

            async def one(row: dict[str, Any]) -> dict[str, Any]:
                async with session.post(f"{agent}/run", json=row) as response:
                    assert response.status == 200, (await response.text())[:4000]
                    found: dict[str, Any] = await response.json()
                    return found

            return await asyncio.gather(*map(one, rows))

    return asyncio.run(run())
