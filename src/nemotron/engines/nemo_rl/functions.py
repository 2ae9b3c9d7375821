"""Reward functions where NeMo-RL trains: through NeMo-Gym's simple agent to a resources server of ours.

NeMo-RL's own ``env.math`` says 0 or 1 of mathematics. Everything else that ``rewards`` can be is scored by the code
that scores it beside the embedded engine, so a config gives the same rewards in both places.
"""

from __future__ import annotations

from collections.abc import Mapping
from copy import deepcopy
from typing import Any

from nemotron.config.schema.rewards import RewardConfig

SERVER = "nemotron_rewards"
AGENT = "nemotron_rewards_simple_agent"
HOST = "mcqa"
"""The server of NeMo-Gym's in whose folder and environment ours is started."""
DATASET = {"dataset_name": "NemoGymDataset"}


def scored_by_us(values: Mapping[str, Any]) -> bool:
    """Whether the functions of a config need our server."""
    rewards = values.get("rewards")
    if not rewards or (values.get("env") or {}).get("should_use_nemo_gym"):
        return False
    return not RewardConfig.model_validate(rewards).is_env_math


def through_gym(values: Mapping[str, Any]) -> dict[str, Any]:
    """The values of a job as if they had named NeMo-Gym, where its functions need our server; else as they are."""
    if not scored_by_us(values):
        return dict(values)
    found: dict[str, Any] = deepcopy(dict(values))
    policy, data = found["policy"], found["data"]
    vllm = policy["generation"].setdefault("vllm_cfg", {})
    # NeMo-Gym talks to the policy over HTTP.
    vllm.update({"async_engine": True, "expose_http_server": True})
    if policy["generation"].get("top_k") == -1:
        policy["generation"]["top_k"] = None
    vllm.setdefault("max_model_len", policy["max_total_sequence_length"])
    vllm.setdefault("http_server_serving_chat_kwargs", {"enable_auto_tools": False})
    # It takes the whole validation file, and the rows beyond `max_val_samples` are not written.
    found["grpo"].update({"max_val_samples": None, "val_batch_size": None})
    for role in ("train", "validation"):
        sets = data.get(role)
        for rows in sets if isinstance(sets, list) else [sets] if sets else []:
            rows.update(DATASET)
            for name in ("env_name", "processor"):
                rows.pop(name, None)
    data["default"] = {"env_name": "nemo_gym", "processor": "nemo_gym_data_processor"}
    data["max_input_seq_length"] = None
    found["env"] = {
        "should_use_nemo_gym": True,
        "should_log_nemo_gym_responses": True,
        "nemo_gym": {"rollout_max_attempts_to_avoid_lp_nan": 1, "is_trajectory_collection": False},
    }
    return found


def add_servers(section: dict[str, Any], rewards: Mapping[str, Any], entrypoint: str) -> None:
    """Our server and its agent in ``env.nemo_gym``; what is null in ``rewards`` stays so, as it may mean something."""
    ours = {"rewards": deepcopy(dict(rewards))}
    section[SERVER] = {
        "resources_servers": {HOST: {"entrypoint": entrypoint, "domain": "other", "nemotron": ours}},
    }
    section[AGENT] = {
        "responses_api_agents": {
            "simple_agent": {
                "entrypoint": "app.py",
                "resources_server": {"type": "resources_servers", "name": SERVER},
                "model_server": {"type": "responses_api_models", "name": "policy_model"},
            }
        }
    }
