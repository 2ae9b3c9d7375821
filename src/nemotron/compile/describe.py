"""Which files go in and come out of a run."""

from __future__ import annotations

from collections.abc import Iterator

from nemotron.compile.jobs.base import AnyJob
from nemotron.compile.jobs.files import named_files
from nemotron.compile.plan import FileRef
from nemotron.compile.probes.model_files import folder_of, read_model


def inputs(job: AnyJob) -> Iterator[FileRef]:
    """Models and data files."""
    for ref in job.models():
        model = read_model(ref.name, job.place)
        size = _count(model.parameters) + " parameters" if model and model.parameters else "size unknown"
        detail = size if folder_of(ref.name, job.place) else "Hugging Face hub"
        role = ref.role if ref.role.endswith("model") else f"{ref.role} model"
        yield FileRef(role, ref.key, ref.name, detail)
    start = job.config.policy.pretrained_checkpoint
    if start is not None:
        yield FileRef("policy weights", "policy.pretrained_checkpoint.path", start.path, "checkpoint_megatron")
    for file in named_files(job):
        if not all(map(job.sees, file.paths)):
            yield FileRef(f"{file.role} data", file.key, str(file.path), f"on `{job.place.name}`")
            continue
        survey = file.survey()
        detail = survey.problem or f"{survey.rows} rows"
        if file.rows is None:
            yield FileRef(f"{file.role} data", file.key, str(file.path), detail)
        else:
            shards = tuple(map(str, file.paths))
            detail = f"{detail} in {len(shards)} shard{'s' if len(shards) > 1 else ''} of the manifest"
            yield FileRef(f"{file.role} data", file.key, str(job.config.data.manifest_path), detail, shards)


def outputs(job: AnyJob) -> Iterator[FileRef]:
    """The run folder and what lands elsewhere."""
    period = job.config.checkpointing.save_period
    for role, (key, path) in job.folders().items():
        detail = f"every {period} steps" if key else "metrics.jsonl, samples.jsonl, report.html"
        yield FileRef(role, key or None, str(path), detail)


def _count(number: int) -> str:
    for size, unit in ((1e9, "B"), (1e6, "M"), (1e3, "k")):
        if number >= size:
            return f"{number / size:.1f}{unit}"
    return str(number)
