"""Groups per second through our comparison server and through NeMo-Gym's, with a judge of no latency.

    python benchmarks/comparison.py [--gym build/nemo-gym] [--prompts 64] [--group 8] [--rounds 5]

``/compare`` of both servers is asked about all prompts at once (circular: as many judge calls as answers). Server,
judge and client are a process each; the rounds take turns, and the CPU time is that of the server's process.
``/verify`` sends every answer by itself: how many rewards are wrong when answers arrive while a judge of 0.1 to 1 s
works?
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import random
import socket
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import aiohttp
from aiohttp import web

HERE = Path(__file__).resolve().parent
QUALITY = "quality "


def judge(port: int) -> None:
    """Both ways in which a judge is asked; the delay is what the first words of the conversation say."""

    async def verdict(one: str, two: str, prompt: str) -> str:
        if prompt.startswith("slow"):
            await asyncio.sleep(random.uniform(0.1, 1.0))
        scores = [float(text.rpartition(QUALITY)[2]) for text in (one, two)]
        return json.dumps({"score_1": scores[0], "score_2": scores[1], "ranking": 3.5})

    async def chat(request: web.Request) -> web.Response:
        messages = json.loads(await request.read())["messages"]
        said = await verdict(messages[-2]["content"], messages[-1]["content"], messages[0]["content"])
        return web.json_response({"choices": [{"index": 0, "message": {"role": "assistant", "content": said}}]})

    async def responses(request: web.Request) -> web.Response:
        body = json.loads(await request.read())
        told = body["metadata"]
        said = await verdict(told["response_1"], told["response_2"], body["input"][0]["content"])
        return web.json_response(response(said))

    async def models(request: web.Request) -> web.Response:
        return web.json_response({"data": [{"id": "judge"}]})

    app = web.Application()
    app.router.add_get("/v1/models", models)
    app.router.add_post("/v1/chat/completions", chat)
    app.router.add_post("/v1/responses", responses)
    web.run_app(app, host="127.0.0.1", port=port, access_log=None, print=None)


def response(text: str) -> dict[str, Any]:
    """A Responses-API object."""
    part = {"type": "output_text", "text": text, "annotations": []}
    item = {"id": "m", "type": "message", "role": "assistant", "status": "completed", "content": [part]}
    rest = {"parallel_tool_calls": True, "tool_choice": "auto", "tools": []}
    return {"id": "r", "created_at": 0.0, "model": "policy", "object": "response", "output": [item], **rest}


class Server:
    """A comparison server in a process of its own."""

    def __init__(self, name: str, argv: list[str], env: dict[str, str], port: int) -> None:
        self.name, self.base = name, f"http://127.0.0.1:{port}"
        self.process = subprocess.Popen(argv, env={**os.environ, **env})

    def cpu_s(self) -> float:
        """CPU seconds of the process so far."""
        fields = Path(f"/proc/{self.process.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    async def ready(self, session: aiohttp.ClientSession) -> None:
        """Wait for the first answer."""
        while True:
            if self.process.poll() is not None:
                raise SystemExit(f"{self.name} ended with code {self.process.returncode}")
            with contextlib.suppress(aiohttp.ClientError):
                async with session.get(self.base + "/"):
                    return
            await asyncio.sleep(0.2)


@contextlib.contextmanager
def servers(gym: Path, group: int) -> Iterator[list[Server]]:
    """A judge, and both servers in front of it."""
    ports = free_ports(3)
    compare: dict[str, Any] = {
        "num_rollouts_per_prompt": group,
        "comparison_strategy": "circular",
        "genrm_responses_create_params": {"input": [], "max_output_tokens": 64, "temperature": 0.6},
    }
    ours = {
        **compare,
        **{"host": "127.0.0.1", "port": ports[1]},
        "nemotron": {"judge": {}, "endpoint": {"base_url": f"http://127.0.0.1:{ports[0]}/v1", "model": "judge"}},
    }
    block = {"compare": {"resources_servers": {"genrm_compare": ours}}}
    env = {"NEMO_GYM_CONFIG_DICT": json.dumps(block), "NEMO_GYM_CONFIG_PATH": "compare"}
    asked = subprocess.Popen([sys.executable, __file__, "--judge", str(ports[0])])
    found = [
        Server("nemotron", [sys.executable, "-m", "nemotron.gym.under_gym"], env, ports[1]),
        Server(
            "nemo-gym",
            [
                str(gym / "bin" / "python"),
                str(HERE / "comparison_gym.py"),
                json.dumps(compare),
                str(ports[2]),
                str(ports[0]),
            ],
            {"PYTHONPATH": ""},
            ports[2],
        ),
    ]
    try:
        yield found
    finally:
        for process in (asked, *(server.process for server in found)):
            process.terminate()
            process.wait(30)


def free_ports(count: int) -> list[int]:
    """Ports of loopback that nobody listens on."""
    with contextlib.ExitStack() as stack:
        probes = [stack.enter_context(socket.socket()) for _ in range(count)]
        for probe in probes:
            probe.bind(("127.0.0.1", 0))
        return [probe.getsockname()[1] for probe in probes]


async def post(session: aiohttp.ClientSession, url: str, body: bytes) -> Any:
    async with session.post(url, data=body, headers={"Content-Type": "application/json"}) as answer:
        text = await answer.text()
        if answer.status != 200:
            raise SystemExit(f"{url}: status {answer.status}: {text[:500]}")
        return json.loads(text)


def answers(group: int) -> list[dict[str, Any]]:
    return [response(f"answer {number}: {QUALITY}{1 + number % 5}") for number in range(group)]


async def compare_all(session: aiohttp.ClientSession, server: Server, prompts: int, group: int) -> tuple[float, float]:
    """Groups per second, and CPU milliseconds of the server a group."""
    wanted = [float(1 + number % 5) for number in range(group)]
    bodies = [
        json.dumps(
            {"conversation_history": [{"role": "user", "content": f"prompt {k}"}], "response_objs": answers(group)}
        ).encode()
        for k in range(prompts)
    ]
    cpu, begun = server.cpu_s(), time.perf_counter()
    found = await asyncio.gather(*(post(session, server.base + "/compare", body) for body in bodies))
    seconds = time.perf_counter() - begun
    if any(one["rewards"] != wanted for one in found):
        raise SystemExit(f"{server.name} gives wrong rewards")
    return prompts / seconds, 1000 * (server.cpu_s() - cpu) / prompts


async def wrong_of(session: aiohttp.ClientSession, server: Server, groups: int, group: int, apart_s: float) -> int:
    """Wrong rewards of ``/verify`` when answers of a group come ``apart_s`` after one another."""

    async def one(prompt: int, number: int, said: dict[str, Any]) -> bool:
        await asyncio.sleep(apart_s * number)
        params = {"input": [{"role": "user", "content": f"slow {apart_s} {prompt}"}]}
        body = json.dumps({"responses_create_params": params, "response": said}).encode()
        found = await post(session, server.base + "/verify", body)
        return bool(found["reward"] != float(1 + number % 5))

    said = answers(group)
    wrong = await asyncio.gather(*(one(p, n, said[n]) for p in range(groups) for n in range(group)))
    return sum(wrong)


async def measure(options: argparse.Namespace, found: list[Server]) -> None:
    timeout, connector = aiohttp.ClientTimeout(total=600), aiohttp.TCPConnector(limit=0)
    async with aiohttp.ClientSession(timeout=timeout, connector=connector) as session:
        for server in found:
            await server.ready(session)
            await compare_all(session, server, 8, options.group)
        rounds: dict[str, list[tuple[float, float]]] = {server.name: [] for server in found}
        for _ in range(options.rounds):
            for server in found:
                rounds[server.name].append(await compare_all(session, server, options.prompts, options.group))
        print(f"{'server':<12}{'groups/s':>10}{'CPU ms a group':>16}")
        best = {}
        for name, values in rounds.items():
            speed, cpu = (statistics.median(column) for column in zip(*values, strict=True))
            best[name] = speed, cpu
            print(f"{name:<12}{speed:>10.1f}{cpu:>16.2f}")
        speed, cpu = (one / other for one, other in zip(best["nemotron"], best["nemo-gym"], strict=True))
        print(f"nemotron over nemo-gym: {speed:.1f} times the groups a second, {1 / cpu:.1f} times less CPU a group")
        for apart_s in options.apart:
            wrong = [await wrong_of(session, server, 20, options.group, apart_s) for server in found]
            said = ", ".join(f"{server.name} {number}" for server, number in zip(found, wrong, strict=True))
            print(f"wrong rewards of {20 * options.group}, answers {apart_s:g} s apart: {said}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--gym", type=Path, default=Path("build/nemo-gym"), help="venv of nemo-gym 0.4.0")
    parser.add_argument("--prompts", type=int, default=64)
    parser.add_argument("--group", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--apart", type=float, nargs="*", default=[0.02, 0.3], help="seconds between answers")
    parser.add_argument("--judge", type=int, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.judge:
        judge(options.judge)
        return
    with servers(options.gym, options.group) as found:
        asyncio.run(measure(options, found))


if __name__ == "__main__":
    main()
