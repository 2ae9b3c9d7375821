"""A Ray cluster of the workspace on loopback: a real head and real workers, all processes of this machine."""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import tempfile
from contextlib import suppress
from pathlib import Path
from typing import Any

import aiohttp
from aiohttp import web

from tests.integration.rays import PATIENT, kill_ray, own_ports
from tests.integration.slurm.lab import free_port

RAY = Path(os.environ.get("NEMOTRON_LEPTON_VENV", Path(__file__).parents[3] / "build" / "lepton")) / "bin" / "ray"
PASSED = ("Content-Type", "Accept")


class RayCluster:
    """What the API shows of it is ``body``."""

    def __init__(self, body: dict[str, Any], folder: Path, secrets: dict[str, str], *, lonely: bool) -> None:
        self.body = body
        self.body["status"] = {"state": "Not Ready", "readyWorkerReplicas": 0}
        self._secrets, self._lonely, self._folder = secrets, lonely, folder
        self._processes: list[asyncio.subprocess.Process] = []
        # Ray's sockets lie in its folder, and a socket has a path of at most 107 letters.
        self._temp = Path(tempfile.mkdtemp(prefix="lr"))
        self._port, self._gcs = free_port(), free_port()
        self._stopped = False

    async def run(self) -> None:
        """Head first, then as many workers as were asked for."""
        spec, status = self.body["spec"], self.body["status"]
        self._folder.mkdir(parents=True)
        await asyncio.sleep(0.3)
        status["state"] = "Starting"
        own = {"dashboard-port": self._port, "dashboard-host": "127.0.0.1", "port": self._gcs, "temp-dir": self._temp}
        await self._node("head", spec["head_group_spec"], "--head", **own, **{"ray-client-server-port": free_port()})
        if not await self._answers():
            return
        wanted = [(group, n) for group in spec.get("worker_group_specs") or [] for n in range(group["min_replicas"])]
        status |= {"desiredWorkerReplicas": len(wanted)}
        # The head is there before its workers are: whoever takes that for all of it starts too early.
        status["state"] = "Ready"
        if self._lonely:
            return
        for group, number in wanted:
            await self._node(f"worker-{number}", group, f"--address=127.0.0.1:{self._gcs}")
        while wanted and not self._stopped and await self._nodes() <= len(wanted):
            await asyncio.sleep(0.2)
        status["readyWorkerReplicas"] = len(wanted)

    def stop(self) -> None:
        """End its processes, and no other Ray of this machine."""
        self._stopped = True
        self.body["status"]["state"] = "Stopped"
        for process in self._processes:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
        kill_ray(self._folder)
        shutil.rmtree(self._temp, ignore_errors=True)

    async def pass_on(self, request: web.Request, path: str) -> web.StreamResponse:
        """To the dashboard, as Lepton does it: with everything but its own token."""
        if path.endswith("/logs/tail"):
            return await self._tail(request, path)
        headers = {name: request.headers[name] for name in PASSED if name in request.headers}
        url, params = f"http://127.0.0.1:{self._port}/{path}", dict(request.query)
        try:
            async with (
                aiohttp.ClientSession() as session,
                session.request(request.method, url, params=params, data=await request.read(), headers=headers) as up,
            ):
                return web.Response(status=up.status, body=await up.read(), content_type=up.content_type)
        except aiohttp.ClientError as error:
            return web.json_response({"message": f"no healthy upstream: {error}"}, status=503)

    async def _tail(self, request: web.Request, path: str) -> web.WebSocketResponse:
        down = web.WebSocketResponse()
        await down.prepare(request)
        async with (
            aiohttp.ClientSession() as session,
            session.ws_connect(f"http://127.0.0.1:{self._port}/{path}") as up,
        ):
            async for message in up:
                if message.type is aiohttp.WSMsgType.TEXT:
                    await down.send_str(message.data)
        await down.close()
        return down

    async def _node(self, name: str, group: dict[str, Any], *words: str, **options: object) -> None:
        """A container: variables of its own, and `ray start` in it."""
        variables = {key: os.environ[key] for key in ("PATH", "LANG") if key in os.environ}
        for env in group.get("envs") or []:
            secret = env.get("value_from") or {}
            variables[env["name"]] = (
                env["value"] if env.get("value") is not None else self._secrets[secret["secret_name_ref"]]
            )
        variables |= {**PATIENT, "HOME": str(self._folder), "RAY_AUTH_MODE": "disabled", "RAY_USAGE_STATS_ENABLED": "0"}
        settings = {
            **options,
            **own_ports(),
            **{"num-cpus": 2, "object-store-memory": 80_000_000, "node-ip-address": "127.0.0.1"},
        }
        argv = [
            str(RAY),
            "start",
            "--block",
            "--disable-usage-stats",
            *words,
            *(f"--{k}={v}" for k, v in settings.items()),
        ]
        with (self._folder / f"{name}.log").open("wb") as log:
            process = await asyncio.create_subprocess_exec(
                *argv, env=variables, stdout=log, stderr=log, start_new_session=True
            )
        self._processes.append(process)
        if self._stopped:
            self.stop()

    async def _answers(self) -> bool:
        while not self._stopped:
            if await self._ask("api/version") is not None:
                return True
            await asyncio.sleep(0.2)
        return False

    async def _nodes(self) -> int:
        found = await self._ask("api/v0/nodes")
        rows = ((found or {}).get("data") or {}).get("result") or {}
        return sum(row["state"] == "ALIVE" for row in rows.get("result") or [])

    async def _ask(self, path: str) -> Any:
        with suppress(aiohttp.ClientError):
            async with aiohttp.ClientSession() as session, session.get(f"http://127.0.0.1:{self._port}/{path}") as up:
                return await up.json() if up.status == 200 else None
        return None
