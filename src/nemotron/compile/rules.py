"""How a rule of the preflight is written down.

A family of rules is a module with a :class:`Rules` collection. A rule is one small function that yields the findings of
one job; its error name, and its number in NeMo-RL's list of validity rules where it has one, stand in the decorator::

    rules: Rules[AnyGrpoJob] = Rules("batch")

    @rules.rule("batch-not-divisible", number=22)
    def total_batch_divides(job: AnyGrpoJob) -> Iterator[Finding]:
        if job.responses % job.config.policy.train_global_batch_size:
            yield job.error("policy.train_global_batch_size", "...", hint="...")
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from typing import Any, Generic, TypeVar

from nemotron.compile.job import AnyJob
from nemotron.config.validate import in_order
from nemotron.errors import Finding
from nemotron.manifest import EngineName

NEMO_RL: tuple[EngineName, ...] = ("nemo_rl",)
EMBEDDED: tuple[EngineName, ...] = ("embedded",)
J = TypeVar("J", bound=AnyJob)
Check = Callable[[J], Iterator[Finding]]


@dataclass(frozen=True)
class Rule(Generic[J]):
    """One check with its name."""

    name: str
    number: int | None
    engines: tuple[EngineName, ...]
    check: Check[J]

    def run(self, job: J) -> Iterator[Finding]:
        """Findings of this rule, named; none on an engine that it does not concern."""
        if job.engine in self.engines:
            for finding in self.check(job):
                yield replace(finding, name=self.name, rule=self.number)


@dataclass(frozen=True)
class Rules(Generic[J]):
    """A family of rules."""

    family: str
    members: list[Rule[J]] = field(default_factory=list)

    def rule(
        self, name: str, *, number: int | None = None, engines: tuple[EngineName, ...] = ("embedded", "nemo_rl")
    ) -> Callable[[Check[J]], Check[J]]:
        """Decorator: add a check to the family."""

        def add(check: Check[J]) -> Check[J]:
            self.members.append(Rule(name, number, engines, check))
            return check

        return add


Stages = tuple[tuple[Rules[Any], ...], ...]
"""Families of rules in the order in which they run."""


def check(job: J, stages: Stages) -> tuple[Finding, ...]:
    """Run every rule of every stage; findings in the order of the stages, inside a stage by origin."""
    findings: list[Finding] = []
    for stage in stages:
        found = [finding for rules in stage for rule in rules.members for finding in rule.run(job)]
        findings += in_order(found, job.resolved)
    return tuple(findings)
