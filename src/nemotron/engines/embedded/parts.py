"""What every training step of the embedded engine is built from: its config, made real piece by piece."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar, Generic, TypeVar

from torch import nn

from nemotron.checkpoints import hf, owner
from nemotron.checkpoints.store import CheckpointStore
from nemotron.checkpoints.turn_end import start_of
from nemotron.config.dump import dump_yaml
from nemotron.config.schema.dtensor import LoraConfig
from nemotron.config.schema.training import TrainingConfig
from nemotron.contracts.samples import SamplingParams
from nemotron.disk.home import expanded
from nemotron.engines.base import Attempt
from nemotron.errors import ConfigError
from nemotron.rl.batch import request_seed
from nemotron.rl.chat import Chat
from nemotron.rl.lora import ADAPTER, FOLDER, Merged, Reference, add_adapters, read_adapter
from nemotron.rl.optim import Optimization, prove
from nemotron.rl.policy import Policy
from nemotron.rl.saving import Layout, Provenance, Saver, Stateful, Trained, of_own_checkpoint, weights_of
from nemotron.rl.scalar_model import ScalarModel
from nemotron.rl.stopping import Deadline

C = TypeVar("C", bound=TrainingConfig, covariant=True)


@dataclass(frozen=True)
class TrainingParts(Generic[C]):
    """The parts that do not depend on the algorithm."""

    samples: ClassVar[bool] = True
    """Whether the policy writes answers, if only to be measured."""
    attempt: Attempt
    config: C

    @cached_property
    def store(self) -> CheckpointStore:
        """The checkpoints of this run, cleaned of what a killed attempt left half-written; nobody else's from now on.

        Raises:
            OutputError: the folder is another run's, or cannot be written.
        """
        settings, run = self.config.checkpointing, self.attempt.run
        folder = Path(settings.checkpoint_dir)
        store = CheckpointStore(folder, settings.keep_top_k, settings.metric_name, settings.higher_is_better)
        owner.claim(folder, owner.Owner(run.id, str(run.path)))
        self.attempt.closing.callback(owner.release, folder)
        self.attempt.closing.callback(store.wait)
        store.recover()
        return store

    @cached_property
    def checkpoint(self) -> Path | None:
        """The checkpoint to go on from; ``None`` at the start."""
        return self.store.latest()

    @property
    def progress_on_disk(self) -> int:
        """Steps that the newest checkpoint has done."""
        return self.store.steps()[-1] if self.checkpoint else 0

    @property
    def save_period(self) -> int | None:
        """Steps between checkpoints; ``None`` writes none."""
        settings = self.config.checkpointing
        return settings.save_period if settings.enabled else None

    @cached_property
    def deadline(self) -> Deadline | None:
        """`checkpointing.checkpoint_must_save_by`, counted from the first look at it: take it when training begins."""
        return Deadline.parse(self.config.checkpointing.checkpoint_must_save_by)

    @cached_property
    def chat(self) -> Chat:
        """Tokenizer and chat template of the policy, and where its turns end."""
        settings = self.config.policy.tokenizer
        generation = self.config.policy.generation if self.samples else None
        return Chat.load(
            settings.name,
            settings.chat_template if "chat_template" in settings.model_fields_set else "default",
            settings.chat_template_kwargs,
            stop_token_ids=generation.stop_token_ids if generation else None,
            model=self._beside_start,
        )

    @cached_property
    def _beside_start(self) -> Path | None:
        """The folder with what the policy had beside its weights before training; ``None`` when that is not known."""
        policy, pretrained = self.config.policy, self.config.policy.pretrained_checkpoint
        return start_of(hf.small_files(policy.model_name), pretrained.path if pretrained else None)

    @cached_property
    def sampling(self) -> SamplingParams:
        """How responses are sampled in training. Raises ConfigError without `policy.generation`."""
        generation = self.config.policy.generation
        if generation is None:
            raise ConfigError("`policy.generation` is missing", hint="it says how responses are sampled")
        return SamplingParams(
            max_new_tokens=generation.max_new_tokens,
            stop_token_ids=self.chat.ends,
            temperature=generation.temperature,
            top_p=generation.top_p,
            top_k=generation.top_k,
        )

    def load_start(self) -> Policy:
        """The policy as it was before training. Raises ArtifactError when it cannot be loaded."""
        settings = self.config.policy
        pretrained = settings.pretrained_checkpoint
        if pretrained is not None:
            path = expanded(pretrained.path)
            policy = Policy.load_checkpoint(path, precision=precision(settings.precision))
        else:
            policy = Policy.load(settings.model_name, precision=precision(settings.precision))
        self.chat.check_rows(policy.model.get_input_embeddings().weight.shape[0], settings.model_name)
        return policy

    def load_models(self, *, reference: bool) -> tuple[Policy, Policy | None]:
        """The policy, from the newest checkpoint if there is one, and the frozen policy before training if wanted.

        With LoRA both are one model.

        Raises:
            ArtifactError: a model cannot be loaded. ConfigError: no adapter fits it.
        """
        if self.lora is not None:
            policy = add_adapters(self.load_start(), self.lora, seed=self.adapter_seed)
            if self.checkpoint is not None:
                with of_own_checkpoint(self.checkpoint):
                    read_adapter(policy, self.checkpoint / ADAPTER)
            policy.recompute = self.config.policy.activation_checkpointing
            return policy, Reference(policy) if reference else None
        start = self.load_start() if self.checkpoint is None or reference else None
        frozen = start.frozen_copy() if start is not None and reference else None
        policy = start if start is not None and self.checkpoint is None else self._load_newest()
        policy.recompute = self.config.policy.activation_checkpointing
        return policy, frozen

    @property
    def lora(self) -> LoraConfig | None:
        """The adapters that are trained in the place of all weights."""
        return self.config.policy.lora

    @property
    def adapter_seed(self) -> int:
        """What fresh adapters are drawn with."""
        return request_seed(self.config.course.seed, "lora")

    def untrained(self, policy: Policy) -> Policy:
        """The policy before training: with its adapters off, or itself as long as it has not been trained."""
        if self.lora is not None:
            return Reference(policy)
        return policy if self.checkpoint is None else self.load_start()

    def trained(
        self, model: Policy | ScalarModel, optimization: Optimization, *, layout: Layout = "megatron"
    ) -> Trained:
        """What a checkpoint stores of a model: all weights, of which adapters are a part."""
        return Trained(Merged(model) if self.lora is not None else model.model, optimization, layout)

    def _load_newest(self) -> Policy:
        if self.checkpoint is None:
            raise ConfigError("there is no checkpoint to go on from")
        with of_own_checkpoint(self.checkpoint):
            number = precision(self.config.policy.precision)
            return Policy.load_checkpoint(weights_of(self.checkpoint), precision=number)

    def prove_optimizer(self) -> None:
        """Raises ConfigError when torch refuses the optimizer or its schedule; needs no model."""
        settings = self.config.policy
        scheduler = [entry.model_dump(exclude_none=True) for entry in settings.scheduler or []] or None
        prove("policy", settings.optimizer.model_dump() if settings.optimizer else None, scheduler)

    def optimization(self, parameters: Iterable[nn.Parameter]) -> Optimization:
        """Optimizer and schedule of `policy`. Raises ConfigError when they cannot be built."""
        settings = self.config.policy
        if settings.optimizer is None:
            raise ConfigError("the embedded engine needs `policy.optimizer`", hint="for example `torch.optim.AdamW`")
        return Optimization.build(
            parameters,
            optimizer=settings.optimizer.model_dump(),
            scheduler=[entry.model_dump(exclude_none=True) for entry in settings.scheduler or []] or None,
            max_grad_norm=settings.max_grad_norm,
            offload=bool(settings.offload_optimizer_for_logprob),
        )

    @cached_property
    def provenance(self) -> Provenance:
        """What every checkpoint says about its making; waits until the inputs are hashed."""
        job = self.attempt.job
        return Provenance(
            step_id=job.step,
            config_yaml=dump_yaml(job.config),
            config_fingerprint=job.fingerprint,
            inputs=[one.model_dump(mode="json") for one in self.attempt.inputs],
        )

    def saver(
        self, trained: Mapping[str, Trained], stream: Stateful, more: Callable[[Path], None] | None = None
    ) -> Saver:
        """Writes the checkpoints of this run; arguments as in ``Saver``."""

        def before_it_appears(folder: Path) -> None:
            for name, one in trained.items():
                if isinstance(one.model, Merged):
                    one.model.write_adapter(folder / name / FOLDER)
            if more is not None:
                more(folder)
            # A run that resumes from it keeps the rows up to here and cannot make them again.
            self.attempt.run.sync_rows()

        return Saver(
            store=self.store,
            tokenizer=self.chat.tokenizer,
            trained=trained,
            stream=stream,
            provenance=lambda: self.provenance,
            save_hf=bool(self.config.checkpointing.save_consolidated),
            # Read once: the model's folder may change while the run goes on.
            side_files=hf.side_files(self._beside_start),
            more=before_it_appears,
        )


def precision(name: str) -> Any:
    """A number type by one name: NeMo-RL also writes ``bf16`` and ``fp32``."""
    return {"bf16": "bfloat16", "fp16": "float16", "fp32": "float32"}.get(name, name)
