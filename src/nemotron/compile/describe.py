"""What runs where, and which files go in and come out: the readable part of a plan."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from nemotron.compile import data
from nemotron.compile.grpo_job import JudgedJob
from nemotron.compile.job import AnyJob
from nemotron.compile.model_files import folder_of, read_model
from nemotron.compile.output import folders


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


def policy_processes(job: AnyJob, work: str = "samples, scores and trains") -> Iterator[Process]:
    """Where the policy trains, and where it samples if that is elsewhere."""
    if job.engine == "embedded":
        device = "on the GPU" if job.place.has_cuda else "on the CPU"
        yield Process("policy", f"this process: {work} {device}")
        return
    cluster = job.config.cluster
    backend = "Megatron" if job.config.policy.megatron else "DTensor"
    yield Process(
        "policy",
        f"{job.training_gpus} of {cluster.num_nodes} x {cluster.gpus_per_node} GPUs: {backend}, "
        f"{job.data_parallel} data-parallel ranks of {job.model_parallel} GPU(s)",
    )
    if job.generation:
        colocated = job.generation.colocated is None or job.generation.colocated.enabled
        yield Process(
            "generation", f"{job.generation.backend}, " + ("on the same GPUs" if colocated else "on GPUs of its own")
        )


def judge_processes(job: JudgedJob) -> Iterator[Process]:
    """Where the judge answers."""
    model = job.config.env.judge_model
    if model is None:
        return
    if model.base_url is not None:
        yield Process("judge", f"endpoint {model.base_url}")
    elif job.engine == "embedded":
        yield Process("judge", "child process: serves the judge model on a free loopback port")
    else:
        yield Process("judge", "NeMo-Gym: starts the judge model with vLLM on further GPUs")


def inputs(job: AnyJob) -> tuple[FileRef, ...]:
    """Models and data files."""
    found = []
    for ref in job.models():
        model = read_model(ref.name, job.place)
        size = _count(model.parameters) + " parameters" if model and model.parameters else "size unknown"
        detail = size if folder_of(ref.name, job.place) else "Hugging Face hub"
        role = ref.role if ref.role.endswith("model") else f"{ref.role} model"
        found.append(FileRef(role, ref.key, ref.name, detail))
    start = job.config.policy.pretrained_checkpoint
    if start is not None:
        found.append(FileRef("policy weights", "policy.pretrained_checkpoint.path", start.path, "checkpoint_megatron"))
    for file in data.named_files(job):
        if not all(map(job.sees, file.paths)):
            found.append(FileRef(f"{file.role} data", file.key, str(file.path), f"on `{job.place.name}`"))
            continue
        survey = file.survey()
        detail = survey.problem or f"{survey.rows} rows"
        if file.rows is None:
            found.append(FileRef(f"{file.role} data", file.key, str(file.path), detail))
        else:
            shards = tuple(map(str, file.paths))
            detail = f"{detail} in {len(shards)} shard{'s' if len(shards) > 1 else ''} of the manifest"
            found.append(FileRef(f"{file.role} data", file.key, str(job.config.data.manifest_path), detail, shards))
    return tuple(found)


def outputs(job: AnyJob) -> tuple[FileRef, ...]:
    """The run folder and what lands elsewhere."""
    period = job.config.checkpointing.save_period
    found = []
    for role, (key, path) in folders(job).items():
        detail = f"every {period} steps" if key else "metrics.jsonl, samples.jsonl, report.html"
        found.append(FileRef(role, key or None, str(path), detail))
    return tuple(found)


def _count(number: int) -> str:
    for size, unit in ((1e9, "B"), (1e6, "M"), (1e3, "k")):
        if number >= size:
            return f"{number / size:.1f}{unit}"
    return str(number)
