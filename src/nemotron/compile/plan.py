"""A compiled job: what will run, what was found, and the config that every process starts from."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal, Protocol, cast

from pydantic import BaseModel

from nemotron.compile.paths import with_absolute_paths
from nemotron.compile.render import render_plan as render_plan
from nemotron.compile.secrets import likely_secrets, redact, secret_variables, without_passwords
from nemotron.config.known import Standing, keys, look_up, nearest
from nemotron.config.layers import Resolved
from nemotron.config.origins import shown
from nemotron.config.validate import validate
from nemotron.errors import Finding, NotAvailableError, Origin
from nemotron.job import Asked, CompiledJob
from nemotron.manifest import Declaration, EngineName, Step, ViewName, find_step
from nemotron.place import Place
from nemotron.promises import Promise
from nemotron.runs.folder import new_run_id


@dataclass(frozen=True, slots=True)
class Process:
    """A process of the run."""

    role: str
    """``policy``, ``judge`` or ``generation``."""
    where: str
    """What runs it, in a few words."""


@dataclass(frozen=True, slots=True)
class FileRef:
    """A file or folder that the run reads or writes."""

    role: str
    key: str | None
    """The config key that names it."""
    path: str
    detail: str
    """Size or kind, for people."""
    files: tuple[str, ...] = ()
    """The files that are read, where ``path`` only names them."""
    loose: bool = False
    """``files`` are no data: code, tokenizers, templates."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Work:
    """What one run does."""

    batch: str
    """What a step takes, for people: ``8 prompts x 8 generations``."""
    updates: int
    """Optimizer steps per step of the run."""
    steps: int | None
    """Steps of the whole run; None when the data could not be counted."""
    tokens_per_step: int
    """Upper bound: every response and every prompt is as long as the limits allow."""
    data_steps: int | None = None
    """Steps after which the epochs end, whatever `max_num_steps` says; None when the data could not be counted."""
    prompts: int | None = None
    """Prompts per step, where the policy samples."""
    generations: int | None = None
    """Responses per prompt, where the policy samples."""
    pairs: int | None = None
    """Pairs per step, where it trains on pairs."""
    judge_calls: int | None = None
    """Judge requests per step, without retries; None without a judge."""
    judge_reads: int | None = None
    """Tokens that a judge reads in a step at most; what it writes is ``judge_writes``."""
    judge_writes: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Memory:
    """Estimated peak main memory (or GPU memory) of the embedded engine in bytes."""

    policy: int
    """Weights, their rearranged copies, gradients and two optimizer moments, unless these are in ``host``."""
    reference: int
    judge: int
    critic: int = 0
    """Critic with its optimizer, and reward model."""
    activations: int
    """KV cache of a rollout, or activations, logits and accumulated gradients of a micro-batch, or the moments that
    come from ``host`` for a step, whichever is larger."""
    host: int = 0
    """Beside a GPU, in the host's memory and no part of the total: moments that are on the GPU within a step alone."""
    libraries: int = 0
    """What the processes hold before they read a model."""
    parameters: int
    """Parameters of the policy."""

    @property
    def total(self) -> int:
        """Sum of the parts."""
        return self.policy + self.reference + self.judge + self.critic + self.activations + self.libraries


@dataclass(frozen=True, slots=True, kw_only=True)
class ServedMemory:
    """What vLLM needs at least on each of its GPUs to start, in bytes (:mod:`nemotron.compile.gpus`)."""

    role: Literal["generation", "judge"]
    weights: int
    cache: int
    """Keys and values of one sequence of ``tokens``."""
    tokens: int
    """The longest sequence that it has to take."""
    share: float
    """Of the GPU, that vLLM may take."""

    @property
    def total(self) -> int:
        """Sum of the parts."""
        return self.weights + self.cache


@dataclass(frozen=True, slots=True, kw_only=True)
class GpuMemory:
    """Estimated memory of the policy on each GPU that trains under NeMo-RL, in bytes (:mod:`nemotron.compile.gpus`)."""

    weights: int
    gradients: int
    optimizer: int
    activations: int
    generation_share: float | None
    """The share of a GPU that vLLM takes while it generates; what trains is moved away meanwhile."""
    served: tuple[ServedMemory, ...] = ()
    """Of the models that vLLM serves and that are on this machine."""

    @property
    def total(self) -> int:
        """Sum of the parts that train."""
        return self.weights + self.gradients + self.optimizer + self.activations


@dataclass(frozen=True, kw_only=True)
class Preflight:
    """What a step says about one typed config: what is wrong with it, and what would run."""

    engine: EngineName | None
    """None when the config has errors that hide it."""
    engine_reason: str
    findings: tuple[Finding, ...] = ()
    processes: tuple[Process, ...] = ()
    inputs: tuple[FileRef, ...] = ()
    outputs: tuple[FileRef, ...] = ()
    work: Work | None = None
    memory: Memory | GpuMemory | None = None
    promises: tuple[Promise, ...] = ()
    """What the run will make."""
    secrets: Mapping[str, str] = field(default_factory=dict, repr=False)
    """Values that must never be written, by name."""


@dataclass(frozen=True, slots=True)
class Surroundings:
    """Where a job would run."""

    place: Place
    env: Mapping[str, str]
    """Environment variables of the command."""
    runs_dir: Path
    resume: bool = False
    """Whether a run that exists would go on."""


class StepLike(Protocol):
    """The part of a manifest that a plan needs."""

    @property
    def id(self) -> str:
        """Folder path of the step, e.g. ``rl/nemo_rl/rlhf``."""

    @property
    def view(self) -> ViewName | None:
        """What its runs show."""


@dataclass(frozen=True, kw_only=True)
class Plan:
    """The result of the preflight. ``ok`` says whether the job would start."""

    step: str
    config_name: str
    engine: EngineName | None
    """None when the config has errors that hide it."""
    engine_reason: str
    has_entry: bool
    """Whether the step can run on that engine in this version."""
    place: Place
    view: ViewName | None
    findings: tuple[Finding, ...]
    """Errors, warnings and notes, in the order of the checks and there by origin."""
    fingerprint: str
    """SHA-256 of the config: two jobs with the same one are the same job, in whichever run folder."""
    run_id: str
    """Name of the run folder if the job starts now."""
    runs_dir: Path
    resolved: Resolved = field(repr=False)
    config: BaseModel | None = field(default=None, repr=False)
    """The typed config; None when it has errors."""
    processes: tuple[Process, ...] = ()
    work: Work | None = None
    memory: Memory | GpuMemory | None = None
    """Embedded engine, and only when the policy's files are on this machine."""
    inputs: tuple[FileRef, ...] = ()
    outputs: tuple[FileRef, ...] = ()
    promises: tuple[Promise, ...] = ()
    """What the run will make: what steps after it in a pipeline are compiled against."""
    _secrets: Mapping[str, str] = field(default_factory=dict, repr=False)

    def require_entry(self) -> None:
        """Raises NotAvailableError: the step cannot run on the engine of the plan in this version."""
        if not self.has_entry:
            raise NotAvailableError(
                f"the engine `{self.engine}` is not available yet",
                hint="set `engine=embedded`, or wait for a later version",
            )

    @property
    def errors(self) -> tuple[Finding, ...]:
        """The findings that stop the job."""
        return tuple(f for f in self.findings if f.severity == "error")

    @property
    def ok(self) -> bool:
        """Whether the job would start."""
        return not self.errors

    @property
    def exit_code(self) -> int:
        """0, or the exit code of the first error."""
        return self.errors[0].exit_code if self.errors else 0

    @property
    def values(self) -> dict[str, Any]:
        """The resolved config without secrets, paths of the run folder written as ``RUN_ID``."""
        return cast("dict[str, Any]", without_passwords(redact(self.resolved.values, self._secrets)))

    def job(self, asked: Asked = Asked(), *, run_dir: str | None = None) -> CompiledJob:  # noqa: B008  frozen
        """The compiled job of a plan that is ``ok``, with this run's own paths and without secrets.

        Args:
            run_dir: the run folder by the name that the job will know; the usual one unless given.

        Raises:
            ArtifactError: an input is no artifact.
        """
        # A dry run never comes here, and these read checkpoints and ask git.
        from nemotron.artifacts.inputs import named_inputs
        from nemotron.runs.provenance import provenance

        if self.engine is None:
            raise RuntimeError("a plan with errors makes no job")
        step = find_step(self.step)
        folder = run_dir or str(self.runs_dir.resolve() / self.run_id)
        here = self.resolved.in_run_dir(folder)
        values = with_absolute_paths(here.values, self.config) if self.place.is_here else here.values
        return CompiledJob(
            id=self.run_id,
            folder=folder,
            step=self.step,
            config_name=self.config_name,
            created_at=datetime.now(UTC).isoformat(timespec="milliseconds"),
            engine=self.engine,
            engine_reason=self.engine_reason,
            place=self.place,
            view=self.view,
            fingerprint=self.fingerprint,
            config_files=tuple(str(path.absolute()) for path in self.resolved.files),
            secret_variables=secret_variables(self.config, self.resolved.raw),
            inputs=named_inputs(self.inputs),
            asked=asked,
            provenance=provenance(own_code=None if step.is_shipped else step.folder),
            config=redact(values, self._secrets),
        )

    def secrets(self) -> dict[str, str]:
        """Secret values that the run needs and that are never written, by config key."""
        return dict(self._secrets)

    def to_json(self) -> dict[str, Any]:
        """The plan for machines. Whatever part a secret came into, it is in none of them."""
        told = {
            "step": self.step,
            "config_name": self.config_name,
            "ok": self.ok,
            "exit_code": self.exit_code,
            "engine": {"name": self.engine or "", "reason": self.engine_reason},
            "processes": [asdict(process) for process in self.processes],
            "work": _given(asdict(self.work)) if self.work else None,
            "memory_bytes": {**asdict(self.memory), "total": self.memory.total} if self.memory else None,
            "inputs": [asdict(file) for file in self.inputs],
            "outputs": [asdict(file) for file in self.outputs],
            "findings": [finding_json(finding) for finding in self.findings],
            "fingerprint": self.fingerprint,
            "config_files": [str(path) for path in self.resolved.files],
            "config": self.values,
        }
        return cast("dict[str, Any]", without_passwords(redact(told, self._secrets)))


def _unbound(step: StepLike, code: Declaration) -> Iterator[Finding]:
    """Keys that the manifest of a step of one's own binds artifacts to, and its config does not have."""
    if not isinstance(step, Step) or step.is_shipped:
        return
    for artifact in (*step.consumes, *step.produces):
        for key in artifact.bind:
            if look_up(code.config, key.split(".")) is Standing.UNKNOWN:
                guess = nearest(key, keys(code.config))
                message = f"`bind` of `{artifact.type}` names `{key}`, which is no key of the step's config"
                origin = Origin(shown(step.folder / "step.toml"))
                yield Finding(
                    "error", "unknown-key", message, None, origin, f"did you mean `{guess}`?" if guess else None
                )


def compile_job(
    step: StepLike,
    resolved: Resolved,
    code: Declaration,
    *,
    runs_dir: Path,
    place: Place | None = None,
    env: Mapping[str, str] | None = None,
    resume: bool = False,
) -> Plan:
    """Decide everything about a job that can be decided before it starts. Writes nothing, opens no connection.

    Args:
        code: what the step's ``step.py`` declares.
        place, env: this machine and the environment of the command unless given.
        resume: the newest run of this config would go on, in the folders that it has.
    """
    config, found = validate(resolved, code.config)
    found = [*_unbound(step, code), *found]
    where = Surroundings(place or Place.this_machine(), os.environ if env is None else env, runs_dir, resume)
    result = Preflight(engine=None, engine_reason="") if config is None else code.preflight(config, resolved, where)
    secrets = likely_secrets(resolved.values, code.config) if config is None else result.secrets
    name = resolved.files[-1].stem if resolved.files else "config"
    return Plan(
        step=step.id,
        config_name=name,
        engine=result.engine,
        engine_reason=result.engine_reason,
        has_entry=result.engine in code.engines,
        place=where.place,
        view=step.view,
        findings=tuple(_clean(finding, secrets) for finding in (*found, *result.findings)),
        fingerprint=_fingerprint(resolved, secrets, config if where.place.is_here else None),
        run_id=new_run_id(step.id, name),
        runs_dir=runs_dir,
        resolved=resolved,
        config=config,
        processes=tuple(replace(p, where=redact(p.where, secrets)) for p in result.processes),
        work=result.work,
        memory=result.memory,
        inputs=tuple(_shown(ref, secrets) for ref in result.inputs),
        outputs=tuple(_shown(ref, secrets) for ref in result.outputs),
        promises=result.promises,
        _secrets=secrets,
    )


def _shown(ref: FileRef, secrets: Mapping[str, str]) -> FileRef:
    """A plan that is refused for a secret in the name of a file does not show it."""
    path, detail, files = redact([ref.path, ref.detail, list(ref.files)], secrets)
    return replace(ref, path=path, detail=detail, files=tuple(files))


def _clean(finding: Finding, secrets: Mapping[str, str]) -> Finding:
    message, hint = redact([finding.message, finding.hint], secrets)
    return replace(finding, message=message, hint=hint)


def _fingerprint(resolved: Resolved, secrets: Mapping[str, str], config: BaseModel | None) -> str:
    """Hash of the config with the run folder and secrets left out, and paths made absolute.

    The same words in another folder name other files: that is another job.
    """
    values = redact(with_absolute_paths(resolved.in_run_dir("/RUN_DIR").values, config), secrets)
    text = json.dumps(values, sort_keys=True, ensure_ascii=False, separators=(",", ":"), default=str)
    return hashlib.sha256(text.encode()).hexdigest()


def _given(values: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in values.items() if value is not None}


def finding_json(finding: Finding) -> dict[str, Any]:
    row = _given(asdict(finding))
    if finding.origin:
        row["origin"] = str(finding.origin)
    return row
