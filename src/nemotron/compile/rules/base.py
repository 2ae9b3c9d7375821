"""How a rule of the preflight is written down.

A family of rules is a module with a :class:`Rules` collection. A rule is one small function that yields the findings of
one job; its error name, and its number in NeMo-RL's list of validity rules where it has one, stand in the decorator::

    rules: Rules[AnyGrpoJob] = Rules("batch")

    @rules.rule("batch-not-divisible", number=22)
    def total_batch_divides(job: AnyGrpoJob) -> Iterator[Finding]:
        if job.responses % job.config.policy.train_global_batch_size:
            yield job.error("policy.train_global_batch_size", "...", hint="...")

What a rule takes for granted is declared beside its name (``needs=("policy.model_name",)``), so that one mistake gives
one error.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Generic, TypeVar

from nemotron.compile.jobs.step import AnyStepJob
from nemotron.compile.probes.survey import RowKind
from nemotron.config.validate import in_order
from nemotron.errors import Finding
from nemotron.manifest import EngineName

NEMO_RL: tuple[EngineName, ...] = ("nemo_rl",)
EMBEDDED: tuple[EngineName, ...] = ("embedded",)
J = TypeVar("J", bound=AnyStepJob)
Check = Callable[[J], Iterator[Finding]]
Number = int | Mapping[RowKind, int] | None


@dataclass(frozen=True)
class Rule(Generic[J]):
    """One check with its name."""

    name: str
    number: Number
    """Its number in NeMo-RL's list of validity rules, which may depend on what rows are."""
    engines: tuple[EngineName, ...]
    check: Check[J]
    needs: tuple[str, ...] = ()
    """Keys and sections that must be right for the check to say anything: it is silent where another rule has refused
    one of them, or a key below. ``{section}`` stands for the section of the algorithm."""

    def needed(self, section: str) -> tuple[str, ...]:
        """``needs`` for the algorithm with that section."""
        return tuple(need.replace("{section}", section) for need in self.needs)

    def run(self, job: J) -> Iterator[Finding]:
        """Findings of this rule, named; none on an engine that it does not concern."""
        if job.engine in self.engines:
            for finding in self.check(job):
                number = self.number.get(job.row_kind) if isinstance(self.number, Mapping) else self.number
                yield replace(finding, name=self.name, rule=number)


@dataclass(frozen=True)
class Rules(Generic[J]):
    """A family of rules."""

    family: str
    members: list[Rule[J]] = field(default_factory=list)

    def rule(
        self,
        name: str,
        *,
        number: Number = None,
        engines: tuple[EngineName, ...] = ("embedded", "nemo_rl", "plain"),
        needs: tuple[str, ...] = (),
    ) -> Callable[[Check[J]], Check[J]]:
        """Decorator: add a check to the family."""

        def add(check: Check[J]) -> Check[J]:
            self.members.append(Rule(name, number, engines, check, needs))
            return check

        return add


Stages = tuple[tuple[Rules[Any], ...], ...]
"""Families of rules in the order in which they run."""


def check(job: J, stages: Stages) -> tuple[Finding, ...]:
    """Run every rule of every stage; findings in the order of the stages, inside a stage by origin.

    One cause gives one error: a rule is silent about what stands on a key that another rule has refused, and about a
    key that only refers to one of which it has said the same.
    """
    ordered: list[list[Rule[Any]]] = [[rule for rules in stage for rule in rules.members] for stage in stages]
    refused: set[str] = set()
    found: dict[int, list[Finding]] = {}
    # Rules that stand on nothing first: whatever they refuse is a cause, wherever they stand in the order.
    for rule in sorted((rule for stage in ordered for rule in stage), key=lambda rule: bool(rule.needs)):
        if any(_refused(job.resolved.source(need), refused) for need in rule.needed(job.section)):
            continue
        findings = _without_copies(list(rule.run(job)), job)
        found[id(rule)] = findings
        refused |= {job.resolved.source(f.key) for f in findings if f.severity == "error" and f.key}
    return tuple(
        finding
        for stage in ordered
        for finding in in_order([one for rule in stage for one in found.get(id(rule), ())], job.resolved)
    )


def _refused(need: str, refused: set[str]) -> bool:
    return any(key == need or key.startswith(f"{need}.") for key in refused)


def _without_copies(findings: list[Finding], job: AnyStepJob) -> list[Finding]:
    """Leave out findings of keys that have their value from another key with a finding."""
    keys = {finding.key for finding in findings}
    return [f for f in findings if not f.key or (source := job.resolved.source(f.key)) == f.key or source not in keys]
