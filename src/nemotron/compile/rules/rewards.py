"""Rules of verifiable rewards: where they come from, and whether the rows have what the checks need."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from functools import lru_cache
from itertools import islice
from pathlib import Path
from typing import Any

from nemotron.compile.jobs.files import DataFile, files
from nemotron.compile.jobs.grpo import VerifiedJob
from nemotron.compile.rules.base import EMBEDDED, Rules
from nemotron.compile.secrets import shown_address
from nemotron.config.schema.gym import ServerKind
from nemotron.config.schema.rewards import RewardConfig
from nemotron.data.rows import read_lines
from nemotron.disk.documents import MalformedError, parse_json
from nemotron.errors import DataError, Finding, NemotronError, Origin
from nemotron.gym.protocol import agent_of
from nemotron.rewards import gold_problems, row_problems
from nemotron.suggest import closest

rules: Rules[VerifiedJob] = Rules("verified_rewards")

ROWS_READ = 2000
"""Rows of each file that are looked at."""
SERVER_NEEDS: Mapping[ServerKind, tuple[str, ...]] = {
    "math": ("question", "expected_answer"),
    "mcqa": ("expected_answer",),
    "mcqa_0_4_0": ("expected_answer",),
}
"""Fields that our own servers read of a row."""

ROWS = ("data.train", "data.validation", "data.manifest_path", "eval.heldout")
"""What the rules about rows stand on: rows that can be read at all."""

Row = tuple[Path, int, dict[str, Any]]
"""File, line and content."""


@rules.rule("no-rewards")
def rewards_come_from_one_place(job: VerifiedJob) -> Iterator[Finding]:
    """Functions or servers, not both: there is one reward."""
    config = job.config
    if config.rewards is None and config.gym is None:
        yield job.error(
            "rewards",
            "nothing gives rewards: `rewards` and `gym` are both null",
            hint="list functions in `rewards.functions`, or servers in `gym.servers` (`-c nemo_gym`)",
        )
    elif config.rewards is not None and config.gym is not None:
        yield job.error(
            "gym",
            "`rewards` and `gym` are both set, but a response has one reward",
            hint="set `rewards=null` where servers score, or `gym=null` where functions do",
        )


@rules.rule("reward-row", needs=ROWS)
def rows_have_what_functions_need(job: VerifiedJob) -> Iterator[Finding]:
    """A row that a function cannot use would be missing in every step."""
    heldout = job.config.eval.heldout
    told: set[str] = set()
    for file in files(job):
        key, rewards = (
            ("eval.heldout.rewards", heldout.rewards if heldout else None)
            if file.role == "heldout"
            else ("rewards", job.config.rewards)
        )
        if rewards is not None:
            yield from _unfit_rows(job, file, f"{key}.functions", rewards, told)


def _unfit_rows(job: VerifiedJob, file: DataFile, key: str, rewards: RewardConfig, told: set[str]) -> Iterator[Finding]:
    """The first unfit row of the functions that a file does not fit, and how many there are.

    ``told`` has the functions that an earlier file does not fit either: they ask for what no row has.
    """
    found: dict[int, tuple[Origin, Counter[str]]] = {}
    rows = sample(file)
    try:
        for path, line, row in rows:
            for index, problem in row_problems(rewards, row):
                found.setdefault(index, (Origin(str(path), line), Counter()))[1][problem] += 1
    except NemotronError:  # the function cannot be set up at all: `reward-function` says so
        return
    unfit = {
        index: one
        for index, one in sorted(found.items())
        if not (rewards.functions[index].optional and one[1].total() < len(rows))
    }
    names = {index: job.resolved.source(f"{key}.{index}") for index in unfit}
    fresh = [index for index, name in names.items() if name not in told]
    told |= set(names.values())
    if not fresh:
        return
    index = fresh[0]
    origin, problems = unfit[index]
    function, count = rewards.functions[index], problems.total()
    which = "a row" if count == 1 else f"{count} rows"
    others = [f"`{rewards.functions[other].shown}`: {_reasons(unfit[other][1])}" for other in fresh[1:]]
    message = f"the reward function `{function.shown}` cannot score {which} of the {file.role} data: "
    message += _reasons(problems) + (f"; nor can {', '.join(others)}" if others else "")
    if rewards.unusable_rows == "leave_out" and count < len(rows):
        yield job.warning(f"{key}.{index}", f"{message}: they are left out", origin=origin)
        return
    hint = f"name the right field in `{key}.{index}`, or give the rows what it needs"
    if count < len(rows):
        hint += f"; `{key.removesuffix('.functions')}.unusable_rows=leave_out` leaves these rows out"
    yield job.error(f"{key}.{index}", message, kind=DataError, origin=origin, hint=hint)


REASONS_SHOWN = 5


def _reasons(problems: Counter[str]) -> str:
    """What is wrong with rows, the commonest first and with its number where there are several."""
    if len(problems) == 1:
        return next(iter(problems))
    shown = [
        f"{problem} ({count:,} row{'s' if count > 1 else ''})" for problem, count in problems.most_common(REASONS_SHOWN)
    ]
    rest = len(problems) - len(shown)
    return ", ".join(shown) + (f" and {rest} more reasons" if rest else "")


@rules.rule("reward-gold", engines=EMBEDDED, needs=(*ROWS, "rewards"))
def right_answers_pay_for_themselves(job: VerifiedJob) -> Iterator[Finding]:
    """A right answer that the function cannot read makes every answer wrong; one that all satisfy teaches nothing."""
    rewards = job.config.rewards
    for file in files(job):
        if rewards is None or file.role == "heldout":
            continue
        rows = sample(file)
        for problem in gold_problems(rewards, [row for _, _, row in rows]):
            path, line, _ = rows[problem.row]
            key, origin = f"rewards.functions.{problem.index}", Origin(str(path), line)
            message = (
                f"the reward function `{rewards.functions[problem.index].shown}` cannot use {problem.found:,} of "
                f"{problem.tried:,} different right answers of the {file.role} data: {problem.message}"
            )
            hint = "correct these rows or leave them out"
            if problem.found == problem.tried:
                yield job.error(key, message, kind=DataError, origin=origin, hint=hint)
            else:
                yield job.warning(key, message, origin=origin, hint=hint)


@rules.rule("gym-row", needs=ROWS)
def rows_have_what_servers_need(job: VerifiedJob) -> Iterator[Finding]:
    """A row goes to the server of its agent; our own servers need the fields that NeMo-Gym's do."""
    gym = job.config.gym
    if gym is None:
        return
    agents = [agent for server in gym.servers.values() for agent in server.agents]

    def problem(row: dict[str, Any]) -> tuple[str, str] | None:
        name = agent_of(row)
        if name is None:
            return (
                "it has neither `agent_ref.name` nor `task_source`",
                'add `"agent_ref": {"type": "responses_api_agents", "name": ...}`',
            )
        server = gym.server_of(name)
        if server is None:
            guess = closest(name, agents)
            meant = f"; did you mean `{guess}`?" if guess else ""
            return f"no server of `gym.servers` serves its agent `{name}`", f"add it to `agents` of a server{meant}"
        kind = gym.servers[server].kind
        lacking = [field for field in SERVER_NEEDS[kind] if not isinstance(row.get(field), str)] if kind else []
        if lacking:
            return f"it has no text `{lacking[0]}`, which the server `{server}` needs", "see the README of this step"
        return None

    for file in files(job):
        if file.role != "heldout":
            yield from _first_unfit(job, file, problem)


def _first_unfit(
    job: VerifiedJob, file: DataFile, problem: Callable[[dict[str, Any]], tuple[str, str] | None]
) -> Iterator[Finding]:
    unfit = [(path, line, found) for path, line, row in sample(file) if (found := problem(row)) is not None]
    if unfit:
        path, line, (reason, hint) = unfit[0]
        more = f" (and {len(unfit) - 1} more)" if len(unfit) > 1 else ""
        message = f"a row of the {file.role} data{more} cannot be scored: {reason}"
        yield job.error(file.key, message, kind=DataError, origin=Origin(str(path), line), hint=hint)


@rules.rule("gym-servers", engines=EMBEDDED)
def servers_are_asked_later(job: VerifiedJob) -> Iterator[Finding]:
    """The preflight opens no connection."""
    gym = job.config.gym
    for name, server in (gym.servers if gym else {}).items():
        if server.base_url is not None:
            key = f"gym.servers.{name}.base_url"
            yield job.note(
                key, f"the server `{name}` at `{shown_address(server.base_url)}` is asked when the run starts"
            )


def sample(file: DataFile) -> tuple[Row, ...]:
    """The first rows of a data file that can be read; broken ones are another rule's business."""
    return _sample(tuple((path, _version(path)) for path in file.paths))


@lru_cache(maxsize=8)
def _sample(files: tuple[tuple[Path, int], ...]) -> tuple[Row, ...]:
    return tuple(islice((row for path, version in files if version for row in _rows(path)), ROWS_READ))


def _rows(path: Path) -> Iterator[Row]:
    try:
        for number, line in read_lines(path):
            row = _object(line)
            if row is not None:
                yield path, number, row
    except DataError:  # `data-file` says so
        return


def _object(line: bytes) -> dict[str, Any] | None:
    try:
        row = parse_json(line)
    except MalformedError:
        return None
    return row if isinstance(row, dict) else None


def _version(path: Path) -> int:
    """Changes with the file; 0 when there is none."""
    return path.stat().st_mtime_ns if path.is_file() else 0
