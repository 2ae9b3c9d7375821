"""Several plans at once: what is wrong with some of them is told with the values that make it so, and none starts."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from nemotron.compile.plan import Plan
from nemotron.compile.secrets import secret_keys
from nemotron.config.overrides import Override
from nemotron.config.sweep import Combination
from nemotron.errors import Finding, UsageError
from nemotron.job import SweepMember
from nemotron.runs.folder import new_run_id
from nemotron.suggest import listed

NAMED = 3
"""So many combinations are named with a finding that not all runs share."""


@dataclass(frozen=True, slots=True)
class Member:
    """One run of a sweep."""

    number: int
    combination: Combination
    plan: Plan

    def part_of(self, sweep: str, count: int) -> SweepMember:
        """What its ``job.json`` says of the sweep."""
        return SweepMember(id=sweep, number=self.number, count=count, values=self.combination.values)


def compile_all(
    combinations: Sequence[Combination],
    overrides: Sequence[Override],
    compile_one: Callable[[Sequence[Override]], Plan],
) -> list[Member]:
    """A plan for every combination, each with a run id of its own.

    Raises:
        UsageError: a secret is swept, two combinations make the same job, or two runs would write to one place.
    """
    members: list[Member] = []
    ids: set[str] = set()
    jobs: dict[str, Combination] = {}
    written: dict[str, Combination] = {}
    for number, one in enumerate(combinations, 1):
        plan = compile_one([*overrides, *one.overrides])
        _refuse_secrets(plan, one)
        if plan.ok and (other := jobs.setdefault(plan.fingerprint, one)) is not one:
            raise UsageError(
                f"`{other}` and `{one}` make the same job",
                hint="sweep keys that change it",
                origin=one.overrides[0].origin,
            )
        _refuse_common_outputs(plan, one, written)
        # Ids hold a second and four random digits: among some hundred of one second, two are soon the same.
        while plan.run_id in ids:
            plan = replace(plan, run_id=new_run_id(plan.step, plan.config_name))
        ids.add(plan.run_id)
        members.append(Member(number, one, plan))
    return members


def findings_of(members: Sequence[Member]) -> tuple[Finding, ...]:
    """What was found, each finding once; one that not all runs share says which have it."""
    found: dict[tuple[object, ...], tuple[Finding, list[Member]]] = {}
    for member in members:
        for finding in member.plan.findings:
            said = (finding.severity, finding.name, finding.message, finding.key, finding.hint)
            found.setdefault(said, (finding, []))[1].append(member)
    return tuple(
        finding if len(having) == len(members) else replace(finding, message=f"{finding.message} ({_names(having)})")
        for finding, having in found.values()
    )


def _names(members: Sequence[Member]) -> str:
    more = f" and {len(members) - NAMED} more" if len(members) > NAMED else ""
    return f"with {listed(str(member.combination) for member in members[:NAMED])}{more}"


def _refuse_common_outputs(plan: Plan, one: Combination, written: dict[str, Combination]) -> None:
    """What lies in its run folder is a run's own; a folder that two name would hold the work of either."""
    for file in plan.outputs if plan.ok else ():
        if Path(file.path).absolute().is_relative_to(plan.runs_dir.absolute()):
            continue
        other = written.setdefault(os.path.abspath(file.path), one)
        if other is not one:
            raise UsageError(
                f"`{other}` and `{one}` would both write `{file.path}` ({file.key or file.role})",
                hint="write into the run folder, as in `${run_dir:}/checkpoints`, or sweep that key along",
                origin=plan.resolved.origin(file.key) if file.key else one.overrides[0].origin,
            )


def _refuse_secrets(plan: Plan, combination: Combination) -> None:
    """The command line stands in the job of every run, and one run knows its own secret only."""
    for key in secret_keys(plan.config):
        for one in combination.overrides:
            if one.key == key or key.startswith(f"{one.key}."):
                raise UsageError(f"`{one.key}` is for a secret, which cannot be swept", origin=one.origin)
