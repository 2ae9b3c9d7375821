"""What `steps run` was asked for, and the plans that overrides make of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from nemotron.artifacts.made import by_name
from nemotron.compile.asked import asked
from nemotron.compile.plan import Plan, compile_job
from nemotron.config.layers import Resolved, load
from nemotron.config.overrides import Override
from nemotron.errors import UsageError
from nemotron.job import Asked
from nemotron.manifest import Declaration, Step

if TYPE_CHECKING:
    from nemotron.profiles.load import Profile


@dataclass(frozen=True, slots=True)
class Request:
    """One command, without its overrides."""

    step: Step
    code: Declaration
    config: str
    """Name or path of the YAML."""
    profile: Profile | None
    runs_dir: Path
    words: Sequence[str]
    """Of the command line."""
    passthrough: Sequence[str]
    """Those after ``--``."""
    resume: bool

    def load(self, overrides: Sequence[Override]) -> Resolved:
        """The config. The run folder is named when it is made; until then its paths are written with a placeholder."""
        place = str(self.runs_dir / "RUN_ID")
        found = by_name(self.runs_dir)
        return load(
            self.step.config_dir, self.config, overrides, run_dir=place, model=self.code.config, artifacts=found
        )

    def compile(self, overrides: Sequence[Override]) -> Plan:
        """The plan, for the place of the profile where there is one.

        Raises:
            UsageError: there are words after ``--`` that nobody would read.
        """
        resolved, place = self.load(overrides), None
        if self.profile is not None:
            from nemotron.executors.elsewhere import place_of, with_time_limit

            place = place_of(self.profile)
            resolved = with_time_limit(self.profile, resolved, overrides, self.load)
        plan = compile_job(self.step, resolved, self.code, runs_dir=self.runs_dir, resume=self.resume, place=place)
        _refuse_passthrough(self.passthrough, plan)
        return plan

    def asked(self, plan: Plan) -> Asked:
        """What the job keeps of the command."""
        return asked(plan, self.words, self.step.config_dir, self.code.config)


def _refuse_passthrough(words: Sequence[str], plan: Plan) -> None:
    """Words after `--` are for scripts that are not ours.

    Raises:
        UsageError: nobody would read them.
    """
    if not words or plan.engine not in ("embedded", "plain"):
        return
    hint = "only NeMo-RL's scripts take words after `--`; config keys are written `key=value` before it"
    if "--only" in words:
        hint = "write `--only` before the `--`"
    raise UsageError(f"the {plan.engine} engine takes no passthrough words", hint=hint)
