"""NeMo-Gym's own genrm_compare as a process, for comparison.py: comparison_gym.py CONFIG PORT JUDGE_PORT.

Runs in the venv of nemo-gym, on uvicorn, as NeMo-Gym runs it, without Ray and head server.
"""

import json
import os
import sys

import uvicorn
from nemo_gym.config_types import BaseServerConfig
from nemo_gym.server_utils import ServerClient
from omegaconf import OmegaConf
from resources_servers.genrm_compare.app import GenRMCompareConfig, GenRMCompareResourcesServer

COMPARE, JUDGE = "compare", "genrm_model"


def main() -> None:
    settings, port, judge = json.loads(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
    own = {"entrypoint": "app.py", "domain": "rlhf", "host": "127.0.0.1", "port": port, **settings}
    own["genrm_model_server"] = {"type": "responses_api_models", "name": JUDGE}
    model = {"entrypoint": "app.py", "host": "127.0.0.1", "port": judge}
    servers = {
        COMPARE: {"resources_servers": {"genrm_compare": own}},
        JUDGE: {"responses_api_models": {JUDGE: model}},
    }
    os.environ["NEMO_GYM_CONFIG_DICT"] = OmegaConf.to_yaml(OmegaConf.create(servers))
    client = ServerClient(
        head_server_config=BaseServerConfig(host="127.0.0.1", port=1), global_config_dict=OmegaConf.create(servers)
    )
    server = GenRMCompareResourcesServer(config=GenRMCompareConfig(name=COMPARE, **own), server_client=client)
    app = server.setup_webserver()
    server.setup_liveness(app)
    uvicorn.run(app, host="127.0.0.1", port=port, log_level="warning", access_log=False)


if __name__ == "__main__":
    main()
