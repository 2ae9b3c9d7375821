"""Which files go in and come out of a run."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from os.path import isdir, isfile
from pathlib import Path

from pydantic import BaseModel

from nemotron.checkpoints import hf
from nemotron.compile.jobs.base import AnyJob
from nemotron.compile.jobs.files import named_files
from nemotron.compile.plan import FileRef
from nemotron.compile.probes.model_files import folder_of, read_model
from nemotron.config.schema.judge import JudgeConfig, ProbedJudgeConfig
from nemotron.config.schema.policy import TokenizerConfig
from nemotron.config.schema.rewards import JsonSchemaRewardConfig, UserRewardConfig
from nemotron.disk.home import expanded


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
        detail = survey.told
        if file.rows is None:
            yield FileRef(f"{file.role} data", file.key, str(file.path), detail)
        else:
            shards = tuple(map(str, file.paths))
            detail = f"{detail} in {len(shards)} shard{'s' if len(shards) > 1 else ''} of the manifest"
            yield FileRef(f"{file.role} data", file.key, str(job.config.data.manifest_path), detail, shards)
    manifest = job.config.data.manifest_path
    if manifest is not None and job.place.promised_data(manifest) is not None:
        yield FileRef("data", "data.manifest_path", manifest, "made before this runs")
    if job.place.is_here:
        seen = {ref.name for ref in job.models()}
        for one in loose_files(job.config):
            if one.path not in seen:
                seen.add(one.path)
                yield one


def loose_files(value: object, key: str = "") -> Iterator[FileRef]:
    """Code, schemas, tokenizers and templates that a config names by files: they make a run as data do."""
    if isinstance(value, TokenizerConfig):
        folder, template = expanded(value.name), expanded(value.chat_template or "")
        if isdir(folder) and (files := hf.tokenizer_files(folder)):
            yield _files("tokenizer", f"{key}.name", value.name, files)
        if template.suffix == ".jinja" and isfile(template):
            yield _files("chat template", f"{key}.chat_template", str(template), [template])
    elif isinstance(value, JudgeConfig):
        probe = value.probe.data_path if isinstance(value, ProbedJudgeConfig) and value.probe.enabled else None
        wording = ("judge's instruction", "instruct_template", value.instruct_template)
        for role, name, path in (wording, ("judge's probe", "probe.data_path", probe)):
            if path is not None and isfile(file := expanded(path)):
                yield _files(role, f"{key}.{name}", str(file), [file])
    elif isinstance(value, JsonSchemaRewardConfig) and value.schema_file is not None:
        schema = expanded(value.schema_file)
        if isfile(schema):
            yield _files("schema", f"{key}.schema_file", str(schema), [schema])
    elif isinstance(value, UserRewardConfig):
        module = expanded(Path(value.search_path, *value.function.partition(":")[0].split(".")))
        code = [path for path in (module.with_suffix(".py"), module / "__init__.py") if isfile(path)]
        if code:
            yield _files("reward function", f"{key}.function", str(code[0]), code[:1])
    elif isinstance(value, BaseModel):
        for name in type(value).model_fields:
            yield from loose_files(getattr(value, name), f"{key}.{name}" if key else name)
    elif isinstance(value, list):
        for index, child in enumerate(value):
            yield from loose_files(child, f"{key}.{index}")


def _files(role: str, key: str, path: str, files: Sequence[Path]) -> FileRef:
    detail = f"{len(files)} file{'' if len(files) == 1 else 's'}"
    return FileRef(role, key, path, detail, tuple(map(str, files)), loose=True)


def outputs(job: AnyJob) -> Iterator[FileRef]:
    """The run folder and what lands elsewhere."""
    period = job.config.checkpointing.save_period
    for role, (key, path) in job.folders().items():
        # Logs are copies, and runs may share their folder.
        if key.startswith("logger."):
            continue
        detail = f"every {period} steps" if key else "metrics.jsonl, samples.jsonl, report.html"
        yield FileRef(role, key or None, str(path), detail)


def _count(number: int) -> str:
    for size, unit in ((1e9, "B"), (1e6, "M"), (1e3, "k")):
        if number >= size:
            return f"{number / size:.1f}{unit}"
    return str(number)
