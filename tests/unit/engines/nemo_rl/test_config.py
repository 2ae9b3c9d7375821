"""``config.yaml`` of every shipped config against the keys of NeMo-RL v0.7.0, and those that it reads anyway."""

from __future__ import annotations

import json
from collections.abc import Iterator
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
from omegaconf import OmegaConf
from pydantic import BaseModel

from nemotron.config.dump import dump_yaml
from nemotron.config.layers import load
from nemotron.config.overrides import parse_overrides
from nemotron.config.schema.grpo import AdvEstimatorConfig, GrpoConfig, RewardScalingConfig
from nemotron.config.schema.ppo import PpoConfig, PpoEstimatorConfig
from nemotron.engines.nemo_rl.config import OURS, nemo_rl_config, section_of, uses_gym
from nemotron.manifest import declaration, find_step

# key -> the algorithms whose config declares it, with `!` where it is required; of NeMo-RL's own types.
KEYS: dict[str, str] = json.loads((Path(__file__).parent / "keys_v0.7.0.json").read_text())
CONFIGS = [
    *(("sft", "default"), ("dpo", "default"), ("rm", "default"), ("ppo", "default")),
    *(("rlvr", "default"), ("rlvr", "nemo_gym"), ("rlhf", "default"), ("rlhf", "nemo_gym")),
]
JUDGE = "env.nemo_gym.genrm_model.responses_api_models.vllm_model"
# What its types do not list, and its code reads: a data set takes any key along, setup() of PPO asks for the second.
UNDECLARED = {"data.validation.repeat", "data.env_name"}
OPEN = ("env.", "policy.optimizer.kwargs", "value.optimizer.kwargs", "policy.scheduler", "value.scheduler")
# Optional in its types, and read by `[]` all the same: (keys, when).
READ = {
    "every": (
        *("policy.offload_optimizer_for_logprob", "policy.sequence_packing.enabled", "policy.dynamic_batching.enabled"),
        *("policy.logprob_batch_size", "policy.max_grad_norm", "policy.draft.enabled"),
        *("policy.megatron_cfg.enabled", "policy.megatron_cfg.use_linear_ce_fusion_loss", "policy.dtensor_cfg.enabled"),
        *("policy.megatron_cfg.use_fused_weighted_squared_relu", "data.use_multiple_dataloader"),
        *("checkpointing.keep_top_k", "checkpointing.save_optimizer", "checkpointing.checkpoint_must_save_by"),
    ),
    "grpo": ("grpo.overlong_filtering", "grpo.batch_multiplier", "grpo.adv_estimator"),
    "generation": (
        *("policy.generation.vllm_cfg.precision", "policy.generation.vllm_cfg.kv_cache_dtype"),
        *("policy.generation.colocated.enabled", "policy.generation.colocated.resources.gpus_per_node"),
    ),
    "sft": (
        *("data.add_bos", "data.add_eos", "data.add_generation_prompt", "data.train.processor"),
        *("policy.make_sequence_length_divisible_by", "data.num_workers", "checkpointing.metric_name"),
    ),
    "ppo": (
        *("value.megatron_cfg.enabled", "value.dtensor_cfg._v2", "data.env_name", "data.max_input_seq_length"),
        *(f"env.reward_model.{name}" for name in ("model_name", "tokenizer.name", "precision", "logprob_batch_size")),
        *(f"env.reward_model.{name}" for name in ("checkpoint_path", "resources.gpus_per_node", "resources.num_nodes")),
        *(f"env.reward_model.dtensor_cfg.{name}" for name in ("enabled", "_v2", "tensor_parallel_size", "cpu_offload")),
        *(f"env.reward_model.dtensor_cfg.{name}" for name in ("context_parallel_size", "sequence_parallel")),
        *("env.reward_model.dtensor_cfg.activation_checkpointing", "env.reward_model.reward_model_cfg.enabled"),
        *("env.reward_model.reward_model_cfg.reward_model_type", "env.reward_model.dynamic_batching.enabled"),
        *("env.reward_model.sequence_packing.enabled", "env.reward_model.max_grad_norm"),
    ),
}


def values_of(step: str, name: str, *words: str) -> dict[str, Any]:
    found = find_step(step)
    overrides = parse_overrides(list(enumerate(words, start=5)))
    return load(found.config_dir, name, overrides, run_dir="/runs/r", model=declaration(found).config).values


def config_of(step: str, name: str, *words: str, **secrets: str) -> dict[str, Any]:
    return nemo_rl_config(values_of(step, name, *words), folder="/runs/r/nemo_rl", secrets=secrets)


def declared(section: str) -> dict[str, bool]:
    """Keys of an algorithm, and whether they are required."""
    words = {key: said.split() for key, said in KEYS.items()}
    return {key: f"{section}!" in said for key, said in words.items() if {section, f"{section}!"} & set(said)}


def keys_of(value: Any, key: str = "") -> Iterator[str]:
    if key:
        yield key
    if isinstance(value, dict):
        for name, child in value.items():
            yield from keys_of(child, f"{key}.{name}" if key else str(name))


def texts(value: Any) -> Iterator[str]:
    if isinstance(value, dict | list):
        for child in value.values() if isinstance(value, dict) else value:
            yield from texts(child)
    elif isinstance(value, str):
        yield value


@pytest.mark.parametrize(("step", "name"), CONFIGS)
def test_only_keys_of_nemo_rl(step: str, name: str) -> None:
    config = config_of(step, name)
    known = declared(section_of(config))
    unknown = {key for key in keys_of(config) if key not in known and not key.startswith(OPEN)}
    assert unknown <= UNDECLARED
    assert not set(config) & set(OURS)
    assert "defaults" not in config


@pytest.mark.parametrize(("step", "name"), CONFIGS)
def test_every_required_key_is_there(step: str, name: str) -> None:
    config = config_of(step, name)
    known = declared(section_of(config))
    have = set(keys_of(config))

    def off(key: str) -> bool:
        """A section that is not there, is null, or is switched off: its keys are not read."""
        at: Any = config
        for part in key.split(".")[:-1]:
            at = at.get(part) if isinstance(at, dict) else None
            if not isinstance(at, dict) or at.get("enabled") is False:
                return True
        return False

    missing = {key for key, required in known.items() if required and key not in have and not off(key)}
    assert missing <= {"policy.generation.vllm_cfg.skip_tokenizer_init"}, "NeMo-RL sets that one itself"


@pytest.mark.parametrize(("step", "name"), CONFIGS)
def test_what_is_read_although_it_is_optional(step: str, name: str) -> None:
    config = config_of(step, name)
    section = section_of(config)
    wanted = {*READ["every"], *READ.get(section, ())}
    if config["policy"].get("generation"):
        wanted.update(READ["generation"])
    assert wanted - set(keys_of(config)) == set()
    assert uses_gym(config) or config["data"]["max_input_seq_length"] is not None


ALGORITHMS: dict[str, tuple[str, type[BaseModel]]] = {
    "grpo": ("rlvr", GrpoConfig),
    "grpo.adv_estimator": ("rlvr", AdvEstimatorConfig),
    "grpo.reward_scaling": ("rlvr", RewardScalingConfig),
    "ppo": ("ppo", PpoConfig),
    "ppo.reward_scaling": ("ppo", RewardScalingConfig),
    "ppo.adv_estimator": ("ppo", PpoEstimatorConfig),
}
# Left out they are read nowhere, and null is no value of theirs; the last one is ours.
READ_WHEN_THERE = {
    *("num_val_generations_per_prompt", "invalid_tool_call_strategy", "penalize_invalid_tool_call"),
    *("penalize_malformed_thinking", "async_grpo", "dynamic_sampling_unit"),
}


@pytest.mark.parametrize(
    ("section", "key"),
    [
        (section, key)
        for section, (_, model) in ALGORITHMS.items()
        for key, field in model.model_fields.items()
        if not field.is_required()
    ],
)
def test_a_key_of_an_algorithm_that_is_left_out_is_written_as_it_is_to_us(section: str, key: str) -> None:
    """NeMo-RL reads most of them by `[]`, whatever its types say."""
    step, model = ALGORITHMS[section]
    values = values_of(step, "default")
    given: Any = values
    for name in section.split("."):
        given = given[name]
    given.pop(key, None)
    written: Any = nemo_rl_config(values, folder="/f", secrets={})
    for name in section.split("."):
        written = written[name]
    assert (key in written) == (key not in READ_WHEN_THERE)
    if key == "adv_estimator":
        assert set(written[key]) == set(AdvEstimatorConfig.model_fields)
    elif key in written:
        assert written[key] == model.model_fields[key].get_default()


@pytest.mark.parametrize(("step", "more"), [("sft", 1), ("dpo", 0), ("rm", 0)])
@pytest.mark.parametrize("said", ["null", "64"])
def test_a_row_of_exactly_the_limit_is_learned(step: str, more: int, said: str) -> None:
    """The processor of conversations masks what reaches the number, that of pairs what exceeds it."""
    config = config_of(step, "default", f"data.max_input_seq_length={said}", "policy.max_total_sequence_length=128")
    assert config["data"]["max_input_seq_length"] == (128 if said == "null" else int(said)) + more
    assert config["policy"]["max_total_sequence_length"] == 128


@pytest.mark.parametrize("step", ["sft", "dpo", "rm", "rlvr", "rlhf", "ppo"])
def test_no_clipping_is_null(step: str) -> None:
    """Its DTensor workers multiply each gradient by the norm over its own, so 0 would train nothing."""
    models = ("policy", "value") if step == "ppo" else ("policy",)
    for said, meant in (("0", None), ("0.0", None), ("null", None), ("0.5", 0.5)):
        config = config_of(step, "default", *(f"{model}.max_grad_norm={said}" for model in models))
        assert [config[model]["max_grad_norm"] for model in models] == [meant] * len(models)


@pytest.mark.parametrize(("step", "name"), CONFIGS)
def test_nothing_is_left_to_resolve_and_paths_are_absolute(step: str, name: str) -> None:
    config = config_of(step, name)
    assert [text for text in texts(config) if "${" in text] == []
    paths = [config["checkpointing"]["checkpoint_dir"], config["logger"]["log_dir"]]
    paths += [text for text in texts(config["data"]) if text.endswith(".jsonl")]
    assert len(paths) == 4
    assert all(path.startswith("/runs/r/") for path in paths)
    assert config["logger"]["tensorboard_enabled"]


@pytest.mark.parametrize("name", ["default", "nemo_gym"])
def test_the_judge_is_a_genrm_model_with_all_that_gym_wants(name: str) -> None:
    gym = config_of("rlhf", name)["env"]["nemo_gym"]
    assert "responses_api_models/vllm_model/configs/vllm_model_for_training.yaml" in gym["config_paths"]
    models = gym["genrm_model"]["responses_api_models"]
    assert set(models) == {"genrm_model"}, "a plain vllm_model would drop the answers"
    assert {"entrypoint", "model", "return_token_id_information", "uses_reasoning_parser"} <= set(models["genrm_model"])
    compare = gym["genrm_compare_resources_server"]["resources_servers"]["genrm_compare"]
    assert compare["genrm_model_server"] == {"type": "responses_api_models", "name": "genrm_model"}
    assert compare["genrm_responses_create_params"]["input"] == []
    agent = gym["genrm_simple_agent"]["responses_api_agents"]["simple_agent"]
    assert agent["resources_server"]["name"] == "genrm_compare_resources_server"
    compare.pop("nemotron")  # read by our server alone
    assert None not in texts_and_nulls(gym), "Gym's types refuse null"


def test_our_comparison_takes_the_place_of_gyms() -> None:
    """The same block for the same agent, another program, and what only that reads."""

    def compare(*words: str) -> tuple[dict[str, Any], dict[str, Any]]:
        gym = config_of("rlhf", "default", *words)["env"]["nemo_gym"]
        return gym, gym["genrm_compare_resources_server"]["resources_servers"]["genrm_compare"]

    _, theirs = compare("judge.comparison_server=nemo_gym")
    assert (theirs["entrypoint"], "nemotron" in theirs) == ("app.py", False)
    gym, ours = compare("judge.max_retries=2")
    assert not ours["entrypoint"].startswith("/"), "Gym refuses an absolute one"
    assert Path("/a/b/c/", ours["entrypoint"]).resolve() == Path("/runs/r/nemo_rl/server.py")
    assert ours["nemotron"]["judge"]["max_retries"] == 2
    assert "genrm_model" in gym
    assert {key: value for key, value in ours.items() if key not in ("entrypoint", "nemotron")} == {
        key: value for key, value in theirs.items() if key != "entrypoint"
    }


def test_a_judge_elsewhere_needs_no_model_server_of_gyms() -> None:
    """Its genrm_model imports vllm even for an endpoint."""
    words, secrets = (f"{JUDGE}.base_url=http://judge:8000/v1",), {f"{JUDGE}.api_key": "RL_REWARD_API_KEY"}
    gym = config_of("rlhf", "default", *words, **secrets)["env"]["nemo_gym"]
    assert "genrm_model" not in gym
    compare = gym["genrm_compare_resources_server"]["resources_servers"]["genrm_compare"]
    assert "genrm_model_server" not in compare
    assert compare["nemotron"]["endpoint"] == {
        **{"base_url": "http://judge:8000/v1", "model": "meta-llama/Llama-3.2-1B-Instruct"},
        **{"supports_principle_role": True, "api_key_variable": "RL_REWARD_API_KEY"},
    }


def test_a_judge_beside_the_job_is_asked_where_it_says_when_the_job_runs() -> None:
    """Its address and the token of the job are in the environment; no key of the config stands for either."""
    secrets = {f"{JUDGE}.api_key": "RL_REWARD_API_KEY"}
    gym = config_of("rlhf", "default", "judge.server=vllm", **secrets)["env"]["nemo_gym"]
    assert "genrm_model" not in gym
    compare = gym["genrm_compare_resources_server"]["resources_servers"]["genrm_compare"]
    assert "genrm_model_server" not in compare
    assert compare["nemotron"]["endpoint"] == {
        **{"base_url": None, "model": "meta-llama/Llama-3.2-1B-Instruct", "supports_principle_role": True},
        **{"base_url_variable": "NEMOTRON_JUDGE_URL", "api_key_variable": "NEMOTRON_JUDGE_TOKEN"},
    }
    theirs = config_of("rlhf", "default", "judge.server=vllm", "judge.comparison_server=nemo_gym")
    assert "genrm_model" in theirs["env"]["nemo_gym"]


def texts_and_nulls(value: Any) -> list[Any]:
    children = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return [found for child in children for found in texts_and_nulls(child)] if children else [value]


def test_a_secret_is_a_reference_that_only_gym_resolves(monkeypatch: pytest.MonkeyPatch) -> None:
    """NeMo-RL prints what it has resolved, and keeps it in every checkpoint."""
    monkeypatch.setenv("RL_REWARD_API_KEY", "sk-planted-0123456789")
    config = config_of("rlhf", "default", **{f"{JUDGE}.api_key": "RL_REWARD_API_KEY"})
    text = dump_yaml(config)
    assert "sk-planted" not in text
    nemo_rls: Any = OmegaConf.to_container(OmegaConf.load(StringIO(text)), resolve=True)
    key = nemo_rls["env"]["nemo_gym"]["genrm_model"]["responses_api_models"]["genrm_model"]["api_key"]
    assert key == "${oc.env:RL_REWARD_API_KEY}"
    gyms: Any = OmegaConf.to_container(OmegaConf.create(nemo_rls["env"]["nemo_gym"]), resolve=True)
    assert gyms["genrm_model"]["responses_api_models"]["genrm_model"]["api_key"] == "sk-planted-0123456789"


@pytest.mark.parametrize("text", ["a ${b} c", r"\${b}", r"\\${b}", "{% if x %}${{ y }}{% endif %}"])
def test_text_that_looks_like_a_reference_stays_text(text: str) -> None:
    values = values_of("rlhf", "default")
    values["policy"]["tokenizer"]["chat_template"] = text
    values["env"]["nemo_gym"]["genrm_compare_resources_server"]["resources_servers"]["genrm_compare"]["note"] = text
    written = dump_yaml(nemo_rl_config(values, folder="/f", secrets={}))
    config: Any = OmegaConf.to_container(OmegaConf.load(StringIO(written)), resolve=True)
    assert config["policy"]["tokenizer"]["chat_template"] == text
    gym: Any = OmegaConf.to_container(OmegaConf.create(config["env"]["nemo_gym"]), resolve=True)
    assert gym["genrm_compare_resources_server"]["resources_servers"]["genrm_compare"]["note"] == text


def test_several_validation_sets_of_pairs_are_named() -> None:
    word = "data.validation=[{dataset_name: PreferenceDataset, data_path: /a.jsonl}, {data_path: /b.jsonl}]"
    values = values_of("rm", "default", word)
    data = nemo_rl_config(values, folder="/f", secrets={}, pair_sets=("a", "b"))["data"]
    assert data["validation"] is None
    assert data["val_data_paths"] == {"a": "/f/data/validation-0.jsonl", "b": "/f/data/validation-1.jsonl"}
