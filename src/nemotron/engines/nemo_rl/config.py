"""``config.yaml`` of NeMo-RL from the config of a job: what it reads, nothing of ours, nothing left to be resolved.

Pure: a dry run shows it, and the worker writes the same. NeMo-RL reads keys by ``[]`` that its own types call optional,
so a config that passes its validation may still end in a KeyError, some of them after the models are loaded. Each
default here is the value that means "off", or what the key's absence means to us.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from copy import deepcopy
from typing import Any

from pydantic import BaseModel

from nemotron.config.schema.fields import written_defaults
from nemotron.config.schema.grpo import AdvEstimatorConfig, GrpoConfig, RewardScalingConfig
from nemotron.config.schema.ppo import PpoConfig, PpoEstimatorConfig
from nemotron.engines.nemo_rl.functions import add_servers, scored_by_us, through_gym
from nemotron.engines.nemo_rl.gym import JUDGE_IMPLEMENTATION, JUDGE_PATH, entrypoint, gym_section, serves_judge
from nemotron.engines.nemo_rl.version import SECTIONS

OURS = (
    *("engine", "eval", "limits", "judge", "rewards", "gym", "reward_model", "critic", "actor", "only"),
    *("bradley_terry", "sampler"),
)
"""Sections that NeMo-RL would print and ignore."""
OURS_IN_DATA = ("manifest_path", "use_tokens")
OURS_IN_GRPO = ("dynamic_sampling_unit",)
OF_FILES = (
    *("data_path", "input_key", "output_key", "prompt_key", "chosen_key", "rejected_key"),
    *("split", "subset", "split_validation_size", "download_dir"),
)
"""Keys of a data set that describe files which are rewritten."""
NO_FUSION = {"use_fused_weighted_squared_relu": False, "use_linear_ce_fusion_loss": False}
LOGGERS = ("wandb", "tensorboard", "mlflow", "swanlab")
SECRET = "NEMOTRON_SECRET_"
"""How a variable begins that holds a secret which no variable of the user's does."""
_REFERENCE = re.compile(r"(\\*)\$\{")


def section_of(values: Mapping[str, Any]) -> str:
    """The algorithm of a config."""
    return next(name for name in SECTIONS if name in values)


def uses_gym(values: Mapping[str, Any]) -> bool:
    """Whether rollouts and rewards go through NeMo-Gym."""
    return bool((values.get("env") or {}).get("should_use_nemo_gym")) or scored_by_us(values)


def secret_variable(key: str, named: Mapping[str, str]) -> str:
    """The environment variable that holds the secret ``key``: the one that the YAML names, else one of ours."""
    return named.get(key) or SECRET + re.sub(r"\W", "_", key).upper()


def nemo_rl_config(
    values: Mapping[str, Any], *, folder: str, secrets: Mapping[str, str], pair_sets: tuple[str, ...] = ()
) -> dict[str, Any]:
    """The content of ``config.yaml``.

    Args:
        values: the resolved config of the job, without secrets.
        folder: where ``data/`` will be, absolute.
        secrets: config key -> environment variable of every secret that is set.
        pair_sets: names of the validation sets of pairs, in order, where there are several.
    """
    given, values = values, through_gym(values)
    config = {key: deepcopy(value) for key, value in values.items() if key not in OURS}
    section = section_of(config)
    if section in ("dpo", "rm", "sft"):
        # Only our held-out metric samples there.
        config["policy"].pop("generation", None)
    _model(config["policy"])
    _policy(config["policy"])
    if section == "ppo":
        _model(config["value"])
        config["value"]["dtensor_cfg"].setdefault("_v2", True)
    config["policy"]["dtensor_cfg"].setdefault("_v2", False)
    _checkpoints(config["checkpointing"])
    config["data"] = _data(values, folder, pairs=section in ("dpo", "rm"), pair_sets=pair_sets)
    if section == "grpo":
        _grpo(config["grpo"])
    if section in ("grpo", "ppo"):
        # Not `reward_shaping`: its null is none of NeMo-RL's values, and its absence is looked for there.
        _fill(config[section]["reward_scaling"], RewardScalingConfig)
    if section == "ppo":
        _fill(config["ppo"], PpoConfig)
        _fill(config["ppo"]["adv_estimator"], PpoEstimatorConfig)
        _reward_model(config, values)
    logger = config["logger"]
    if not any(logger.get(f"{name}_enabled") for name in LOGGERS):
        # Beside the lines that we take ourselves: what is left when the driver is started by hand.
        logger["tensorboard_enabled"] = True
    gym = uses_gym(config)
    written: dict[str, Any] = _escaped(config, 1)
    if gym:
        written["env"]["nemo_gym"] = _escaped(gym_section(values, folder, secrets), 2)
        if scored_by_us(given):
            add_servers(written["env"]["nemo_gym"], _escaped(values["rewards"], 2), entrypoint(folder))
    _refer(written, values, secrets)
    return written


def _model(model: dict[str, Any]) -> None:
    """A policy, or a critic that is one."""
    megatron = model.get("megatron_cfg")
    model["megatron_cfg"] = {**NO_FUSION, **(megatron or {"enabled": False})}
    for key, value in (
        ("dtensor_cfg", {"enabled": False}),
        ("dynamic_batching", {"enabled": False}),
        ("sequence_packing", {"enabled": False}),
        ("max_grad_norm", None),
        ("logprob_batch_size", model.get("train_micro_batch_size")),
    ):
        if model.get(key) is None:
            model[key] = value
    # 0 is no clipping to us; there it would multiply every gradient by 0.
    model["max_grad_norm"] = model["max_grad_norm"] or None


def _policy(policy: dict[str, Any]) -> None:
    """What only a policy has."""
    for key, value in (("draft", {"enabled": False}), ("offload_optimizer_for_logprob", False)):
        if policy.get(key) is None:
            policy[key] = value
    generation = policy.get("generation")
    if not isinstance(generation, dict):
        return
    colocated = generation.get("colocated") or {"enabled": True}
    resources = colocated.get("resources") or {"gpus_per_node": None, "num_nodes": None}
    generation["colocated"] = {**colocated, "resources": resources}
    if generation.get("backend") == "vllm":
        vllm = generation["vllm_cfg"] = dict(generation.get("vllm_cfg") or {})
        vllm.setdefault("precision", policy.get("precision"))
        vllm.setdefault("kv_cache_dtype", "auto")
        generation["vllm_kwargs"] = generation.get("vllm_kwargs") or {}


def _checkpoints(settings: dict[str, Any]) -> None:
    for key, value in (("keep_top_k", None), ("save_optimizer", True), ("checkpoint_must_save_by", None)):
        settings.setdefault(key, value)


def _grpo(settings: dict[str, Any]) -> None:
    if settings.get("adv_estimator") is None:
        names = ("normalize_rewards", "use_leave_one_out_baseline")
        settings["adv_estimator"] = {"name": "grpo", **{name: settings.get(name, True) for name in names}}
    _fill(settings, GrpoConfig)
    _fill(settings["adv_estimator"], AdvEstimatorConfig)
    for name in OURS_IN_GRPO:
        settings.pop(name, None)


def _fill(settings: dict[str, Any], model: type[BaseModel]) -> None:
    """Write what a key that is left out is for us: most are read by `[]`, some of them in the first step only."""
    for name, value in written_defaults(model).items():
        settings.setdefault(name, value)


def _data(values: Mapping[str, Any], folder: str, *, pairs: bool, pair_sets: tuple[str, ...]) -> dict[str, Any]:
    """The data section, on the files that :mod:`nemotron.engines.nemo_rl.rows` writes."""
    given = values["data"]
    data = {key: deepcopy(value) for key, value in given.items() if key not in OURS_IN_DATA}
    default = data.pop("default", None)
    if default:
        data["default"] = {key: value for key, value in default.items() if key not in OF_FILES}
    data["use_multiple_dataloader"] = bool(given.get("use_multiple_dataloader"))
    name = "PreferenceDataset" if pairs else "NemoGymDataset" if uses_gym(values) else "ResponseDataset"
    for role in ("train", "validation"):
        files = data_files(values, role, pairs=pairs, pair_sets=pair_sets)
        kept = [_dataset(rows, name) for rows in _sets(given, role)]
        found = [{**kept[min(i, len(kept) - 1)], "data_path": f"{folder}/data/{file}"} for i, file in enumerate(files)]
        data[role] = (found[0] if len(found) == 1 else found) if found else None
    if pairs and isinstance(data["validation"], list):
        # Its pairs have one validation section, and this for several.
        data["val_data_paths"] = {
            one: rows["data_path"] for one, rows in zip(pair_sets, data["validation"], strict=True)
        }
        data["validation"] = None
    if section_of(values) == "sft":
        for key, on in (("add_bos", True), ("add_eos", True), ("add_generation_prompt", False)):
            data[key] = on if data.get(key) is None else data[key]
        for rows in _mappings(data):
            rows["processor"] = "sft_processor"
    if section_of(values) == "ppo":
        # Not in NeMo-RL's types: its setup() asks here whether GPUs are already taken.
        data["env_name"] = "reward_model"
        for rows in _mappings(data):
            for key, value in (("env_name", "reward_model"), ("processor", "math_hf_data_processor")):
                if key in rows or rows is data.get("default"):
                    rows[key] = value
        data.setdefault("default", {"env_name": "reward_model", "processor": "math_hf_data_processor"})
    if name != "NemoGymDataset" and data.get("max_input_seq_length") is None:
        # Every processor but the gym's compares with it.
        data["max_input_seq_length"] = values["policy"]["max_total_sequence_length"]
    if section_of(values) == "sft":
        # Its processor of conversations, which alone reads this, masks a row of exactly so many tokens.
        data["max_input_seq_length"] += 1
    return data


def data_files(
    values: Mapping[str, Any], role: str, *, pairs: bool, pair_sets: tuple[str, ...] = ()
) -> tuple[str, ...]:
    """Names of the files below ``data/`` that hold the rows of ``role``, in the order of the config's data sets.

    Prepared rows are one set, and so are pairs to train on: NeMo-RL takes one there.
    """
    sets = _sets(values["data"], role)
    one = values["data"].get("manifest_path") is not None or (pairs and role == "train")
    if pairs and role == "validation" and pair_sets:
        return tuple(f"validation-{i}.jsonl" for i in range(len(pair_sets)))
    if len(sets) < 2 or one:
        return (f"{role}.jsonl",) if sets else ()
    return tuple(f"{role}-{i}.jsonl" for i in range(len(sets)))


def _sets(data: Mapping[str, Any], role: str) -> list[Mapping[str, Any]]:
    sets = data.get(role)
    return sets if isinstance(sets, list) else [sets] if sets else []


def _mappings(data: Mapping[str, Any]) -> list[dict[str, Any]]:
    return [rows for role in ("train", "validation", "default") for rows in _sets(data, role) if isinstance(rows, dict)]


def _dataset(rows: Mapping[str, Any], name: str) -> dict[str, Any]:
    kept = {key: value for key, value in rows.items() if key not in OF_FILES}
    if name == "PreferenceDataset":
        for key in ("env_name", "processor"):
            kept.pop(key, None)
    return {**kept, "dataset_name": name}


def _reward_model(config: dict[str, Any], values: Mapping[str, Any]) -> None:
    """The whole block that NeMo-RL's reward-model environment reads."""
    policy = values["policy"]
    given = (values.get("env") or {}).get("reward_model") or {}
    name = (values.get("reward_model") or {}).get("model_name") or given.get("model_name")
    block: dict[str, Any] = {
        "precision": policy["precision"],
        "batch_size": policy["train_micro_batch_size"],
        "logprob_batch_size": policy.get("logprob_batch_size") or policy["train_micro_batch_size"],
        "checkpoint_path": None,
        "enabled": True,
        "max_total_sequence_length": policy["max_total_sequence_length"],
        "make_sequence_length_divisible_by": 1,
        "hf_config_overrides": {},
        **deepcopy(given),
        "model_name": name,
        "tokenizer": {"chat_template_kwargs": None, **(given.get("tokenizer") or {}), "name": name},
        "resources": {"gpus_per_node": 1, "num_nodes": 1, **(given.get("resources") or {})},
        "reward_model_cfg": {"enabled": True, "reward_model_type": "bradley_terry"},
        "dynamic_batching": {"enabled": False},
        "sequence_packing": {"enabled": False},
        "megatron_cfg": {"enabled": False, **NO_FUSION},
        "draft": {"enabled": False},
        "offload_optimizer_for_logprob": False,
        "max_grad_norm": None,
    }
    block["dtensor_cfg"] = {
        **{"_v2": True, "tensor_parallel_size": 1, "context_parallel_size": 1, "sequence_parallel": False},
        "custom_parallel_plan": None,
        **(given.get("dtensor_cfg") or {}),
        **{"enabled": True, "activation_checkpointing": False, "cpu_offload": False},
    }
    config["env"]["reward_model"] = block


def _escaped(value: Any, times: int) -> Any:
    """``value`` for a reader that resolves ``${}`` so many times: what is text to us stays text to it."""

    def escape(match: re.Match[str]) -> str:
        return "\\" * (2 * len(match[1]) + 1) + "${"

    if isinstance(value, dict):
        return {key: _escaped(child, times) for key, child in value.items()}
    if isinstance(value, list):
        return [_escaped(child, times) for child in value]
    if isinstance(value, str):
        for _ in range(times):
            value = _REFERENCE.sub(escape, value)
    return value


def _refer(config: dict[str, Any], values: Mapping[str, Any], secrets: Mapping[str, str]) -> None:
    """Secrets as references that only their last reader resolves: NeMo-RL prints its config and keeps copies of it."""
    for key, variable in secrets.items():
        *path, name = key.split(".")
        if tuple(path) == JUDGE_PATH and not serves_judge(values):
            continue  # our server takes it from the environment
        at: Any = config
        for part in _renamed(path, values):
            at = at.setdefault(part, {}) if isinstance(at, dict) else None
        if isinstance(at, dict):
            at[name] = f"\\${{oc.env:{variable}}}"


def _renamed(path: list[str], values: Mapping[str, Any]) -> list[str]:
    """Where a section of ours stands in NeMo-Gym's."""
    if uses_gym(values) and tuple(path) == JUDGE_PATH:
        return [*path[:-1], JUDGE_IMPLEMENTATION]
    return path
