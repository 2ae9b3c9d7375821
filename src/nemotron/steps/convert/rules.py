"""What both conversions check before they start. Nothing is written, no connection is opened, torch is not loaded."""

from __future__ import annotations

from collections.abc import Iterator

from pydantic import BaseModel

from nemotron.compile.probes.model_files import folder_of, may_be_repository
from nemotron.compile.rules.artifacts import not_looked_at
from nemotron.compile.rules.base import Rules, Stages
from nemotron.compile.rules.engine import modules
from nemotron.compile.rules.output import folders
from nemotron.disk.home import expanded
from nemotron.disk.publish import occupied
from nemotron.errors import ArtifactError, Finding, OutputError
from nemotron.steps.convert.job import OUTPUT, ConvertJob
from nemotron.steps.convert.run import is_hub_name

AnyConvertJob = ConvertJob[BaseModel]
rules: Rules[AnyConvertJob] = Rules("convert")
RUN_ID = "RUN_ID"
"""What the run folder is called in a plan."""


@rules.rule("model-files")
def models_are_there(job: AnyConvertJob) -> Iterator[Finding]:
    """A folder, or a name on the hub that is here or can be fetched."""
    for key, name in job.hf_models():
        folder = expanded(name)
        if job.place.promised_model(name) is not None or job.unseen(name):
            continue
        if is_hub_name(name) and may_be_repository(name):
            if folder_of(name, job.place) is not None:
                continue
            if job.place.offline:
                message = f"the model `{name}` is not on this machine and downloads are switched off"
                yield job.error(key, message, hint="unset `HF_HUB_OFFLINE`, or give a folder", kind=ArtifactError)
            else:
                yield job.note(key, f"the model `{name}` is not on this machine and will be downloaded")
        elif not folder.is_dir():
            message = f"`{name}` is a file, not a model folder" if folder.exists() else f"there is no folder `{name}`"
            hint = "give a folder with `config.json` and safetensors, or a hub name `owner/name`"
            yield job.error(key, message, hint=hint, kind=ArtifactError)


@rules.rule("not-looked-at")
def places_are_looked_at(job: AnyConvertJob) -> Iterator[Finding]:
    """What lies where the job will run, and not here, is found wrong only when it starts."""
    models = dict(job.hf_models())
    folders_named = {key: name for key, name in models.items() if not is_hub_name(name)}
    if job.source_key not in models:
        folders_named[job.source_key] = job.source_name
    yield from not_looked_at(job, folders_named.items())


@rules.rule("model-files")
def source_converts(job: AnyConvertJob) -> Iterator[Finding]:
    """What is converted is whole, and of a family that converts."""
    try:
        job.convert_on_paper()
    except ArtifactError as error:
        yield job.refused(job.source_key, error)


@rules.rule("output-folder")
def target_is_free(job: AnyConvertJob) -> Iterator[Finding]:
    """The target may be written, and does not hold the source."""
    settings, source = job.settings, job.source
    target = expanded(settings.output_dir).absolute()
    if source is not None and source.resolve().is_relative_to(target.resolve()):
        message = f"`{settings.output_dir}` holds the checkpoint to convert, which would be lost"
        yield job.error(OUTPUT, message, hint="choose another `output_dir`", kind=OutputError)
    elif job.runs_dir.resolve().is_relative_to(target.resolve()) or target == job.runs_dir.absolute() / RUN_ID:
        message = f"`{settings.output_dir}` is the folder of this run, or holds it, and is made as a whole"
        yield job.error(OUTPUT, message, hint="name a folder inside: `output_dir=${run_dir:}/model`", kind=OutputError)
    elif not settings.overwrite and job.sees(target) and occupied(target):
        hint = "choose an empty `output_dir`, or set `overwrite=true`"
        yield job.error(OUTPUT, f"`{settings.output_dir}` exists already", hint=hint, kind=OutputError)


STAGES: Stages = ((modules,), (rules,), (folders,))
