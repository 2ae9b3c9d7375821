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

import errno
import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Generic, TypeVar

from nemotron.compile.jobs.step import AnyStepJob
from nemotron.compile.probes.survey import RowKind
from nemotron.config.validate import in_order
from nemotron.errors import ArtifactError, ConfigError, DataError, Finding, NemotronError, OutputError
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
        findings = _without_copies(_findings(rule, job, refused), job)
        found[id(rule)] = findings
        refused |= {job.resolved.source(f.key) for f in findings if f.severity == "error" and f.key}
    return tuple(
        finding
        for stage in ordered
        for finding in in_order([one for rule in stage for one in found.get(id(rule), ())], job.resolved)
    )


def _findings(rule: Rule[Any], job: AnyStepJob, refused: set[str]) -> list[Finding]:
    """What a rule finds. Whatever it looks up, a name that no file system takes is the config's fault, told once."""
    try:
        return list(rule.run(job))
    except OSError as error:
        found = name_too_long(error, job)
        if found is None:
            raise
        return [] if _refused(job.resolved.source(found.key or ""), refused) else [replace(found, name=rule.name)]


def name_too_long(error: OSError, job: AnyStepJob) -> Finding | None:
    """The finding for a name that no file system takes, at the key that it comes from; None of other errors."""
    if error.errno != errno.ENAMETOOLONG:
        return None
    wanted = os.fspath(error.filename or "")
    # The longest value that the name was made of; others may be in it by chance.
    made = [(len(text), key) for key, text in _texts(job.resolved.values) if text and os.path.normpath(text) in wanted]
    key = max(made, key=lambda one: one[0])[1] if made else ""
    kind = next((kind for part, kind in _KINDS.items() if part in key), ConfigError)
    message = f"the name in `{key}` is too long for a file: `{wanted[:40]}...` has {len(wanted.encode()):,} bytes"
    return job.error(key, message, hint="a name has at most 255 bytes, a path 4,096", kind=kind)


_KINDS: Mapping[str, type[NemotronError]] = {
    **dict.fromkeys(("data_path", "manifest", "blend", "data."), DataError),
    **dict.fromkeys(("model", "tokenizer", "pretrained"), ArtifactError),
    **dict.fromkeys(("output", "checkpoint_dir", "log_dir"), OutputError),
}
"""What a key is about -> the error that a name in it is."""


def _texts(value: Any, key: str = "") -> Iterator[tuple[str, str]]:
    if isinstance(value, str):
        yield key, value
    pairs = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for name, inner in pairs:
        yield from _texts(inner, f"{key}.{name}" if key else str(name))


def _refused(need: str, refused: set[str]) -> bool:
    return any(key == need or key.startswith(f"{need}.") for key in refused)


def _without_copies(findings: list[Finding], job: AnyStepJob) -> list[Finding]:
    """Leave out findings of keys that have their value from another key with a finding."""
    keys = {finding.key for finding in findings}
    return [f for f in findings if not f.key or (source := job.resolved.source(f.key)) == f.key or source not in keys]
