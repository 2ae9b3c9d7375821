"""Starts NeMo-Gym as NeMo-RL v0.7.0's actor does, on a section that was written for it: start.py SECTION SAID.

Runs in the venv of nemo-gym. SECTION is ``env.nemo_gym`` as JSON, with the policy's address in it. Every server takes
this venv for its own, so nothing is installed. Writes the agents' addresses as JSON when all servers answer.
"""

import json
import sys
import threading
from pathlib import Path

from nemo_gym.cli import GlobalConfigDictParserConfig, RunHelper
from nemo_gym.global_config import get_global_config_dict
from omegaconf import DictConfig

VENV = Path(sys.prefix)
OF_NEMO_RL = ("is_trajectory_collection", "rollout_max_attempts_to_avoid_lp_nan")
KINDS = ("resources_servers", "responses_api_models", "responses_api_agents")


def main() -> None:
    section, said = Path(sys.argv[1]), Path(sys.argv[2])
    given = json.loads(section.read_text())
    for name in OF_NEMO_RL:
        given.pop(name, None)
    venvs = said.parent / "venvs"
    for kind in KINDS:
        for server in (VENV / "lib").glob(f"python3.*/site-packages/{kind}/*/"):
            folder = venvs / kind / server.name
            folder.mkdir(parents=True)
            (folder / ".venv").symlink_to(VENV)
    ours = {"skip_venv_if_present": True, "uv_venv_dir": str(venvs), "default_host": "127.0.0.1"}
    config = DictConfig({**given, **ours, "head_server": {"host": "127.0.0.1", "port": given.pop("head_port")}})
    helper = RunHelper()
    helper.start(
        global_config_dict_parser_config=GlobalConfigDictParserConfig(
            dotenv_path=said.parent / "none.yaml", initial_global_config_dict=config, skip_load_from_cli=True
        )
    )
    found = get_global_config_dict()
    agents = {}
    for name, block in found.items():
        if isinstance(block, DictConfig) and "responses_api_agents" in block:
            [agent] = block["responses_api_agents"].values()
            agents[name] = f"http://{agent.host}:{agent.port}"
    said.with_suffix(".tmp").write_text(json.dumps(agents))
    said.with_suffix(".tmp").rename(said)
    stopped = threading.Event()
    threading.Thread(target=lambda: (sys.stdin.read(), stopped.set()), daemon=True).start()
    stopped.wait()
    helper.shutdown()


if __name__ == "__main__":
    main()
