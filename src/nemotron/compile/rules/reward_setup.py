"""Whether reward functions work on this machine: packages, the user's own module, the sandbox for code."""

from __future__ import annotations

from collections.abc import Iterator

from nemotron.compile.jobs.base import AnyJob
from nemotron.compile.rules.base import Rules
from nemotron.config.schema.rewards import RewardConfig
from nemotron.errors import Finding
from nemotron.rewards import setup_problems

rules: Rules[AnyJob] = Rules("reward_setup")


def reward_sections(job: AnyJob) -> Iterator[tuple[str, RewardConfig]]:
    """Every ``rewards`` section of a config with its key: the one that trains, and the one that measures."""
    heldout = getattr(getattr(job.config, "eval", None), "heldout", None)
    for key, owner in (("rewards", job.config), ("eval.heldout.rewards", heldout)):
        section = getattr(owner, "rewards", None)
        if isinstance(section, RewardConfig):
            yield key, section


@rules.rule("missing-package")
def packages_are_there(job: AnyJob) -> Iterator[Finding]:
    """A library that a function needs is installed."""
    yield from _problems(job, "missing-package")


@rules.rule("reward-function")
def functions_can_be_set_up(job: AnyJob) -> Iterator[Finding]:
    """The user's module can be imported, the schema file can be read."""
    yield from _problems(job, "reward-function")


@rules.rule("weak-sandbox")
def code_is_contained(job: AnyJob) -> Iterator[Finding]:
    """Untrusted code cannot reach the network or write outside of its folder."""
    yield from _problems(job, "weak-sandbox")


def _problems(job: AnyJob, name: str) -> Iterator[Finding]:
    if job.engine != "embedded" and not job.our_servers_reward:
        return
    for key, section in reward_sections(job):
        for problem in setup_problems(section):
            place = f"{key}.functions.{problem.index}"
            if problem.name != name:
                continue
            if problem.severity == "error":
                yield job.error(place, problem.message, hint=problem.hint, kind=problem.kind)
            elif problem.severity == "warning":
                yield job.warning(place, problem.message, hint=problem.hint)
            else:
                yield job.note(place, problem.message, hint=problem.hint)
