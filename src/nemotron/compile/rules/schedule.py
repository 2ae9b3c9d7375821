"""Rules of the course of a run: steps, optimizers, learning-rate schedules."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from nemotron.compile.jobs.base import AnyJob
from nemotron.compile.probes.torch_optim import Family, faults
from nemotron.compile.rules.base import Rules
from nemotron.config.schema.policy import OptimizerConfig, SchedulerEntry
from nemotron.errors import Finding

rules: Rules[AnyJob] = Rules("schedule")


@rules.rule("no-steps")
def steps_are_made(job: AnyJob) -> Iterator[Finding]:
    """Silent upstream: -1 means "no limit" in some sections; in others it ends the run before its first step."""
    key, most = f"{job.section}.max_num_steps", job.course.max_num_steps
    if job.steps_may_be_endless and (most == 0 or most < -1):
        yield job.error(key, f"`{key}` is {most}", hint="set -1 to end with the last epoch")
    elif not job.steps_may_be_endless and most < 1:
        yield job.error(
            key,
            f"with `{key}` {most} no step is made",
            hint="for whole epochs set a number that is larger than they have, for example 1000000",
        )


@rules.rule("optimizer")
def torch_takes_them(job: AnyJob) -> Iterator[Finding]:
    """Otherwise found when all models are loaded. NeMo-RL takes classes of one's own; `learning-rate` looks at `lr`."""
    for trained in job.optimizers():
        entries: list[tuple[str, Family, OptimizerConfig | SchedulerEntry]] = []
        if trained.settings is not None:
            entries.append((f"{trained.key}.optimizer", "optimizers", trained.settings))
        key = f"{trained.key}.scheduler"
        listed = isinstance(job.resolved.get(key), list)
        entries += [(f"{key}.{i}" if listed else key, "schedulers", one) for i, one in enumerate(trained.schedulers)]
        for place, family, entry in entries:
            if entry.name is None:
                continue
            for fault in faults(family, entry.name, entry.kwargs or {}, any_name=job.engine != "embedded"):
                if family == "schedulers" or fault.place != ".kwargs.lr":
                    yield job.error(place + fault.place, fault.message, hint=fault.hint)


@rules.rule("schedulers", number=19)
def schedulers_form_a_sequence(job: AnyJob) -> Iterator[Finding]:
    """Several schedulers need, as last entry, the steps at which one hands over to the next."""
    for trained in job.optimizers():
        problem = _sequence_problem(trained.schedulers)
        if problem:
            key = f"{trained.key}.scheduler"
            yield job.error(key, f"`{key}` {problem[0]}", hint=problem[1])


def _sequence_problem(entries: Sequence[SchedulerEntry]) -> tuple[str, str] | None:
    """What is wrong with a list of schedulers, and what would be right."""
    named = [entry for entry in entries if entry.milestones is None]
    given = [step for entry in entries for step in entry.milestones or []]
    wanted = len(named) - 1
    if any(entry.milestones is not None for entry in entries[:-1]):
        return "has `milestones` before its last entry", "end the list with `milestones: [...]`"
    if entries and not named:
        return "has milestones but no scheduler", "name a scheduler before them"
    if named and len(given) != wanted:
        return (
            f"has {len(named)} scheduler{'s' if wanted else ''} and {len(given)} milestones, it needs {wanted}",
            f"end the list with `milestones: [...]` of {wanted} steps" if wanted else "leave the milestones out",
        )
    if given != sorted(set(given)):
        return "has milestones that do not increase", "list each step number once, in order"
    return None
