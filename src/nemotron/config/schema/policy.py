"""``policy``: the model that is trained, its batches, its optimizer, and the training backend."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, model_validator

from nemotron.config.schema.base import Strict
from nemotron.config.schema.checkpointing import PretrainedCheckpointConfig
from nemotron.config.schema.dtensor import DTensorConfig, LoraConfig
from nemotron.config.schema.fields import (
    Count,
    ModelName,
    Name,
    NonNegativeFloat,
    NonNegativeInt,
    Off,
    Omittable,
    PositiveFloat,
    TemplateText,
    needs_keys_when_enabled,
)
from nemotron.config.schema.generation import GenerationConfig
from nemotron.config.schema.megatron import MegatronConfig
from nemotron.config.schema.reads import Embedded, Read


class TokenizerConfig(Strict):
    """Tokenizer and chat template."""

    name: Read[ModelName]
    """Folder or Hugging Face name."""
    chat_template: Read[TemplateText | None] = None
    """``default``, left out: the tokenizer's own; null: contents joined as they are; a ``.jinja`` path; or text."""
    chat_template_kwargs: Read[dict[str, Any] | None] = None
    """Arguments of every call of the template, e.g. ``enable_thinking``."""
    use_processor: Omittable[bool] = None
    """Load a multimodal processor instead of a tokenizer."""
    audio: Omittable[dict[str, Any]] = None
    """Audio arguments of the processor."""
    video: Omittable[dict[str, Any]] = None
    """Video arguments of the processor."""


class OptimizerConfig(Strict):
    """A torch optimizer by name."""

    name: Name
    """Dotted class name, e.g. ``torch.optim.AdamW``."""
    kwargs: dict[str, Any]
    """Its arguments: ``lr``, ``betas``, ``eps``, ``weight_decay`` ..."""


class SchedulerEntry(Strict):
    """One torch scheduler of a sequence, or, as last entry, the steps at which the sequence moves on."""

    name: Omittable[Name] = None
    """Dotted class name, e.g. ``torch.optim.lr_scheduler.LinearLR``."""
    kwargs: Omittable[dict[str, Any]] = None
    """Its arguments."""
    milestones: Omittable[list[NonNegativeInt]] = None
    """Steps at which the next scheduler takes over."""

    @model_validator(mode="after")
    def _one_kind(self) -> SchedulerEntry:
        if (self.milestones is None) != (self.name is not None and self.kwargs is not None):
            raise ValueError("a scheduler entry has either `name` and `kwargs`, or `milestones`")
        return self

    @property
    def last_step(self) -> int | None:
        """The step behind which torch raises an error, of a schedule that has one: ``OneCycleLR``."""
        if self.name is None or not self.name.endswith(".OneCycleLR"):
            return None
        kwargs = self.kwargs or {}
        total, epochs, each = (kwargs.get(name) for name in ("total_steps", "epochs", "steps_per_epoch"))
        if total is None and isinstance(epochs, int) and isinstance(each, int):
            total = epochs * each
        return total if isinstance(total, int) else None


class DynamicBatchingConfig(Strict):
    """Micro-batches of similar length, filled up to a number of tokens."""

    enabled: bool
    """Use them; excludes sequence packing."""
    train_mb_tokens: Count
    """Padded tokens of a training micro-batch."""
    logprob_mb_tokens: Omittable[Count] = None
    """Padded tokens of a log-probability micro-batch."""
    sequence_length_round: Count
    """Lengths are padded to a multiple of this."""


class SequencePackingConfig(Strict):
    """Several sequences in one row without padding between them."""

    enabled: bool
    """Pack; excludes dynamic batching."""
    algorithm: Name
    """How sequences are put into bins, e.g. ``modified_first_fit_decreasing``."""
    train_mb_tokens: Count
    """Tokens of a training bin."""
    logprob_mb_tokens: Omittable[Count] = None
    """Tokens of a log-probability bin."""
    sequence_length_round: Omittable[Count] = None
    """Lengths are padded to a multiple of this."""


class DraftConfig(Strict):
    """A small draft model trained along for speculative decoding (Megatron only)."""

    enabled: bool
    """Train a draft model."""
    model_name: str | None = None
    """Folder or Hugging Face name to start from; null starts from scratch."""
    loss_weight: Omittable[NonNegativeFloat] = None
    """Weight of its loss."""
    num_layers: Count | None = None
    """Layers of a new draft model."""
    aux_layer_indices: list[NonNegativeInt] | None = None
    """Layers of the policy whose activations it reads."""


class RewardModelConfig(Strict):
    """Turns the policy into a reward model (the ``rm`` step)."""

    enabled: bool
    """Train a reward model."""
    reward_model_type: Literal["bradley_terry", "regression"]
    """``bradley_terry`` compares two answers, ``regression`` predicts a value."""


class RouterReplayConfig(Strict):
    """Training routes every token to the experts that generation used."""

    enabled: bool
    """Replay; needs Megatron and vLLM."""


def _as_list(value: object) -> object:
    return [value] if isinstance(value, dict) else value


class PolicyConfig(Strict):
    """The policy model and how it is trained."""

    model_name: Read[ModelName]
    """Folder or Hugging Face name of the model that training starts from; also the reference of the KL term."""
    tokenizer: Read[TokenizerConfig]
    """Tokenizer and chat template."""
    precision: Read[Literal["float32", "bfloat16", "float16"]]
    """Number type of weights and activations."""
    hf_config_overrides: Omittable[dict[str, Any]] = None
    """Values that replace those of the model's ``config.json``."""
    max_total_sequence_length: Read[Count]
    """Longest prompt plus response in tokens."""
    train_global_batch_size: Read[Count]
    """Responses per optimizer step."""
    train_micro_batch_size: Read[Count]
    """Responses per forward and backward pass of one rank."""
    logprob_batch_size: Annotated[Omittable[Count], Embedded("grpo", "ppo", "dpo")] = None
    """Responses per forward pass that only computes log-probabilities; left out means the micro-batch size."""
    logprob_chunk_size: Count | None = None
    """Tokens whose logits are held at once in that pass; null holds all."""
    generation_batch_size: Omittable[Count] = None
    """Responses generated at once by engines without their own queue."""
    make_sequence_length_divisible_by: Count
    """Padded lengths are a multiple of this."""
    max_grad_norm: Read[NonNegativeFloat | None] = None
    """Gradients are scaled down to this global norm; null does not clip."""
    optimizer: Read[OptimizerConfig | None] = None
    """Optimizer of DTensor and of the embedded engine."""
    scheduler: Read[Annotated[list[SchedulerEntry] | None, BeforeValidator(_as_list)]] = None
    """Learning-rate schedulers in sequence; null keeps the learning rate."""
    dtensor_cfg: Read[Annotated[DTensorConfig | Off, needs_keys_when_enabled(DTensorConfig)]]
    """Training with DTensor; the embedded engine reads its adapters."""
    megatron_cfg: Read[Omittable[Annotated[MegatronConfig | Off, needs_keys_when_enabled(MegatronConfig)]]] = None
    """Training with Megatron."""
    dynamic_batching: Annotated[DynamicBatchingConfig | Off, needs_keys_when_enabled(DynamicBatchingConfig)]
    """Micro-batches of similar length."""
    sequence_packing: Omittable[
        Annotated[SequencePackingConfig | Off, needs_keys_when_enabled(SequencePackingConfig)]
    ] = None
    """Sequences packed without padding."""
    generation: Annotated[Omittable[GenerationConfig], Embedded("grpo", "ppo", "dpo", "sft")] = None
    """Sampling of responses; required for GRPO."""
    offload_optimizer_for_logprob: Read[Omittable[bool]] = None
    """Move optimizer state to host memory while log-probabilities are computed. The embedded engine on a GPU keeps it
    there at all times but within the optimizer's step; the result is the same to the bit."""
    refit_buffer_size_gb: Omittable[PositiveFloat] = None
    """Buffer in GiB through which new weights reach generation."""
    draft: Omittable[DraftConfig] = None
    """Draft model."""
    reward_model_cfg: Annotated[Omittable[RewardModelConfig], Embedded("rm")] = None
    """Reward model training."""
    router_replay: Omittable[RouterReplayConfig] = None
    """Replay of expert choices."""
    pretrained_checkpoint: Read[Omittable[PretrainedCheckpointConfig]] = None
    """Start from Megatron weights."""
    disable_modelopt_layer_spec: Omittable[bool] = None
    """Keep Megatron's own layers where ModelOpt would replace them."""
    quant_cfg: str | None = None
    """ModelOpt recipe for quantisation-aware training."""
    quant_calib_data: str | None = None
    """Data set that calibrates the quantisation."""
    quant_calib_size: Count | None = None
    """Rows used for calibration."""
    quant_batch_size: Count | None = None
    """Rows per calibration batch."""
    quant_sequence_length: Count | None = None
    """Tokens per calibration row."""

    @property
    def logprob_rows(self) -> int:
        """Responses per forward pass that only computes log-probabilities."""
        return self.logprob_batch_size or self.train_micro_batch_size

    @property
    def megatron(self) -> MegatronConfig | None:
        """The Megatron settings when Megatron trains, else None."""
        section = self.megatron_cfg
        return section if isinstance(section, MegatronConfig) and section.enabled else None

    @property
    def dtensor(self) -> DTensorConfig | None:
        """The DTensor settings when DTensor trains, else None."""
        section = self.dtensor_cfg
        return section if isinstance(section, DTensorConfig) and section.enabled else None

    @property
    def activation_checkpointing(self) -> bool:
        """Whether what trains, Megatron or DTensor, computes activations anew in the backward pass."""
        trained = self.megatron or self.dtensor
        return trained is not None and trained.activation_checkpointing

    @property
    def lora(self) -> LoraConfig | None:
        """The adapters that DTensor trains; None when it trains all weights."""
        found = self.dtensor.lora_cfg if self.dtensor else None
        return found if isinstance(found, LoraConfig) and found.enabled else None

    @property
    def packing(self) -> SequencePackingConfig | None:
        """The packing settings when sequences are packed, else None."""
        section = self.sequence_packing
        return section if isinstance(section, SequencePackingConfig) and section.enabled else None

    @property
    def batching(self) -> DynamicBatchingConfig | None:
        """The dynamic batching settings when it is on, else None."""
        section = self.dynamic_batching
        return section if isinstance(section, DynamicBatchingConfig) and section.enabled else None
