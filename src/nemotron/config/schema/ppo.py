"""`ppo.*`, `value.*` and `value_loss_fn.*` of NeMo-RL v0.7.0, and our sections: reward model, critic, actor.

Only what one key can decide alone is checked here; rules between keys belong to the preflight.
"""

from __future__ import annotations

import hashlib
import json
from typing import Annotated, ClassVar, Literal

from pydantic import BeforeValidator, Field, FiniteFloat, SecretStr

from nemotron.config.schema.base import Strict
from nemotron.config.schema.dtensor import DTensorConfig
from nemotron.config.schema.env import EnvConfig
from nemotron.config.schema.extras import EngineChoice, EvalConfig, LimitsConfig
from nemotron.config.schema.fields import (
    Count,
    ModelName,
    Name,
    NonNegativeFloat,
    NonNegativeInt,
    Off,
    Omittable,
    PositiveFloat,
    Probability,
    Seed,
    needs_keys_when_enabled,
)
from nemotron.config.schema.grpo import LossFnConfig, RewardScalingConfig, RewardShapingConfig
from nemotron.config.schema.megatron import MegatronConfig
from nemotron.config.schema.policy import (
    DynamicBatchingConfig,
    OptimizerConfig,
    RewardModelConfig,
    SchedulerEntry,
    SequencePackingConfig,
    TokenizerConfig,
)
from nemotron.config.schema.reads import Embedded, Read
from nemotron.config.schema.training import TrainingConfig


class PpoEstimatorConfig(Strict):
    """`ppo.adv_estimator`: how rewards and values become advantages."""

    name: Literal["gae", "rloo"]
    """`gae`: generalised advantage estimation with the critic's values. `rloo` (ours): REINFORCE with a leave-one-out
    baseline, which needs no critic and at least two responses per prompt."""
    gae_lambda: Probability = 0.95
    """Decay of the temporal differences: 0 trusts the critic, 1 trusts the rewards that came."""
    gae_gamma: Probability = 1.0
    """Discount per token."""
    gae_lambda_value: Probability | None = None
    """Lambda of the returns that the critic learns (VAPO). null: `gae_lambda`."""
    gae_lambda_policy: Probability | None = None
    """Lambda of the advantages of the policy. null: `gae_lambda`."""
    length_adaptive_alpha: NonNegativeFloat = 0.0
    """VAPO: the policy's lambda of a response of l tokens is 1 - 1 / (alpha * l). 0: off."""
    normalize_advantages: bool = True
    """Whiten the advantages over the valid tokens of the batch."""


class PpoConfig(Strict):
    """`ppo`: the training loop."""

    num_prompts_per_step: Read[Count]
    """Prompts per rollout batch."""
    num_generations_per_prompt: Read[Count]
    """Responses per prompt."""
    max_num_epochs: Read[Count]
    """The loop ends after this many passes over the training data."""
    max_num_steps: Read[Count]
    """The loop ends after this many rollout batches."""
    max_rollout_turns: Count
    """Turns of a conversation with the environment per response."""
    ppo_epochs: Read[Count]
    """Passes of critic and policy over each rollout batch."""
    policy_training_start_step: Read[NonNegativeInt] = 0
    """Rollout batches on which only the critic is trained before the policy moves (critic warm-up)."""
    use_dynamic_sampling: bool
    """Train only on groups whose rewards differ; further prompts until the batch is full (DAPO)."""
    dynamic_sampling_max_gen_batches: Count = 10
    """With dynamic sampling: the run fails when filling one batch takes more than this many generation batches."""
    batch_multiplier: FiniteFloat = Field(default=1.0, ge=1)
    """With dynamic sampling: prompts generated at once, as a multiple of `num_prompts_per_step`."""
    overlong_filtering: Read[bool]
    """Leave truncated responses out of everything: advantages, critic and policy (`actor.exclude_truncated` leaves
    them to the critic)."""
    reward_scaling: Read[RewardScalingConfig]
    """Linear map of the rewards, before shaping."""
    reward_shaping: Read[RewardShapingConfig]
    """Length and truncation penalties on the rewards."""
    adv_estimator: Read[PpoEstimatorConfig]
    """How rewards and values become advantages."""
    skip_reference_policy_logprobs_calculation: Read[bool] = False
    """Do not compute reference log-probs; only with `loss_fn.reference_policy_kl_penalty: 0`."""
    calculate_advantages_on_gpu: bool = False
    """Compute advantages on the accelerator instead of the host."""
    seed: Read[Seed]
    """Seed of data order, sampling and initialisation."""
    val_period: Read[NonNegativeInt]
    """Validate every this many steps. 0: never."""
    val_at_start: Read[bool]
    """Validate before the first step."""
    val_at_end: Read[bool]
    """Validate after the last step."""
    val_batch_size: Read[Count]
    """Prompts per validation batch."""
    max_val_samples: Read[NonNegativeInt]
    """Validation prompts used."""

    @property
    def use_leave_one_out_baseline(self) -> bool:
        """Whether the spread of a group is that of the other responses, as it is for `rloo`."""
        return self.adv_estimator.name == "rloo"


class ValueLossConfig(Strict):
    """`value_loss_fn`: the critic's squared error."""

    scale: NonNegativeFloat = 1.0
    """Factor on the loss."""
    cliprange: NonNegativeFloat | None = None
    """A value counts at most this far from the one before the update. null or 0: no clip."""


def _as_list(value: object) -> object:
    return [value] if isinstance(value, dict) else value


class ValueConfig(Strict):
    """`value`: the critic and how it is trained. The embedded engine starts it from the reward model."""

    model_name: Read[ModelName]
    """Folder or Hugging Face name that the critic starts from; normally `${reward_model.model_name}`."""
    tokenizer: Annotated[TokenizerConfig, Embedded(only=("name",))]
    """Tokenizer of the critic; it must be that of the policy."""
    precision: Read[Literal["float32", "bfloat16", "float16"]]
    """Number type of the matrix products."""
    max_total_sequence_length: Count
    """Longest prompt plus response in tokens."""
    train_global_batch_size: Read[Count]
    """Responses per optimizer step of the critic."""
    train_micro_batch_size: Read[Count]
    """Responses per forward and backward pass."""
    logprob_batch_size: Read[Omittable[Count]] = None
    """Responses per forward pass that only computes values; left out means the micro-batch size."""
    make_sequence_length_divisible_by: Count
    """Padded lengths are a multiple of this."""
    max_grad_norm: Read[NonNegativeFloat | None] = None
    """Gradients are scaled down to this global norm; null does not clip."""
    optimizer: Read[OptimizerConfig | None] = None
    """Optimizer of the critic."""
    scheduler: Read[Annotated[list[SchedulerEntry] | None, BeforeValidator(_as_list)]] = None
    """Learning-rate schedulers in sequence, one step per rollout batch and PPO epoch; null keeps the rate."""
    reward_model_cfg: RewardModelConfig
    """The head: `enabled: true` with `reward_model_type: regression`."""
    dtensor_cfg: Annotated[
        DTensorConfig | Off,
        needs_keys_when_enabled(DTensorConfig),
        Embedded(only=("enabled", "activation_checkpointing")),
    ]
    """Training with DTensor."""
    megatron_cfg: Omittable[Annotated[MegatronConfig | Off, needs_keys_when_enabled(MegatronConfig)]] = None
    """Training with Megatron."""
    dynamic_batching: Annotated[DynamicBatchingConfig | Off, needs_keys_when_enabled(DynamicBatchingConfig)]
    """Micro-batches of similar length."""
    sequence_packing: Omittable[
        Annotated[SequencePackingConfig | Off, needs_keys_when_enabled(SequencePackingConfig)]
    ] = None
    """Sequences packed without padding."""
    hf_config_overrides: Omittable[dict[str, object]] = None
    """Values that replace those of the model's ``config.json``."""
    dequantize_base_checkpoint: Omittable[bool] = None
    """Dequantise a quantised checkpoint when it is loaded."""

    @property
    def logprob_rows(self) -> int:
        """Responses per forward pass that only computes values."""
        return self.logprob_batch_size or self.train_micro_batch_size

    @property
    def activation_checkpointing(self) -> bool:
        """Whether activations are computed anew in the backward pass."""
        section = self.dtensor_cfg
        return isinstance(section, DTensorConfig) and section.enabled and section.activation_checkpointing


class RewardSourceConfig(Strict):
    """`reward_model` (ours): the trained reward model that scores whole responses."""

    model_name: ModelName
    """Folder of a sequence-classification checkpoint with one label (made by `rl/nemo_rl/rm`), or a cached hub name."""
    standardize: bool
    """Score minus mean over standard deviation, both as stored with the reward model; without them it is an error."""


class ActorConfig(Strict):
    """`actor` (ours): what NeMo-Aligner's PPO actor has and NeMo-RL's has no key for."""

    absolute_kl: bool
    """KL in the reward is the absolute log-ratio, whatever `loss_fn.reference_policy_kl_type` says."""
    entropy_bonus: NonNegativeFloat
    """Weight of the policy's mean token entropy, which is subtracted from the loss. 0: off."""
    exclude_truncated: bool
    """Leave truncated responses out of the policy's loss; critic, advantages and whitening still see them."""


class CriticConfig(Strict):
    """`critic` (ours): the server that holds reward model and critic, and how the actor reaches it."""

    address: Name | None
    """`http://HOST:PORT` of the critic, for the actor that runs alone (`only: actor`)."""
    token: SecretStr | None
    """Bearer token that both sides show when they run apart. A run of both draws its own. Never written to a run
    folder."""
    host: Name
    """Address that the server listens on, for the critic that runs alone."""
    port: Annotated[int, Field(ge=0, le=65535)]
    """Port that the server listens on, for the critic that runs alone. 0: any free one."""
    request_timeout_s: PositiveFloat
    """Seconds that one request may take in all."""
    max_retries: NonNegativeInt
    """Further tries of a request after a connection failure, a timeout or a 5xx, with growing, jittered pauses."""
    ready_timeout_s: PositiveFloat
    """Seconds to wait until the server answers; it loads two models first."""
    heartbeat_s: PositiveFloat
    """Either side counts as dead when it gives no sign of life for this long; a closed connection counts at once."""
    max_request_mib: Count
    """Larger requests are refused."""
    offload: Literal["none", "reward_model", "critic", "both"]
    """Models that stay in host memory and visit the GPU only while they compute. No effect on a CPU."""
    threads: Literal["auto"] | Count
    """CPU threads of the server; `auto` shares the cores with the actor as `rl/threads.py` plans it."""


class PpoMasterConfig(TrainingConfig):
    """PPO: NeMo-RL's tree and our sections."""

    section: ClassVar[str] = "ppo"

    ppo: Read[PpoConfig]
    """The algorithm: batch, advantages, epochs, schedule of the run."""
    loss_fn: Read[LossFnConfig]
    """The policy's loss."""
    value: Read[ValueConfig]
    """The critic."""
    value_loss_fn: Read[ValueLossConfig]
    """The critic's loss."""
    env: EnvConfig
    """Where NeMo-RL's rewards come from; the embedded engine's come from `reward_model`."""
    engine: Read[EngineChoice]
    """What runs the job: the embedded engine, NeMo-RL, or (``auto``) whichever of them can run here."""
    only: Read[Literal["critic", "actor"] | None]
    """Run one side alone, for two machines; null runs both. `--only critic` on the command line is the same."""
    reward_model: Read[RewardSourceConfig]
    """Where rewards come from."""
    critic: Read[CriticConfig]
    """The server that holds reward model and critic."""
    actor: Read[ActorConfig]
    """What the policy's side does beyond NeMo-RL."""
    eval: Read[EvalConfig]
    """Measurements that are independent of the reward."""
    limits: Read[LimitsConfig]
    """Bounds whose crossing stops the run."""

    @property
    def needs_reference(self) -> bool:
        """Whether rewards, loss or limits ask for the KL to the policy before training."""
        wanted = self.loss_fn.reference_policy_kl_penalty > 0 or self.limits.max_kl is not None
        return wanted and not self.ppo.skip_reference_policy_logprobs_calculation

    @property
    def responses_per_step(self) -> int:
        """Responses that one step trains on: prompts times generations."""
        return self.ppo.num_prompts_per_step * self.ppo.num_generations_per_prompt

    @property
    def rows_per_step(self) -> int:
        """Prompts that one step takes."""
        return self.ppo.num_prompts_per_step

    @property
    def updates_per_step(self) -> int:
        """Optimizer steps of the policy on one rollout."""
        return self.ppo.ppo_epochs * max(1, self.responses_per_step // self.policy.train_global_batch_size)

    @property
    def learns_values(self) -> bool:
        """Whether there is a critic at all."""
        return self.ppo.adv_estimator.name == "gae"

    def agreement(self) -> str:
        """A hash of what both sides must agree on; paths may differ between machines."""
        value = self.value.model_dump(mode="json", exclude={"model_name", "tokenizer"})
        loss, estimator = self.value_loss_fn.model_dump(mode="json"), self.ppo.adv_estimator.name
        shared = [value, loss, estimator, self.reward_model.standardize]
        return hashlib.sha256(json.dumps(shared, sort_keys=True).encode()).hexdigest()
