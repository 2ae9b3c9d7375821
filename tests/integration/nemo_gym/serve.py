"""Serves NeMo-Gym's own mcqa, math_with_judge and simple_agent in one process, without Ray, uv or a head server.

Runs in the venv of nemo-gym: serve.py PORTS_FILE. Writes the ports as JSON when all of them are taken, and serves until
it is terminated. The policy is a stub that answers with what stands in the row's metadata.
"""

import asyncio
import json
import os
import socket
import sys
from pathlib import Path

import uvicorn
from fastapi import FastAPI, Request
from nemo_gym.config_types import BaseServerConfig
from nemo_gym.server_utils import ServerClient
from omegaconf import OmegaConf
from resources_servers.math_with_judge.app import (
    LibraryJudgeMathResourcesServer,
    LibraryJudgeMathResourcesServerConfig,
)
from resources_servers.mcqa.app import MCQAResourcesServer, MCQAResourcesServerConfig
from responses_api_agents.simple_agent.app import SimpleAgent, SimpleAgentConfig

NAMES = ("mcqa", "math", "agent", "policy", "replaying_agent", "replay")


def free_ports() -> dict[str, int]:
    probes = {name: socket.socket() for name in NAMES}
    for probe in probes.values():
        probe.bind(("127.0.0.1", 0))
    ports = {name: probe.getsockname()[1] for name, probe in probes.items()}
    for probe in probes.values():
        probe.close()
    return ports


def policy_app() -> FastAPI:
    """A model server: answers with the text in `metadata.say`."""
    app = FastAPI()

    @app.post("/v1/responses")
    async def respond(request: Request) -> dict:
        body = await request.json()
        text = body["metadata"]["say"]
        part = {"type": "output_text", "text": text, "annotations": []}
        message = {"id": "msg_1", "type": "message", "role": "assistant", "status": "completed", "content": [part]}
        return {
            "id": "resp_1",
            "created_at": 1.0,
            "model": "stub",
            "object": "response",
            "output": [message],
            "parallel_tool_calls": True,
            "tool_choice": "auto",
            "tools": [],
        }

    return app


def main() -> None:
    ports = free_ports()
    place = {name: {"host": "127.0.0.1", "port": port} for name, port in ports.items()}
    shared = {"entrypoint": "app.py", "domain": "other"}
    resources = {"type": "resources_servers", "name": "mcqa"}
    model = {"type": "responses_api_models", "name": "policy"}
    servers = {
        "mcqa": {"resources_servers": {"mcqa": {**shared, **place["mcqa"]}}},
        "math": {"resources_servers": {"math_with_judge": {**shared, **place["math"]}}},
        "agent": {"responses_api_agents": {"simple_agent": {**shared, **place["agent"]}}},
        "policy": {"responses_api_models": {"stub": {**shared, **place["policy"]}}},
        "replaying_agent": {"responses_api_agents": {"simple_agent": {**shared, **place["replaying_agent"]}}},
        # Whoever uses this agent listens there.
        "replay": {"responses_api_models": {"stub": {**shared, **place["replay"]}}},
    }
    # As a child of its own launcher would find it; otherwise the agent parses this program's command line.
    os.environ["NEMO_GYM_CONFIG_DICT"] = OmegaConf.to_yaml(OmegaConf.create(servers))
    client = ServerClient(
        head_server_config=BaseServerConfig(host="127.0.0.1", port=1),
        global_config_dict=OmegaConf.create(servers),
    )
    mcqa = MCQAResourcesServer(
        config=MCQAResourcesServerConfig(name="mcqa", **shared, **place["mcqa"]), server_client=client
    )
    math = LibraryJudgeMathResourcesServer(
        config=LibraryJudgeMathResourcesServerConfig(
            name="math",
            judge_model_server=model,
            judge_responses_create_params={"input": []},
            should_use_judge=False,
            **shared,
            **place["math"],
        ),
        server_client=client,
    )
    agents = {
        name: SimpleAgent(
            config=SimpleAgentConfig(
                name=name,
                resources_server=resources,
                model_server={"type": "responses_api_models", "name": policy},
                entrypoint="app.py",
                **place[name],
            ),
            server_client=client,
        )
        for name, policy in (("agent", "policy"), ("replaying_agent", "replay"))
    }
    apps = {
        "mcqa": mcqa.setup_webserver(),
        "math": math.setup_webserver(),
        **{name: agent.setup_webserver() for name, agent in agents.items()},
        "policy": policy_app(),
    }
    asyncio.run(serve(apps, ports, Path(sys.argv[1])))


async def serve(apps: dict[str, FastAPI], ports: dict[str, int], said: Path) -> None:
    """All in one event loop: NeMo-Gym has one HTTP client for the process."""
    servers = [
        uvicorn.Server(uvicorn.Config(app, host="127.0.0.1", port=ports[name], log_level="warning"))
        for name, app in apps.items()
    ]
    running = asyncio.gather(*(server.serve() for server in servers))
    while not all(server.started for server in servers):
        await asyncio.sleep(0.05)
    said.with_suffix(".tmp").write_text(json.dumps(ports))
    said.with_suffix(".tmp").rename(said)
    await running


if __name__ == "__main__":
    main()
