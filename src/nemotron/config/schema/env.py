"""``env``: where rewards come from. Server blocks of NeMo-Gym are passed through, the judge's are typed."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import SecretStr

from nemotron.config.schema.base import Open
from nemotron.config.schema.fields import Count, Name, Omittable, Port
from nemotron.config.schema.judge import GenrmCompareConfig, GenrmCompareServer, GenrmModelConfig, GenrmModelServer
from nemotron.config.schema.reads import Read
from nemotron.errors import ConfigError

ServerBlock = dict[str, Any]


class NemoGymConfig(Open):
    """NeMo-Gym: which servers run and how they are set. Any further key must be a server block."""

    __pydantic_extra__: dict[str, ServerBlock]

    config_paths: Omittable[list[Name]] = None
    """Config files of NeMo-Gym servers, relative to its repository."""
    genrm_model: Read[Omittable[GenrmModelServer]] = None
    """The judge model."""
    genrm_compare_resources_server: Read[Omittable[GenrmCompareServer]] = None
    """The comparison that turns the judge's verdicts into rewards."""
    policy_model: Omittable[ServerBlock] = None
    """The policy's own endpoint as NeMo-Gym sees it."""
    rollout_max_attempts_to_avoid_lp_nan: Omittable[Count] = None
    """Times a rollout with NaN log-probabilities is generated again."""
    is_trajectory_collection: Omittable[bool] = None
    """Only collect rollouts, then exit without training."""
    port_range_low: Omittable[Port] = None
    """First port for NeMo-Gym servers."""
    port_range_high: Omittable[Port] = None
    """Last port for them."""
    skip_venv_if_present: Omittable[bool] = None
    """Do not rebuild server environments that exist."""
    use_absolute_ip: Omittable[bool] = None
    """Give servers the node's IP address instead of its host name."""
    uv_venv_dir: Omittable[Name] = None
    """Folder that receives the server environments."""
    default_host: Omittable[Name] = None
    """Address that servers bind to."""


class MathEnvConfig(Open):
    """Rule-checked mathematics (the ``rlvr`` step)."""

    num_workers: Omittable[Count] = None
    """Processes that check answers."""
    math_verify_impl: Omittable[Literal["hf_math_verify", "dapo_math_verify"]] = None
    """Which checker compares answers."""


class RewardModelResources(Open):
    """``env.reward_model.resources``."""

    num_nodes: Omittable[Count] = None
    """Nodes that the reward model takes."""
    gpus_per_node: Omittable[Count] = None
    """GPUs of each."""


class RewardModelEnvConfig(Open):
    """``env.reward_model``: how NeMo-RL serves the reward model of PPO."""

    model_name: Omittable[Name] = None
    """Which model it is."""
    resources: Omittable[RewardModelResources] = None
    """Where it runs; one GPU unless it says more."""


class EnvConfig(Open):
    """Environments by name. NeMo-RL takes any mapping; the RLHF step uses NeMo-Gym with a generative judge."""

    __pydantic_extra__: dict[str, ServerBlock]

    should_use_nemo_gym: Read[Omittable[bool]] = None
    """Roll out and score through NeMo-Gym."""
    should_log_nemo_gym_responses: Omittable[bool] = None
    """Log full responses as tables."""
    nemo_gym: Read[Omittable[NemoGymConfig]] = None
    """NeMo-Gym settings."""
    math: Omittable[MathEnvConfig] = None
    """Rule-checked mathematics."""
    reward_model: Omittable[RewardModelEnvConfig] = None
    """NeMo-RL's reward model of PPO."""

    @property
    def judge_model(self) -> GenrmModelConfig | None:
        """Which model judges and where it answers, when there is such a block."""
        gym = self.nemo_gym
        return gym.genrm_model.responses_api_models.vllm_model if gym and gym.genrm_model else None

    @property
    def comparison(self) -> GenrmCompareConfig | None:
        """How answers are compared, when there is such a block."""
        server = self.nemo_gym.genrm_compare_resources_server if self.nemo_gym else None
        return server.resources_servers.genrm_compare if server else None

    def required_judge(self, api_key: str | None = None) -> GenrmModelConfig:
        """The judge of a config that must name one, with the key that its endpoint wants.

        Raises:
            ConfigError: there is no such block.
        """
        model = self.judge_model
        if model is None:
            raise ConfigError("the config names no judge", hint="set `env.nemo_gym.genrm_model`")
        return model if api_key is None else model.model_copy(update={"api_key": SecretStr(api_key)})
