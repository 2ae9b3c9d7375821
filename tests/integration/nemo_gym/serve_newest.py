"""Serves the mcqa and genrm_compare of NeMo-Gym 0.7.0 in one process: serve_newest.py PORTS_FILE GROUP.

Runs in the venv of that NeMo-Gym. The judge is a stub that scores an answer by the number that it ends in.
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
from resources_servers.genrm_compare.app import GenRMCompareConfig, GenRMCompareResourcesServer
from resources_servers.mcqa.app import MCQAResourcesServer, MCQAResourcesServerConfig

NAMES = ("mcqa", "mcqa_md", "compare", "genrm_model")


def judge_app() -> FastAPI:
    app = FastAPI()

    @app.post("/v1/responses")
    async def respond(request: Request) -> dict:
        told = (await request.json())["metadata"]
        one, two = (float(told[name].rpartition(" ")[2]) for name in ("response_1", "response_2"))
        said = json.dumps({"score_1": one, "score_2": two, "ranking": 3.5})
        part = {"type": "output_text", "text": said, "annotations": []}
        message = {"id": "m", "type": "message", "role": "assistant", "status": "completed", "content": [part]}
        rest = {"parallel_tool_calls": True, "tool_choice": "auto", "tools": []}
        return {"id": "r", "created_at": 1.0, "model": "stub", "object": "response", "output": [message], **rest}

    return app


def main() -> None:
    probes = {name: socket.socket() for name in NAMES}
    for probe in probes.values():
        probe.bind(("127.0.0.1", 0))
    ports = {name: probe.getsockname()[1] for name, probe in probes.items()}
    for probe in probes.values():
        probe.close()
    shared = {
        name: {"entrypoint": "app.py", "domain": "other", "host": "127.0.0.1", "port": ports[name]} for name in NAMES
    }
    compare = {
        **shared["compare"],
        "num_rollouts_per_prompt": int(sys.argv[2]),
        "genrm_model_server": {"type": "responses_api_models", "name": "genrm_model"},
        "genrm_responses_create_params": {"input": [], "max_output_tokens": 64},
    }
    servers = {
        "mcqa": {"resources_servers": {"mcqa": shared["mcqa"]}},
        "mcqa_md": {"resources_servers": {"mcqa": shared["mcqa_md"]}},
        "compare": {"resources_servers": {"genrm_compare": compare}},
        "genrm_model": {"responses_api_models": {"genrm_model": shared["genrm_model"]}},
    }
    os.environ["NEMO_GYM_CONFIG_DICT"] = OmegaConf.to_yaml(OmegaConf.create(servers))
    client = ServerClient(
        head_server_config=BaseServerConfig(host="127.0.0.1", port=1), global_config_dict=OmegaConf.create(servers)
    )
    made = {
        "mcqa": MCQAResourcesServer(
            config=MCQAResourcesServerConfig(name="mcqa", **shared["mcqa"]), server_client=client
        ),
        "mcqa_md": MCQAResourcesServer(
            config=MCQAResourcesServerConfig(
                name="mcqa_md", grading_mode="lenient_answer_colon_md", **shared["mcqa_md"]
            ),
            server_client=client,
        ),
        "compare": GenRMCompareResourcesServer(
            config=GenRMCompareConfig(name="compare", **compare), server_client=client
        ),
    }
    apps = {**{name: server.setup_webserver() for name, server in made.items()}, "genrm_model": judge_app()}
    asyncio.run(serve(apps, ports, Path(sys.argv[1])))


async def serve(apps: dict[str, FastAPI], ports: dict[str, int], said: Path) -> None:
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
