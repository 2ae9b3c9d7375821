"""Data rows: read before anything starts, so that a broken line costs a second and not a cluster hour."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

from nemotron.compile.job import NEMO_RL, Job, Rules
from nemotron.config import resolvers
from nemotron.data.rows import prompt_row
from nemotron.errors import DataError, Finding, Origin

rules = Rules("data")

READ_ALL_BYTES = 8 * 2**20
"""Files up to this size are read completely."""
FIRST_ROWS, RANDOM_ROWS = 500, 200
"""Of larger files this much is read, and the other rows are counted by their line ends."""
SHOWN_FAULTS = 3


@dataclass(frozen=True, slots=True)
class Fault:
    """A row that cannot be used."""

    message: str
    line: int
    column: int | None = None


@dataclass(slots=True)
class Survey:
    """What was found in a data file."""

    rows: int = 0
    """Lines that are not blank."""
    read: int = 0
    """Rows that were parsed."""
    faults: list[Fault] = field(default_factory=list)
    prompts: set[int] = field(default_factory=set)
    """Hashes of the prompts that were read."""
    without_agent: int = 0
    first_without_agent: int | None = None
    longest: int = 0
    """Characters of the longest prompt."""
    problem: str | None = None
    """Why the file could not be read at all."""

    @property
    def complete(self) -> bool:
        """Every row was read."""
        return self.read == self.rows


@dataclass(frozen=True, slots=True)
class DataFile:
    """A data file of the config."""

    role: str
    """``train``, ``validation`` or ``heldout``."""
    key: str
    path: Path


def files(job: Job) -> list[DataFile]:
    """Every data file that the run reads."""
    data = job.config.data
    shared = data.default.data_path if data.default else None
    found = []
    for role, sets in (("train", data.training_sets()), ("validation", data.validation_sets())):
        for index, rows in enumerate(sets):
            where = f"data.{role}.{index}" if isinstance(getattr(data, role), list) else f"data.{role}"
            path = rows.data_path or shared
            if path:
                found.append(DataFile(role, f"{where}.data_path", Path(path).expanduser()))
    if job.config.eval.heldout:
        found.append(
            DataFile("heldout", "eval.heldout.data_path", Path(job.config.eval.heldout.data_path).expanduser())
        )
    return found


def survey(path: Path) -> Survey:
    """Read a data file (or the first and a random sample of its rows), once per process and version of the file."""
    try:
        stat = path.stat()
    except OSError as error:
        return Survey(problem=error.strerror or "cannot be read")
    return _survey(path, stat.st_size, stat.st_mtime_ns)


@lru_cache(maxsize=16)
def _survey(path: Path, size: int, _version: int) -> Survey:
    found = Survey()
    everything = size <= READ_ALL_BYTES
    try:
        with path.open("rb") as file:
            chosen = set() if everything else _sample(size)
            offset = 0
            for number, line in enumerate(file, start=1):
                offset += len(line)
                if not line.strip():
                    continue
                found.rows += 1
                if everything or number <= FIRST_ROWS or offset // SLICE in chosen:
                    chosen.discard(offset // SLICE)
                    found.read += 1
                    _look_at(path, number, line, found)
    except OSError as error:
        found.problem = error.strerror or "cannot be read"
    return found


SLICE = 4096


def _sample(size: int) -> set[int]:
    """Slices of the file of which the row that ends in it is read; the same ones for the same size."""
    return {random.Random(size * 1_000_003 + i).randrange(size // SLICE + 1) for i in range(RANDOM_ROWS)}


def _look_at(path: Path, number: int, line: bytes, found: Survey) -> None:
    try:
        row: Any = json.loads(line.rstrip())
        if not isinstance(row, dict):
            found.faults.append(Fault(f"a row must be a JSON object, this is a {type(row).__name__}", number))
            return
        messages = prompt_row(path, number, row).messages
    except UnicodeDecodeError:
        found.faults.append(Fault("the line is not UTF-8", number))
    except json.JSONDecodeError as error:
        found.faults.append(Fault(f"the line is not JSON: {error.msg}", number, error.colno))
    except DataError as error:
        found.faults.append(Fault(error.message, number))
    else:
        found.prompts.add(hash(json.dumps(messages, sort_keys=True)))
        found.longest = max(found.longest, sum(len(message["content"]) for message in messages))
        agent = row.get("agent_ref")
        if not (isinstance(agent, dict) and agent.get("name")):
            found.without_agent += 1
            found.first_without_agent = found.first_without_agent or number


@rules.rule("no-data-path", number=70)
def data_path_is_given(job: Job) -> Iterator[Finding]:
    """A data set of rows needs a file."""
    data = job.config.data
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


@rules.rule("data-file", number=73)
def files_can_be_read(job: Job) -> Iterator[Finding]:
    """Each file is there and has rows."""
    for file in files(job):
        found = survey(file.path)
        if found.problem:
            what = "does not exist" if not file.path.exists() else f"cannot be read: {found.problem}"
            yield job.error(
                file.key, f"the {file.role} data `{file.path}` {what}", kind=DataError, hint=f"check `{file.key}`"
            )
        elif not found.rows:
            yield job.error(file.key, f"the {file.role} data `{file.path}` is empty", kind=DataError)


@rules.rule("data-row")
def rows_can_be_used(job: Job) -> Iterator[Finding]:
    """Each row that was read is JSON and holds a prompt."""
    for file in files(job):
        found = survey(file.path)
        for fault in found.faults[:SHOWN_FAULTS]:
            origin = Origin(str(file.path), fault.line, fault.column)
            yield job.error(file.key, f"{file.role} data: {fault.message}", kind=DataError, origin=origin)
        rest = found.faults[SHOWN_FAULTS:]
        if rest:
            origin = Origin(str(file.path), rest[0].line)
            message = f"{len(rest)} more rows of the {file.role} data cannot be used"
            yield job.error(file.key, message, kind=DataError, origin=origin)


@rules.rule("too-few-rows")
def one_batch_is_there(job: Job) -> Iterator[Finding]:
    """Silent upstream: an incomplete batch is dropped, so the run makes no step and ends with success."""
    grpo = job.config.grpo
    needed = int(grpo.num_prompts_per_step * grpo.batch_multiplier)
    train = [survey(file.path) for file in files(job) if file.role == "train"]
    rows = sum(found.rows for found in train)
    if train and all(found.rows and not found.problem for found in train) and rows < needed:
        yield job.error(
            "data.train.data_path",
            f"{rows} training rows are fewer than one batch of {needed} prompts: the run would make no step",
            kind=DataError,
            hint=f"add rows, or set `grpo.num_prompts_per_step` to at most {rows}",
        )


@rules.rule("split-overlap")
def splits_do_not_share_prompts(job: Job) -> Iterator[Finding]:
    """A prompt that is trained on says nothing when it is measured on."""
    surveys = {file.role: (file, survey(file.path)) for file in files(job)}
    if "train" not in surveys:
        return
    _, train = surveys.pop("train")
    for role, (file, found) in surveys.items():
        shared = len(train.prompts & found.prompts)
        if shared:
            least = "" if train.complete and found.complete else "at least "
            yield job.warning(file.key, f"{least}{shared} of {len(found.prompts)} {role} prompts are also trained on")


@rules.rule("agent-ref", engines=NEMO_RL)
def rows_name_their_agent(job: Job) -> Iterator[Finding]:
    """NeMo-Gym sends a row to the agent it names; without a name the rollout fails."""
    for file in files(job):
        found = survey(file.path)
        if file.role != "heldout" and found.without_agent:
            origin = Origin(str(file.path), found.first_without_agent)
            yield job.error(
                file.key,
                f"{found.without_agent} of {found.read} {file.role} rows that were read have no `agent_ref.name`",
                kind=DataError,
                origin=origin,
                hint='add `"agent_ref": {"type": "responses_api_agents", "name": "genrm_simple_agent"}`',
            )


@rules.rule("environment-name", number=71, engines=NEMO_RL)
def environments_exist(job: Job) -> Iterator[Finding]:
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
def prompt_files_exist(job: Job) -> Iterator[Finding]:
    """Templates that are put around prompts."""
    data = job.config.data
    sets = [("default", data.default)] + [("train", rows) for rows in data.training_sets()]
    sets += [("validation", rows) for rows in data.validation_sets()]
    for place, rows in sets:
        for name in ("prompt_file", "system_prompt_file"):
            path = getattr(rows, name, None)
            if path and not Path(path).expanduser().is_file():
                yield job.error(f"data.{place}.{name}", f"there is no file `{path}`", kind=DataError)


@rules.rule("sample-data")
def prompts_are_real(job: Job) -> Iterator[Finding]:
    """The shipped sample lets any config run, but a real model should not be trained on it."""
    if Path(job.config.policy.model_name).is_relative_to(resolvers.ASSETS):
        return
    for file in files(job):
        if file.role == "train" and file.path.is_relative_to(resolvers.ASSETS):
            yield job.warning(
                file.key,
                "no training prompts are set: the shipped sample of the tiny world is used",
                hint=f"set `{file.key}=FILE.jsonl`, or `RL_TRAIN_DATA` in the environment",
            )
