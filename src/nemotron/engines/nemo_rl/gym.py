"""``env.nemo_gym`` as NeMo-Gym 0.4.0 reads it: NeMo-RL hands all of it on, so every key must be one of Gym's."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from copy import deepcopy
from typing import Any

from nemotron.config.schema.judge import JUDGED_AGENT, JudgeConfig
from nemotron.judge.announced import ADDRESS_VARIABLE, TOKEN_VARIABLE

JUDGE_PATH = ("env", "nemo_gym", "genrm_model", "responses_api_models", "vllm_model")
"""Where every config of ours keeps the judge."""
JUDGE_IMPLEMENTATION = "genrm_model"
"""What Gym must start there: its plain ``vllm_model`` drops the answers that are to be compared."""
POLICY_CONFIG = "responses_api_models/vllm_model/configs/vllm_model_for_training.yaml"
COMPARE = "genrm_compare_resources_server"
OURS = "nemotron"
"""What of ours a block has (:mod:`nemotron.gym.under_gym`)."""
SERVER = "server.py"
"""The program below the folder that becomes a server of ours."""

_JUDGE = {
    "entrypoint": "app.py",
    "return_token_id_information": False,
    "uses_reasoning_parser": False,
    "debug": False,
    "vllm_serve_env_vars": {"VLLM_RAY_DP_PACK_STRATEGY": "strict"},
    "vllm_serve_kwargs": {
        **{"tensor_parallel_size": 1, "pipeline_parallel_size": 1, "data_parallel_size": 1},
        "gpu_memory_utilization": 0.9,
    },
}
_COMPARE = {
    "entrypoint": "app.py",
    "domain": "rlhf",
    "genrm_model_server": {"type": "responses_api_models", "name": "genrm_model"},
    "debug_logging": False,
}
_AGENT = {
    "entrypoint": "app.py",
    "resources_server": {"type": "resources_servers", "name": COMPARE},
    "model_server": {"type": "responses_api_models", "name": "policy_model"},
}


def compares_itself(values: Mapping[str, Any]) -> bool:
    """Whether our server compares the answers."""
    judge = values.get("judge")
    return judge is not None and judge.get("comparison_server", OURS) == OURS


def serves_judge(values: Mapping[str, Any]) -> bool:
    """Whether NeMo-Gym has a model server for the judge: an endpoint elsewhere our server asks itself."""
    return not (compares_itself(values) and (_judge_of(values).get("base_url") or served_beside(values)))


def served_beside(values: Mapping[str, Any]) -> bool:
    """:func:`nemotron.judge.serving.served_beside` of plain values."""
    judge, model = values.get("judge") or {}, _judge_of(values)
    return bool(model) and not model.get("base_url") and judge.get("server") == "vllm" and compares_itself(values)


def entrypoint(folder: str) -> str:
    """Our program as Gym can start it.

    Gym runs a relative path in the folder of a server that it has an environment for, so that nothing is installed for
    ours on the cluster: our program needs no more than a Python, and hands over to our own. ``..`` stops at the root.
    Gym puts the path into a line of a shell as it is.
    """
    return shlex.quote("../" * 32 + f"{folder.lstrip('/')}/{SERVER}")


def gym_section(values: Mapping[str, Any], folder: str, secrets: Mapping[str, str]) -> dict[str, Any]:
    """The section of a config, with the servers that it takes for granted.

    What is null is left out: Gym's types refuse it where the absence of the key means the same to us.

    Args:
        folder: where our program is.
        secrets: config key -> environment variable of every secret that is set.
    """
    given = deepcopy(values["env"].get("nemo_gym") or {})
    paths = given.setdefault("config_paths", [])
    if POLICY_CONFIG not in paths:
        given["config_paths"] = [POLICY_CONFIG, *paths]
    policy = _at(given, "policy_model", "responses_api_models", "vllm_model")
    policy.setdefault("return_token_id_information", True)
    policy.setdefault("uses_reasoning_parser", False)
    if isinstance(given.get("genrm_model"), dict):
        _judged(given)
    found: dict[str, Any] = _without_nulls(given)
    if compares_itself(values):
        # What only our server reads may be null.
        _compared_by_us(found, values, folder, secrets)
    return found


def _judged(section: dict[str, Any]) -> None:
    models = _at(section, "genrm_model", "responses_api_models")
    judge = models.pop(JUDGE_PATH[-1], None)
    if judge is not None:
        models[JUDGE_IMPLEMENTATION] = _over(_JUDGE, judge)
    servers = _at(section, COMPARE, "resources_servers")
    compare = servers["genrm_compare"] = _over(_COMPARE, servers.get("genrm_compare") or {})
    _at(compare, "genrm_responses_create_params").setdefault("input", [])
    agents = _at(section, JUDGED_AGENT, "responses_api_agents")
    agents["simple_agent"] = _over(_AGENT, agents.get("simple_agent") or {})


def _compared_by_us(
    section: dict[str, Any], values: Mapping[str, Any], folder: str, secrets: Mapping[str, str]
) -> None:
    """Our server in the place of genrm_compare: the same keys, another program, and what only it reads."""
    compare = _at(section, COMPARE, "resources_servers", "genrm_compare")
    # The probe belongs to the run, not to who compares.
    asked = {name: deepcopy(value) for name, value in values["judge"].items() if name in JudgeConfig.model_fields}
    judge, ours = _judge_of(values), {"judge": asked}
    if not serves_judge(values):
        key = f"{'.'.join(JUDGE_PATH)}.api_key"
        ours["endpoint"] = {
            **{name: judge.get(name) for name in ("base_url", "model", "supports_principle_role")},
            "api_key_variable": secrets.get(key),
        }
        if served_beside(values):
            ours["endpoint"] |= {"base_url_variable": ADDRESS_VARIABLE, "api_key_variable": TOKEN_VARIABLE}
        del section["genrm_model"], compare["genrm_model_server"]
    compare.update({"entrypoint": entrypoint(folder), OURS: ours})


def _judge_of(values: Mapping[str, Any]) -> Mapping[str, Any]:
    found: Any = values
    for name in JUDGE_PATH:
        found = (found or {}).get(name)
    return found or {}


def _over(base: Mapping[str, Any], given: Mapping[str, Any]) -> dict[str, Any]:
    """``given`` on top of ``base``, mappings merged."""
    merged = deepcopy(dict(base))
    for key, value in given.items():
        below = merged.get(key)
        merged[key] = _over(below, value) if isinstance(below, dict) and isinstance(value, dict) else value
    return merged


def _at(section: dict[str, Any], *names: str) -> dict[str, Any]:
    for name in names:
        if not isinstance(section.get(name), dict):
            section[name] = {}
        section = section[name]
    return section


def _without_nulls(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_nulls(child) for key, child in value.items() if child is not None}
    if isinstance(value, list):
        return [_without_nulls(child) for child in value]
    return value
