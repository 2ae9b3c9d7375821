"""How a step declares itself in its ``step.py``: the model of its config, how a config is judged, and who runs it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from pydantic import BaseModel

from nemotron.compile.jobs.base import AnyJob
from nemotron.compile.jobs.step import AnyStepJob, PlainJob
from nemotron.compile.plan import Preflight, Surroundings
from nemotron.compile.rules.base import Stages, check, name_too_long
from nemotron.compile.secrets import secrets_in
from nemotron.config.layers import Resolved
from nemotron.errors import Finding
from nemotron.manifest import EngineName


@dataclass(frozen=True, kw_only=True)
class TrainingStep:
    """A step that trains."""

    config: type[BaseModel]
    job: type[AnyJob]
    """What the rules know of a config of this step."""
    rules: Stages
    """Families of rules in their order. All stages run; the first error in this order decides the exit code."""
    engines: Mapping[EngineName, str]
    """The entry of every engine that can run it."""

    def preflight(self, config: Any, resolved: Resolved, where: Surroundings) -> Preflight:
        """Choose the engine, run every rule, and describe what would run."""
        return _preflight(self.job.of(config, resolved, where, self.engines), self.rules)


@dataclass(frozen=True, kw_only=True)
class PlainStep:
    """A step that trains nothing: ordinary Python in the worker's process."""

    config: type[BaseModel]
    job: type[PlainJob[Any]]
    """What the rules know of a config of this step."""
    rules: Stages
    """Families of rules in their order."""
    run: str
    """``module:function`` that takes the attempt."""

    @property
    def engines(self) -> Mapping[EngineName, str]:
        """The one engine that it needs."""
        return {"plain": self.run}

    def preflight(self, config: Any, resolved: Resolved, where: Surroundings) -> Preflight:
        """Run every rule, and describe what would run."""
        return _preflight(self.job.of(config, resolved, where, self.engines), self.rules)


def _preflight(job: AnyStepJob, rules: Stages) -> Preflight:
    findings = check(job, rules)
    try:
        return _described(job, findings)
    except OSError as error:
        # The rules were silent about what the description looks up: what they would have said is said now.
        if (found := name_too_long(error, job)) is None:
            raise
        known = any(finding.severity == "error" for finding in findings)
        told = findings if known else (*findings, replace(found, name="name-too-long"))
        secrets = secrets_in(job.config)
        return Preflight(engine=job.engine, engine_reason=job.engine_reason, findings=told, secrets=secrets)


def _described(job: AnyStepJob, findings: tuple[Finding, ...]) -> Preflight:
    return Preflight(
        engine=job.engine,
        engine_reason=job.engine_reason,
        findings=findings,
        processes=tuple(job.processes()),
        inputs=tuple(job.inputs()),
        outputs=tuple(job.outputs()),
        work=job.work(),
        memory=job.memory(),
        promises=tuple(job.promises()),
        secrets=secrets_in(job.config),
    )
