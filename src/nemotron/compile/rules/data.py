"""Data rows: read before anything starts, so that a broken line costs a second and not a cluster hour."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from nemotron.checkpoints.chat_template import refused, refuses_all
from nemotron.compile.jobs.base import AnyJob
from nemotron.compile.jobs.files import files
from nemotron.compile.probes.survey import told_once
from nemotron.compile.rules import prepared, unfit
from nemotron.compile.rules.base import NEMO_RL, Rules
from nemotron.compile.rules.conversations import policy_writing
from nemotron.compile.rules.prepared import environment_variable
from nemotron.config import resolvers
from nemotron.disk.home import expanded
from nemotron.errors import DataError, Finding, Origin

rules: Rules[AnyJob] = Rules("data", [*prepared.rules.members, *unfit.rules.members])


@rules.rule("no-data-path", number=70)
def data_path_is_given(job: AnyJob) -> Iterator[Finding]:
    """A data set of rows needs a file."""
    data = job.config.data
    if job.heldout is not None and not (job.heldout.data_path or job.heldout.split):
        hint = "set `eval.heldout.data_path=FILE.jsonl`, or `eval.heldout.split` with prepared data"
        yield job.error("eval.heldout", "the held-out metric has no prompts", kind=DataError, hint=hint)
    if data.manifest_path is not None:
        return
    shared = data.default.data_path if data.default else None
    for role, sets in (("train", data.training_sets()), ("validation", data.validation_sets())):
        for rows in sets:
            if not (rows.data_path or shared):
                yield job.error(
                    f"data.{role}",
                    f"`data.{role}.data_path` is not set",
                    kind=DataError,
                    hint=f"set `data.{role}.data_path=FILE.jsonl`",
                )


@rules.rule("data-file", number=73, needs=("data.manifest_path",))
def files_can_be_read(job: AnyJob) -> Iterator[Finding]:
    """Each file is there and has rows."""
    for file in files(job):
        found = file.survey()
        if found.problem:
            absent = next((path for path in file.paths if not path.exists()), None)
            message = f"the {file.told} data `{absent}` does not exist"
            if absent is None:
                message = f"the {file.told} data cannot be read: {found.problem}"
            yield job.error(file.key, message, kind=DataError, hint=found.hint or f"check `{file.key}`")
        elif not found.rows:
            yield job.error(file.key, f"the {file.told} data `{file.path}` is empty", kind=DataError)


@rules.rule("data-row")
def rows_can_be_used(job: AnyJob) -> Iterator[Finding]:
    """Each row that was read is JSON, holds a prompt, and can be given to the engine."""
    for file in files(job):
        for fault, message in told_once(file.survey().faults):
            origin = Origin(str(fault.path), fault.line, fault.column)
            message = f"{file.told} data: {message}"
            yield job.error(file.key, message, kind=DataError, origin=origin, hint=fault.hint)


@rules.rule("template-refuses-rows", needs=("policy.model_name", "policy.tokenizer"))
def rows_can_be_written(job: AnyJob) -> Iterator[Finding]:
    """A template may take no system's words, or only turns that alternate: the first row of that kind ends the run."""
    written = policy_writing(job)
    if written is None or refuses_all(written.template, written.given) is not None:
        return  # `chat-template` says so
    for file in files(job):
        found = file.survey().roles
        told = refused(written.template, written.given, list(found))
        if not told:
            continue
        roles, why = next(iter(told.items()))
        path, line = found[roles]
        yield job.error(
            file.key,
            f"{file.told} data: the chat template of `{written.name}` refuses a conversation of "
            f"{', '.join(roles)}: {why}",
            kind=DataError,
            origin=Origin(str(path), line),
            hint="leave such rows out or change their roles, or give another template with "
            "`policy.tokenizer.chat_template`",
        )


@rules.rule("contradictory-pairs")
def pairs_agree(job: AnyJob) -> Iterator[Finding]:
    """The same two answers to the same prompt, preferred both ways: one of the two is written the wrong way round."""
    for file in files(job):
        clashes = file.survey().clashes
        if clashes:
            first = clashes[0]
            yield job.error(
                file.key,
                f"{len(clashes)} pairs of the {file.told} data prefer the answer that another row with that prompt "
                f"rejects; this row contradicts {first.other}",
                kind=DataError,
                origin=Origin(str(first.path), first.line),
                hint="keep one of the two; if it happens throughout, `chosen` and `rejected` are swapped in a source",
            )


@rules.rule("rows-not-looked-at")
def rows_are_looked_at(job: AnyJob) -> Iterator[Finding]:
    """Of very large data the others are met when the run reads them, before models are loaded."""
    for file in files(job):
        found = file.survey()
        if not found.problem and not found.complete:
            yield job.note(
                file.key,
                f"{found.read:,} of {found.rows:,} {file.told} rows were looked at, as many as that takes seconds: "
                "a row that cannot be used may be among the others",
            )


@rules.rule("too-few-rows", needs=("data.train", "data.manifest_path"))
def one_batch_is_there(job: AnyJob) -> Iterator[Finding]:
    """Silent upstream: an incomplete batch is dropped, so the run makes no step and ends with success."""
    needed = job.config.rows_per_step
    mine = [file for file in files(job) if file.role == "train"]
    train = [file.survey() for file in mine]
    rows = sum(found.rows for found in train)
    if train and all(found.rows and not found.problem for found in train) and rows < needed:
        yield job.error(
            mine[0].key,
            f"{rows} training rows are fewer than one batch of {needed} {job.row_noun}: the run would make no step",
            kind=DataError,
            hint=f"add rows, or set `{job.batch_key}` to at most {rows}",
        )


@rules.rule("split-overlap")
def splits_do_not_share_prompts(job: AnyJob) -> Iterator[Finding]:
    """A prompt that is trained on says nothing when it is measured on."""
    surveys = {file.role: (file, file.survey()) for file in files(job)}
    if "train" not in surveys:
        return
    _, train = surveys.pop("train")
    for file, found in surveys.values():
        shared = len(train.prompts & found.prompts)
        if shared:
            least = "" if train.complete and found.complete else "at least "
            prompts = f"{len(found.prompts)} {file.told} prompts"
            yield job.warning(file.key, f"{least}{shared} of {prompts} are also trained on")


@rules.rule("environment-name", number=71, engines=NEMO_RL)
def environments_exist(job: AnyJob) -> Iterator[Finding]:
    """A data set names a section of ``env``."""
    data = job.config.data
    known = set(job.resolved.get("env") or {})
    for place, sets in (
        ("default", [data.default] if data.default else []),
        ("train", data.training_sets()),
        ("validation", data.validation_sets()),
    ):
        for rows in sets:
            if rows.env_name and rows.env_name not in known:
                yield job.error(f"data.{place}.env_name", f"there is no environment `env.{rows.env_name}`")


@rules.rule("prompt-file", number=73, engines=NEMO_RL)
def prompt_files_exist(job: AnyJob) -> Iterator[Finding]:
    """Templates that are put around prompts."""
    data = job.config.data
    sets = [("default", data.default)] + [("train", rows) for rows in data.training_sets()]
    sets += [("validation", rows) for rows in data.validation_sets()]
    for place, rows in sets:
        for name in ("prompt_file", "system_prompt_file"):
            path = getattr(rows, name, None)
            if path and not expanded(path).is_file():
                yield job.error(f"data.{place}.{name}", f"there is no file `{path}`", kind=DataError)


@rules.rule("sample-data")
def rows_are_real(job: AnyJob) -> Iterator[Finding]:
    """The shipped sample lets any config run, but a real model should not be trained or measured on it."""
    if Path(job.config.policy.model_name).is_relative_to(resolvers.ASSETS):
        return
    shipped = [file for file in files(job) if file.path.is_relative_to(resolvers.ASSETS) and not _typed(job, file.key)]
    if shipped:
        nouns = {"train": "training", "validation": "validation", "heldout": "held-out"}
        what = " and ".join(dict.fromkeys(nouns[file.role] for file in shipped))
        key = shipped[0].key
        variable = environment_variable(job.resolved, key)
        yield job.warning(
            key,
            f"no {what} {job.row_noun} are set: the shipped sample of the tiny world is used",
            hint=f"set `{key}=FILE.jsonl`" + (f", or `{variable}` in the environment" if variable else ""),
        )


def _typed(job: AnyJob, key: str) -> bool:
    origin = job.resolved.origin(key)
    return origin is not None and origin.argument is not None
