"""Groups per second through our comparison server and through NeMo-Gym's, with a judge of no latency.

    python benchmarks/comparison.py [--gym build/nemo-gym] [--prompts 64] [--group 8] [--rounds 9]

``/compare`` is asked about all prompts at once (circular: as many judge calls as answers), of three:

- ``nemotron``: our server, which asks the judge's endpoint itself;
- ``nemo-gym``: NeMo-Gym's as it is deployed: genrm_compare asks genrm_model, a model server that makes a chat of each
  question and asks the endpoint;
- ``nemo-gym, no model server``: genrm_compare alone, with a judge that takes its questions as they are, which no vLLM
  does. It shows how much of the difference is the second server.

Each server, the judge and the client are a process. The rounds take turns; groups a second is the median of the rounds,
CPU time that of all the server's processes, over all rounds. ``/verify`` sends every answer by itself: how many rewards
are wrong when answers arrive while a judge of 0.1 to 1 s works?
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import socket
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import aiohttp

HERE = Path(__file__).resolve().parent
QUALITY = "quality "
OURS = "nemotron"
COMPARE = "resources_servers.genrm_compare.app:GenRMCompareResourcesServer"
MODEL = "responses_api_models.genrm_model.app:GenRMModel"


def response(text: str) -> dict[str, Any]:
    """A Responses-API object."""
    part = {"type": "output_text", "text": text, "annotations": []}
    item = {"id": "m", "type": "message", "role": "assistant", "status": "completed", "content": [part]}
    rest = {"parallel_tool_calls": True, "tool_choice": "auto", "tools": []}
    return {"id": "r", "created_at": 0.0, "model": "policy", "object": "response", "output": [item], **rest}


class Server:
    """A comparison server, with the other processes of its own that a question passes through."""

    def __init__(self, name: str, port: int, processes: list[subprocess.Popen[bytes]]) -> None:
        self.name, self.base, self.processes = name, f"http://127.0.0.1:{port}", processes

    def cpu_s(self) -> float:
        """CPU seconds of the processes so far."""
        return sum(map(cpu_s, self.processes))

    async def ready(self, session: aiohttp.ClientSession) -> None:
        """Wait for the first answer."""
        while True:
            for process in self.processes:
                if process.poll() is not None:
                    raise SystemExit(f"{self.name} ended with code {process.returncode}")
            with contextlib.suppress(aiohttp.ClientError):
                async with session.get(self.base + "/"):
                    return
            await asyncio.sleep(0.2)


def cpu_s(process: subprocess.Popen[bytes]) -> float:
    fields = Path(f"/proc/{process.pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


@contextlib.contextmanager
def servers(gym: Path, group: int) -> Iterator[tuple[list[Server], subprocess.Popen[bytes]]]:
    """Everything that compares, and the judge."""
    judge, ours, alone, deployed, model = free_ports(5)
    compare: dict[str, Any] = {
        "num_rollouts_per_prompt": group,
        "comparison_strategy": "circular",
        "genrm_responses_create_params": {"input": [], "max_output_tokens": 64, "temperature": 0.6},
    }
    block = {
        **compare,
        **place(ours),
        "nemotron": {"judge": {}, "endpoint": {"base_url": f"http://127.0.0.1:{judge}/v1", "model": "judge"}},
    }
    started: list[subprocess.Popen[bytes]] = []

    def start(argv: list[str], config: dict[str, Any] | None = None, name: str = "") -> subprocess.Popen[bytes]:
        env = {"NEMO_GYM_CONFIG_DICT": json.dumps(config), "NEMO_GYM_CONFIG_PATH": name}
        quiet = None if name == OURS else subprocess.DEVNULL
        process = subprocess.Popen(argv, env={**os.environ, "PYTHONPATH": "", **env}, stdout=quiet)
        started.append(process)
        return process

    def start_gym(kind: str, config: dict[str, Any], name: str) -> subprocess.Popen[bytes]:
        return start([str(gym / "bin" / "python"), str(HERE / "comparison_gym.py"), kind], config, name)

    hop = gym_config(compare, alone, judge, None), gym_config(compare, deployed, model, f"http://127.0.0.1:{judge}/v1")
    try:
        asked = start([str(gym / "bin" / "python"), str(HERE / "comparison_judge.py"), str(judge)])
        own = {OURS: {"resources_servers": {"genrm_compare": block}}}
        found = [
            Server(OURS, ours, [start([sys.executable, "-m", "nemotron.gym.under_gym"], own, OURS)]),
            Server("nemo-gym", deployed, [start_gym(COMPARE, hop[1], "compare"), start_gym(MODEL, hop[1], "model")]),
            Server("nemo-gym, no model server", alone, [start_gym(COMPARE, hop[0], "compare")]),
        ]
        yield found, asked
    finally:
        for process in started:
            process.terminate()
            process.wait(30)


def gym_config(compare: dict[str, Any], port: int, model_port: int, base_url: str | None) -> dict[str, Any]:
    """The config of NeMo-Gym's genrm_compare, and of its genrm_model in front of ``base_url``."""
    reference = {"type": "responses_api_models", "name": "model"}
    own = {"entrypoint": "app.py", "domain": "rlhf", **place(port), **compare, "genrm_model_server": reference}
    # What its shipped config says, but for the vLLM that it would start.
    model = {
        "entrypoint": "app.py",
        **place(model_port),
        "model": "judge",
        "base_url": base_url,
        "return_token_id_information": False,
        "uses_reasoning_parser": True,
        "supports_principle_role": True,
        "vllm_serve_kwargs": {},
        "vllm_serve_env_vars": {},
    }
    return {
        "compare": {"resources_servers": {"genrm_compare": own}},
        "model": {"responses_api_models": {"genrm_model": model}},
        "head_server": {"host": "127.0.0.1", "port": 1},
        "dry_run": False,
    }


def place(port: int) -> dict[str, Any]:
    return {"host": "127.0.0.1", "port": port}


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


async def compare_all(
    session: aiohttp.ClientSession, server: Server, bodies: list[bytes], group: int
) -> tuple[float, float]:
    """Groups per second, and CPU milliseconds of the server a group."""
    wanted = [float(1 + number % 5) for number in range(group)]
    cpu, begun = server.cpu_s(), time.perf_counter()
    found = await asyncio.gather(*(post(session, server.base + "/compare", body) for body in bodies))
    seconds = time.perf_counter() - begun
    if any(one["rewards"] != wanted for one in found):
        raise SystemExit(f"{server.name} gives wrong rewards")
    return len(bodies) / seconds, 1000 * (server.cpu_s() - cpu) / len(bodies)


def bodies_of(prompts: int, group: int) -> list[bytes]:
    said = answers(group)
    asked = [[{"role": "user", "content": f"prompt {number}"}] for number in range(prompts)]
    return [json.dumps({"conversation_history": one, "response_objs": said}).encode() for one in asked]


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


async def measure(options: argparse.Namespace, found: list[Server], judge: subprocess.Popen[bytes]) -> None:
    timeout, connector = aiohttp.ClientTimeout(total=600), aiohttp.TCPConnector(limit=0)
    async with aiohttp.ClientSession(timeout=timeout, connector=connector) as session:
        bodies = bodies_of(options.prompts, options.group)
        for server in found:
            await server.ready(session)
            await compare_all(session, server, bodies, options.group)
        rounds: dict[str, list[tuple[float, float, float]]] = {server.name: [] for server in found}
        for _ in range(options.rounds):
            for server in found:
                before = cpu_s(judge)
                speed, cpu = await compare_all(session, server, bodies, options.group)
                rounds[server.name].append((speed, cpu, 1000 * (cpu_s(judge) - before) / options.prompts))
        print(f"{'server':<26}{'groups/s':>10}{'CPU ms a group':>16}{'of the judge':>14}")
        shown = {}
        for name, values in rounds.items():
            speeds, *cpus = zip(*values, strict=True)
            shown[name] = speed, cpu, _ = statistics.median(speeds), *map(statistics.fmean, cpus)
            print(f"{name:<26}{speed:>10.1f}{cpu:>16.2f}{shown[name][2]:>14.2f}")
        ours = shown.pop(OURS)
        for name, theirs in shown.items():
            speed, cpu = ours[0] / theirs[0], theirs[1] / ours[1]
            print(f"{OURS} over {name}: {speed:.1f} times the groups a second, {cpu:.1f} times less CPU a group")
        for apart_s in options.apart:
            wrong = [await wrong_of(session, server, 20, options.group, apart_s) for server in found]
            said = ", ".join(f"{server.name} {number}" for server, number in zip(found, wrong, strict=True))
            print(f"wrong rewards of {20 * options.group}, answers {apart_s:g} s apart: {said}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--gym", type=Path, default=Path("build/nemo-gym"), help="venv of nemo-gym 0.4.0")
    parser.add_argument("--prompts", type=int, default=64)
    parser.add_argument("--group", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--apart", type=float, nargs="*", default=[0.02, 0.3], help="seconds between answers")
    options = parser.parse_args()
    with servers(options.gym, options.group) as (found, judge):
        asyncio.run(measure(options, found, judge))


if __name__ == "__main__":
    main()
