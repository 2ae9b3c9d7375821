"""What a server sends without end, or packs into little, takes little memory of whoever asks it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import zlib
from pathlib import Path

import pytest

from tests.hostile_server import Hostile, Reply, answer

ROOT = Path(__file__).parents[2]
MOST_MB = 500
OK = "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n"


def stream(headers: str = "") -> bytes:
    return f"{OK}{headers}\r\n".encode()


def packed() -> bytes:
    """A gigabyte of spaces."""
    packer = zlib.compressobj(1, zlib.DEFLATED, 31)
    return b"".join([*(packer.compress(b" " * (1 << 20)) for _ in range(1 << 10)), packer.flush()])


REPLIES = {
    "endless": lambda: Reply(stream(), "endless"),
    "endless chunk": lambda: Reply(stream("Transfer-Encoding: chunked\r\n") + b"ffffffffff\r\n", "endless"),
    "endless header": lambda: Reply(OK.encode() + b"X: ", "endless"),
    "packed": lambda: Reply(answer(packed(), "200 OK", "Content-Encoding: gzip")),
    "many values": lambda: Reply(answer(b"[" + b"{}," * 1_300_000 + b"{}]")),
}
CALLS = {
    "judge": """
import asyncio
from nemotron.config.schema.judge import JudgeConfig
from nemotron.judge.client import JudgeClient
from nemotron.judge.endpoint import Endpoint, Sampling
async def use():
    async with JudgeClient(Endpoint(URL, "judge", None), JudgeConfig(request_timeout_s=5, max_retries=0)) as client:
        return await client.ask([], Sampling(max_tokens=1, temperature=0.0, top_p=1.0), seed=0)
answer = asyncio.run(use())
said = answer.text or answer.failure
""",
    "server": """
import asyncio
from nemotron.config.schema.gym import GymConfig
from nemotron.gym.client import GymClient
async def use():
    settings = {"servers": {"s": {"base_url": URL, "agents": ["a"]}}, "max_retries": 0, "request_timeout_s": 5}
    async with GymClient(GymConfig.model_validate(settings), {"s": URL}) as client:
        return await client.verify("s", {"response": {}}, seed_session=True)
said = asyncio.run(use()).verified.failure
""",
    "cluster": """
from nemotron.executors.http import Service
try:
    said = str(Service("Ray", URL, token_hint="", patience_s=0, whole_s=5).call("GET", "/api/jobs/"))
except NemotronError as error:
    said = error.message
""",
}
FRAME = """
import re, sys
from nemotron.errors import NemotronError
URL = sys.argv[1]
try:
{}
except NemotronError as error:
    said = error.message
# What getrusage tells begins with the peak of whoever started this process.
print(int(re.search(r"VmHWM:\\s+(\\d+)", open("/proc/self/status").read())[1]) // 1024, said[:200])
"""


@pytest.mark.parametrize(
    "reply", [name if name == "packed" else pytest.param(name, marks=pytest.mark.full) for name in REPLIES]
)
@pytest.mark.parametrize("client", CALLS)
def test_memory_has_a_bound(client: str, reply: str) -> None:
    code = FRAME.format("\n".join(f"    {line}" for line in CALLS[client].splitlines()))
    sent = REPLIES[reply]()
    with Hostile(lambda path, body: sent) as server:
        words = [sys.executable, "-c", code, server.url]
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        done = subprocess.run(words, capture_output=True, text=True, timeout=60, cwd=ROOT, env=environment, check=False)
    assert done.returncode == 0, done.stderr
    megabytes, said = done.stdout.split(maxsplit=1)
    assert said
    assert int(megabytes) < MOST_MB, done.stdout
    print(json.dumps({"client": client, "reply": reply, "mb": megabytes, "said": said[:100]}))
