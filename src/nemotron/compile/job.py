"""What a rule sees, and how a rule is written down.

A family of rules is a module with a :class:`Rules` collection. A rule is one small function that yields the findings of
one job; its error name, and its number in NeMo-RL's list of validity rules where it has one, stand in the decorator::

    rules = Rules("batch")

    @rules.rule("batch-not-divisible", number=22)
    def total_batch_divides(job: Job) -> Iterator[Finding]:
        if job.responses % job.config.policy.train_global_batch_size:
            yield job.error("policy.train_global_batch_size", "...", hint="...")
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import ClassVar

from nemotron.compile.machine import Machine
from nemotron.compile.survey import RowKind
from nemotron.config.layers import Resolved
from nemotron.config.schema.extras import JudgedGrpoConfig
from nemotron.config.schema.generation import GenerationConfig, VllmConfig
from nemotron.errors import ConfigError, Finding, NemotronError, Origin, Severity

Check = Callable[["Job"], Iterator[Finding]]
Engine = str
"""``embedded`` or ``nemo_rl``."""


@dataclass(frozen=True)
class Job:
    """A typed config on a chosen engine and machine."""

    config: JudgedGrpoConfig
    resolved: Resolved
    engine: Engine
    machine: Machine
    runs_dir: Path
    env: Mapping[str, str]
    """Environment variables of the command."""

    row_kind: ClassVar[RowKind] = "prompt"
    """What the training rows are."""

    @property
    def responses(self) -> int:
        """Responses per step: prompts times generations."""
        return self.config.grpo.num_prompts_per_step * self.config.grpo.num_generations_per_prompt

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

    def error(
        self,
        key: str,
        message: str,
        *,
        hint: str | None = None,
        kind: type[NemotronError] = ConfigError,
        origin: Origin | None = None,
    ) -> Finding:
        """Something that would stop the job; ``kind`` decides the exit code."""
        return self._finding("error", key, message, hint, kind, origin)

    def warning(self, key: str, message: str, *, hint: str | None = None, origin: Origin | None = None) -> Finding:
        """Something that runs but is probably not meant."""
        return self._finding("warning", key, message, hint, ConfigError, origin)

    def note(self, key: str, message: str, *, hint: str | None = None) -> Finding:
        """Something worth knowing."""
        return self._finding("note", key, message, hint, ConfigError, None)

    def _finding(
        self,
        severity: Severity,
        key: str,
        message: str,
        hint: str | None,
        kind: type[NemotronError],
        origin: Origin | None,
    ) -> Finding:
        place = origin or (self.resolved.origin(key) if key else None)
        return Finding(severity, "", message, key or None, place, hint, exit_code=kind.exit_code)


@dataclass(frozen=True)
class Rule:
    """One check with its name."""

    name: str
    number: int | None
    engines: tuple[Engine, ...]
    check: Check

    def run(self, job: Job) -> Iterator[Finding]:
        """Findings of this rule, named; none on an engine that it does not concern."""
        if job.engine in self.engines:
            for finding in self.check(job):
                yield replace(finding, name=self.name, rule=self.number)


@dataclass(frozen=True)
class Rules:
    """A family of rules."""

    family: str
    members: list[Rule] = field(default_factory=list)

    def rule(
        self, name: str, *, number: int | None = None, engines: tuple[Engine, ...] = ("embedded", "nemo_rl")
    ) -> Callable[[Check], Check]:
        """Decorator: add a check to the family."""

        def add(check: Check) -> Check:
            self.members.append(Rule(name, number, engines, check))
            return check

        return add


NEMO_RL = ("nemo_rl",)
EMBEDDED = ("embedded",)
