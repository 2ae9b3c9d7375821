"""Rules of verifiable rewards: where they come from, and whether the rows have what the checks need."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

from nemotron.compile.jobs.files import DataFile, files
from nemotron.compile.jobs.grpo import VerifiedJob
from nemotron.compile.rules.base import EMBEDDED, Rules
from nemotron.compile.rules.unfit import sample, unfit_rows
from nemotron.compile.secrets import shown_address
from nemotron.config.schema.gym import ServerKind
from nemotron.errors import DataError, Finding, Origin
from nemotron.gym.protocol import agent_of
from nemotron.rewards import gold_problems
from nemotron.suggest import closest

rules: Rules[VerifiedJob] = Rules("verified_rewards")

SERVER_NEEDS: Mapping[ServerKind, tuple[str, ...]] = {
    "math": ("question", "expected_answer"),
    "mcqa": ("expected_answer",),
    "mcqa_0_4_0": ("expected_answer",),
}
"""Fields that our own servers read of a row."""

ROWS = ("data.train", "data.validation", "data.manifest_path", "eval.heldout")
"""What the rules about rows stand on: rows that can be read at all."""


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
            yield from unfit_rows(job, file, f"{key}.functions", rewards, told)


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
                f"{problem.tried:,} different right answers of the {file.told} data: {problem.message}"
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
        message = f"a row of the {file.told} data{more} cannot be scored: {reason}"
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
