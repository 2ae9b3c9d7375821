"""The whole config tree of NeMo-RL v0.7.0's GRPO, under its own names."""

from __future__ import annotations

from typing import Any, ClassVar, Literal

from pydantic import Field

from nemotron.config.schema.base import Strict
from nemotron.config.schema.env import EnvConfig
from nemotron.config.schema.fields import Count, Name, Omittable, PositiveFloat
from nemotron.config.schema.grpo import GrpoConfig, LossFnConfig
from nemotron.config.schema.reads import Read
from nemotron.config.schema.training import TrainingConfig


class ObservabilityConfig(Strict):
    """Trace of the data plane."""

    enabled: bool
    """Collect a trace."""
    callback: Any = None
    """Function that receives every event; can be set from Python only."""


class DataPlaneConfig(Strict):
    """TransferQueue: rollouts travel through storage units instead of through the driver."""

    enabled: bool
    """Use it."""
    impl: Literal["transfer_queue"]
    """Implementation."""
    backend: Literal["simple", "mooncake_cpu"]
    """Storage of the queue."""
    storage_capacity: Count
    """Rows that fit into the queue."""
    num_storage_units: Count
    """Processes that hold rows."""
    claim_meta_poll_interval_s: PositiveFloat
    """Seconds between looks for new rows."""
    global_segment_size: Count
    """Mooncake: bytes of shared memory over all units."""
    local_buffer_size: Count
    """Mooncake: bytes of the local buffer."""
    ack_timeout_ms: Omittable[Count] = None
    """Milliseconds until an unanswered request counts as failed."""
    controller_address: Omittable[Name] = None
    """Address of a controller that already runs."""
    observability: Omittable[ObservabilityConfig] = None
    """Trace."""


class TeacherResourceConfig(Strict):
    """GPUs and parallelism of one teacher."""

    tensor_model_parallel_size: Count = 1
    """GPUs that share every layer."""
    pipeline_model_parallel_size: Count = 1
    """Groups of layers on different GPUs."""
    context_parallel_size: Count = 1
    """GPUs that share every sequence."""
    expert_model_parallel_size: Count = 1
    """GPUs that share the experts."""
    gpus_per_node: Count = 8
    """GPUs of every node."""
    num_nodes: Count = 1
    """Nodes."""
    micro_batch_size: Count = 4
    """Responses per forward pass."""
    precision: str = "bf16"
    """Number type of the weights."""
    megatron_cfg_overrides: dict[str, Any] = Field(default_factory=dict)
    """Values that replace those of ``policy.megatron_cfg``."""


class NonColocatedTeachersConfig(Strict):
    """Teachers on GPUs of their own."""

    enabled: bool = False
    """Give them their own GPUs."""
    default_teacher_cfg: TeacherResourceConfig = TeacherResourceConfig()
    """Resources of a teacher."""
    teacher_overrides: dict[str, TeacherResourceConfig] = Field(default_factory=dict)
    """Resources of single teachers by alias."""


class OnPolicyDistillationConfig(Strict):
    """Multi-teacher distillation: the ``opd`` advantage estimator."""

    enabled: bool = False
    """Score responses by teachers."""
    teacher_model_by_agent_name: dict[str, str] = Field(default_factory=dict)
    """Teacher model of every agent."""
    default_teacher_alias: str | None = None
    """Teacher of agents that are not listed."""
    strict_agent_name_match: bool = False
    """An agent without teacher is an error."""
    deduplicate_shared_teacher_checkpoints: bool = True
    """Load a checkpoint once that several agents share."""
    non_colocated_teachers: NonColocatedTeachersConfig | None = None
    """Teachers on their own GPUs."""


class GrpoMasterConfig(TrainingConfig):
    """Every section that NeMo-RL's ``run_grpo.py`` reads."""

    section: ClassVar[str] = "grpo"

    loss_fn: Read[LossFnConfig]
    """The policy-gradient loss."""
    env: EnvConfig
    """Where rewards come from."""
    grpo: Read[GrpoConfig]
    """The algorithm: batch, groups, advantages, schedule of the run."""
    data_plane: DataPlaneConfig | None = None
    """TransferQueue; null sends rollouts through the driver."""
    on_policy_distillation: OnPolicyDistillationConfig | None = None
    """Multi-teacher distillation; null does none."""

    @property
    def responses_per_step(self) -> int:
        """Responses that one step trains on: prompts times generations."""
        return self.grpo.num_prompts_per_step * self.grpo.num_generations_per_prompt

    @property
    def rows_per_step(self) -> int:
        """Prompts that one step takes."""
        return int(self.grpo.num_prompts_per_step * self.grpo.batch_multiplier)

    @property
    def updates_per_step(self) -> int:
        """Optimizer steps on one rollout; all but the first are off-policy."""
        return max(1, self.responses_per_step // self.policy.train_global_batch_size)
