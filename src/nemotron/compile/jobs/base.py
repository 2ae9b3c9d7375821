"""What the preflight knows of a training job."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Self, TypeVar

from nemotron.checkpoints.chat_template import DEFAULT
from nemotron.checkpoints.megatron import families
from nemotron.compile.choice import choose
from nemotron.compile.jobs.files import files
from nemotron.compile.jobs.step import ModelRef, NumberType, StepJob
from nemotron.compile.plan import FileRef, GpuMemory, Memory, Process, Work
from nemotron.compile.probes.model_files import TokenizerFacts, chat_template, read_model
from nemotron.compile.probes.survey import RowKind
from nemotron.config.layers import Resolved
from nemotron.config.schema.generation import GenerationConfig, VllmConfig
from nemotron.config.schema.grpo import LossFnConfig
from nemotron.config.schema.policy import OptimizerConfig, SchedulerEntry
from nemotron.config.schema.training import Course, TrainingConfig
from nemotron.data.inputs import HeldoutFiles
from nemotron.errors import ArtifactError
from nemotron.manifest import EngineName
from nemotron.promises import FilePromise, ModelPromise, Promise

if TYPE_CHECKING:
    from nemotron.compile.plan import Surroundings

EMBEDDED_MODULES = ("torch", "transformers", "safetensors", "numpy", "aiohttp", "tenacity", "jinja2")
"""Libraries of the embedded engine."""
SERVER_MODULES = ("aiohttp", "tenacity")
"""Libraries of the resources servers that NeMo-Gym starts for us."""
C = TypeVar("C", bound=TrainingConfig, covariant=True)


@dataclass(frozen=True, slots=True)
class Optimizer:
    """Something that is trained: where its optimizer and its schedule stand."""

    key: str
    """``policy`` or ``value``: ``.optimizer`` and ``.scheduler`` follow."""
    settings: OptimizerConfig | None
    schedulers: Sequence[SchedulerEntry]
    steps_per_step: int = 1
    """Steps of the schedule in one step of the run."""


@dataclass(frozen=True, slots=True)
class Batch:
    """Rows of one optimizer step, or of one pass of validation, and the part of them that is computed at once."""

    key: str
    size: int
    micro_key: str
    micro: int


@dataclass(frozen=True)
class Job(StepJob[C]):
    """A typed config on a chosen engine and machine.

    The families of rules that several steps share ask nothing but this class; a family of steps (GRPO, DPO ...) derives
    from it and says what is special about it.
    """

    who: ClassVar[str] = "the embedded engine"
    heldout_kind: ClassVar[RowKind] = "prompt"
    """What the rows of `eval.heldout` are."""
    scores_rows: ClassVar[bool] = False
    """Whether rewards come of programs that read the rows; their own rules look at held-out rows, too."""
    policy_does: ClassVar[str] = "samples, scores and trains"
    """The work of the policy's process, for people."""
    whole_micro_batches: ClassVar[bool] = False
    """Whether a batch has to be a whole number of micro-batches; elsewhere the last one may be smaller."""
    packs_rows: ClassVar[bool] = True
    """Whether NeMo-RL packs the rows of this algorithm, or batches them by length."""
    steps_may_be_endless: ClassVar[bool] = False
    """Whether `max_num_steps: -1` leaves the end to the epochs."""
    trains_reward_model: ClassVar[bool] = False

    @classmethod
    def of(cls, config: Any, resolved: Resolved, where: Surroundings, engines: Collection[EngineName]) -> Self:
        """The job of a config on the engine that it chooses (its key `engine`) among those of the step."""
        choice = choose(config.engine, where.place, engines)
        chosen = (choice.engine, choice.reason)
        return cls(config, resolved, *chosen, where.place, engines, where.runs_dir, where.env, where.resume)

    @property
    def section(self) -> str:
        """The key of the algorithm's section."""
        return self.config.section

    @property
    def course(self) -> Course:
        """The algorithm's section."""
        return self.config.course

    @property
    def batch_key(self) -> str:
        """The key that says how many rows a step takes."""
        return "policy.train_global_batch_size"

    @property
    def validation_metrics(self) -> tuple[str, ...]:
        """Names that `checkpointing.metric_name` may have after ``val:``."""
        return ()

    @property
    def noun(self) -> str:
        """What batch sizes count."""
        return {"prompt": "responses", "preference": "pairs", "conversation": "conversations"}[self.row_kind]

    @property
    def row_noun(self) -> str:
        """What the rows of training and validation are called."""
        return {"prompt": "prompts", "preference": "pairs", "conversation": "conversations"}[self.row_kind]

    @property
    def train_metrics(self) -> tuple[str, ...]:
        """Names that `checkpointing.metric_name` may have after ``train:`` on the embedded engine."""
        return ()

    @property
    def policy_loss(self) -> LossFnConfig | None:
        """``loss_fn`` of algorithms with a policy gradient."""
        return None

    @property
    def heldout(self) -> HeldoutFiles | None:
        """`eval.heldout`: its file, or the split of `data.manifest_path` that it takes instead."""
        section = getattr(self.config, "eval", None)
        found: HeldoutFiles | None = section.heldout if section is not None else None
        return found

    @property
    def has_reference(self) -> bool:
        """Whether a frozen copy of the policy is kept."""
        return False

    @property
    def rows_at_once(self) -> int:
        """Sequences that are sampled at once; 0 where the policy does not sample."""
        return 0

    @property
    def samples_asynchronously(self) -> bool:
        """Whether rollouts run beside training."""
        return False

    @property
    def modules(self) -> tuple[str, ...]:
        """Those of the embedded engine, and of our servers beside NeMo-RL."""
        if self.engine == "embedded":
            return EMBEDDED_MODULES
        return SERVER_MODULES if self.our_servers_reward else ()

    def models(self) -> Iterator[ModelRef]:
        """The policy; a family of steps adds its own."""
        policy = self.config.policy
        own = policy.tokenizer.name == policy.model_name
        yield ModelRef("policy", "policy.model_name", policy.model_name, own)

    def number_types(self) -> Iterator[NumberType]:
        """The policy's."""
        yield NumberType("policy.precision", self.config.policy.precision)

    def optimizers(self) -> Iterator[Optimizer]:
        """Every optimizer of the run."""
        policy = self.config.policy
        yield Optimizer("policy", policy.optimizer, policy.scheduler or ())

    def batches(self) -> Iterator[Batch]:
        """Every batch with its micro-batch."""
        policy = self.config.policy
        sizes = policy.train_global_batch_size, policy.train_micro_batch_size
        yield Batch("policy.train_global_batch_size", sizes[0], "policy.train_micro_batch_size", sizes[1])

    def missing_features(self) -> Iterator[tuple[str, str, object]]:
        """(key, feature, whether it is on) of what the embedded engine lacks in the algorithm's own sections."""
        return iter(())

    def processes(self) -> Iterator[Process]:
        """What runs where: the policy, and where it samples if that is elsewhere."""
        if self.engine == "embedded":
            device = "on the GPU" if self.place.has_cuda else "on the CPU"
            yield Process("policy", f"this process: {self.policy_does} {device}")
            return
        cluster = self.config.cluster
        backend = "Megatron" if self.config.policy.megatron else "DTensor"
        yield Process(
            "policy",
            f"{self.training_gpus} of {cluster.num_nodes} x {cluster.gpus_per_node} GPUs: {backend}, "
            f"{self.data_parallel} data-parallel ranks of {self.model_parallel} GPU(s)",
        )
        if self.generation:
            colocated = self.generation.colocated is None or self.generation.colocated.enabled
            yield Process(
                "generation",
                f"{self.generation.backend}, " + ("on the same GPUs" if colocated else "on GPUs of its own"),
            )

    def work(self) -> Work:
        """Sizes of the run; every algorithm says its own."""
        raise NotImplementedError

    def folders(self) -> dict[str, tuple[str, Path]]:
        """Run folder, checkpoints, and the logs that lie elsewhere."""
        found = super().folders()
        if self.config.checkpointing.enabled:
            found["checkpoints"] = ("checkpointing.checkpoint_dir", Path(self.config.checkpointing.checkpoint_dir))
        for role, key, folder in self._log_folders():
            if not folder.absolute().is_relative_to(self.runs_dir.absolute()):
                found[role] = (key, folder)
        return found

    def _log_folders(self) -> Iterator[tuple[str, str, Path]]:
        """Where loggers write: (purpose, config key, folder)."""
        logger = self.config.logger
        own = logger.tensorboard.log_dir if logger.tensorboard else None
        if logger.tensorboard_enabled and own and self.engine == "embedded":
            yield "event files", "logger.tensorboard.log_dir", Path(own)
        # NeMo-RL makes the folder in any case.
        if logger.wandb_enabled or (logger.tensorboard_enabled and not own) or self.engine == "nemo_rl":
            yield "logs", "logger.log_dir", Path(logger.log_dir)

    def inputs(self) -> Iterator[FileRef]:
        """Models and data files."""
        from nemotron.compile.describe import inputs

        return inputs(self)

    def promises(self) -> Iterator[Promise]:
        """Checkpoints of the policy, where any are written, and the files of every training run."""
        yield from map(FilePromise, ("metrics_jsonl", "samples_jsonl", "report_html"))
        settings = self.config.checkpointing
        if not settings.enabled:
            return
        policy = self.config.policy
        like, tokenizer, changes = policy.model_name, policy.tokenizer.name, self.changes()
        template = None
        if "chat_template" in policy.tokenizer.model_fields_set and policy.tokenizer.chat_template != DEFAULT:
            template = chat_template(policy.tokenizer.chat_template, TokenizerFacts(None, None))
        yield ModelPromise("checkpoint_run", like, tokenizer, template=template)
        if self.saves_megatron:
            yield ModelPromise("checkpoint_megatron", like, tokenizer, template=template)
        if settings.save_consolidated or not self.saves_megatron:
            yield ModelPromise("checkpoint_hf", like, tokenizer, changes, template)

    @property
    def saves_megatron(self) -> bool:
        """Whether the weights of a checkpoint are in Megatron-Core's format, as far as the model is known."""
        if self.engine == "nemo_rl":
            return bool(self.config.policy.megatron)
        model = read_model(self.config.policy.model_name, self.place)
        try:
            return model is None or bool(families.from_hf(model.config, "the model"))
        except ArtifactError:
            return False

    def changes(self) -> dict[str, Any]:
        """What the trained model's `config.json` says otherwise than that of the policy."""
        return {}

    def outputs(self) -> Iterator[FileRef]:
        """The run folder and what lands elsewhere."""
        from nemotron.compile.describe import outputs

        return outputs(self)

    def memory(self) -> Memory | GpuMemory | None:
        """Of the embedded engine, or of each GPU under NeMo-RL; None when the policy is not on this machine."""
        from nemotron.compile.estimate import memory
        from nemotron.compile.gpus import gpu_memory

        return memory(self) if self.engine == "embedded" else gpu_memory(self)

    @cached_property
    def training_rows(self) -> int | None:
        """Rows to train on; None when they could not be counted."""
        surveys = [file.survey() for file in files(self) if file.role == "train"]
        if not surveys or any(found.problem for found in surveys):
            return None
        return sum(found.rows for found in surveys)

    @property
    def data_steps(self) -> int | None:
        """Steps after which the epochs end; None when the data could not be counted."""
        return None if self.training_rows is None else self.config.steps_of_data(self.training_rows)

    @property
    def steps(self) -> int | None:
        """Steps until the data or `max_num_steps` end; None when the data could not be counted."""
        return None if self.training_rows is None else self.config.steps(self.training_rows)

    @property
    def our_servers_reward(self) -> bool:
        """Whether the rewards come from resources servers of ours where NeMo-RL trains."""
        return False

    def missing_in_nemo_rl(self) -> Iterator[tuple[str, str, str]]:
        """(key, message, hint) of what is switched on, ours, and unknown to NeMo-RL."""
        if self.heldout is not None:
            message = "NeMo-RL measures nothing that is held out from reward and loss"
            yield "eval.heldout", message, "set `eval.heldout=null`, or `engine=embedded`"
        if self.config.data.use_tokens:
            yield "data.use_tokens", "NeMo-RL tokenizes the rows itself", "set `data.use_tokens=false`"

    @property
    def generation(self) -> GenerationConfig | None:
        """``policy.generation``, which its own rule demands."""
        return self.config.policy.generation

    @property
    def vllm(self) -> VllmConfig | None:
        """vLLM's settings when vLLM generates."""
        generation = self.generation
        return generation.vllm_cfg if generation is not None and generation.backend == "vllm" else None

    @cached_property
    def training_gpus(self) -> int:
        """GPUs that train: all of the cluster but those set aside for generation."""
        cluster = self.config.cluster
        total = cluster.num_nodes * cluster.gpus_per_node
        colocated = self.generation.colocated if self.generation else None
        if colocated is None or colocated.enabled:
            return total
        aside = colocated.resources
        return total - (aside.num_nodes or 1) * (aside.gpus_per_node or 0)

    @cached_property
    def model_parallel(self) -> int:
        """GPUs that hold one copy of the policy: TP x PP x CP."""
        policy = self.config.policy
        if policy.megatron:
            m = policy.megatron
            return m.tensor_model_parallel_size * m.pipeline_model_parallel_size * m.context_parallel_size
        if policy.dtensor:
            return policy.dtensor.tensor_parallel_size * policy.dtensor.context_parallel_size
        return 1

    @property
    def data_parallel(self) -> int:
        """Copies of the policy; 1 where the GPUs do not divide (another rule reports that)."""
        return max(1, self.training_gpus // self.model_parallel)

    @property
    def tensor_parallel(self) -> int:
        """GPUs that share a layer of the policy."""
        policy = self.config.policy
        if policy.megatron:
            return policy.megatron.tensor_model_parallel_size
        return policy.dtensor.tensor_parallel_size if policy.dtensor else 1


AnyJob = Job[TrainingConfig]
