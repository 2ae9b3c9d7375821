"""A server of NeMo-Gym's own as a process, for comparison.py: comparison_gym.py CLASS NAME, in the venv of nemo-gym.

``run_webserver`` of its class serves, as NeMo-Gym starts it, with the config in its environment variables. Left out is
what no request passes through: Ray, and the head server that the config is otherwise asked of.
"""

import importlib
import sys
from types import ModuleType
from unittest.mock import MagicMock

from nemo_gym import server_utils
from nemo_gym.config_types import BaseServerConfig

UNUSED = ("vllm.entrypoints.openai.api_server", "responses_api_models.local_vllm_model.local_vllm_model_actor")


def main() -> None:
    module, _, name = sys.argv[1].partition(":")
    # genrm_model imports what starts vLLM, which it does not use where it has a `base_url`.
    for wanted in UNUSED:
        sys.modules[wanted] = _Unused(wanted)
    server_utils.initialize_ray = lambda: None
    head = BaseServerConfig(host="127.0.0.1", port=1)
    server_utils.ServerClient.load_head_server_config = classmethod(lambda cls: head)
    getattr(importlib.import_module(module), name).run_webserver()


class _Unused(ModuleType):
    """A module that has every name."""

    def __getattr__(self, name: str) -> MagicMock:
        return MagicMock(name=name)


if __name__ == "__main__":
    main()
