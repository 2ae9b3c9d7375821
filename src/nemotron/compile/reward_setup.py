"""Whether reward functions work on this machine: packages, the user's own module, the sandbox for code."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from nemotron.compile.job import AnyJob
from nemotron.compile.rules import EMBEDDED, Rules
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


def _rule(name: str, about: str) -> Callable[[AnyJob], Iterator[Finding]]:
    """A rule that passes on the problems called ``name``."""

    def check(job: AnyJob) -> Iterator[Finding]:
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

    check.__doc__ = about
    return rules.rule(name, engines=EMBEDDED)(check)


packages_are_there = _rule("missing-package", "A library that a function needs is installed.")
functions_can_be_set_up = _rule("reward-function", "The user's module can be imported, the schema file can be read.")
code_is_contained = _rule("weak-sandbox", "Untrusted code cannot reach the network or write outside of its folder.")
