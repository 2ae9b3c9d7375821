"""Runs side by side: in what their configs differ, how they went, and how much of that is the seed.

Runs that differ in nothing but seeds are one group; a group has a mean, and the standard deviation of its runs around
it. What comes first is what says whether a reward was earned (held-out, KL, spread, length), not the reward.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

from nemotron.errors import NotFoundError, UsageError
from nemotron.job import CompiledJob
from nemotron.runs import metrics as m
from nemotron.runs.folder import RunFolder
from nemotron.runs.jsonl import Row
from nemotron.runs.status import UNREADABLE
from nemotron.runs.views import view_of
from nemotron.runs.words import UNKNOWN, fixed, label, percent
from nemotron.suggest import closest, listed

NOT_SET = "not set"
_OWN = Path("/RUN_DIR")
_STEP = "step"


@dataclass(frozen=True, slots=True)
class Measure:
    """A figure that runs are compared by."""

    key: str
    """Of the summary."""
    title: str
    digits: int = 3
    share: bool = False

    def value(self, summary: Mapping[str, Any]) -> float | None:
        """Of one run."""
        if self.key.startswith("heldout."):
            return m.number((summary.get("heldout") or {}).get(self.key.partition(".")[2]))
        return m.number(summary.get(self.key))

    def text(self, mean: float | None, spread: float | None = None) -> str:
        """For people."""
        if mean is None:
            return UNKNOWN
        shown: Callable[[float], str] = percent if self.share else (lambda value: fixed(value, self.digits))
        return shown(mean) if spread is None else f"{shown(mean)} ± {shown(spread)}"


MEASURES = (
    Measure("heldout.after", "held-out", share=True),
    Measure("heldout.before", "held-out before", share=True),
    Measure("kl", "KL", 4),
    Measure("kl_max", "largest KL", 4),
    Measure("reward_std", "reward spread"),
    Measure("response_length", "length", 1),
    Measure("truncation_rate", "truncated", share=True),
    Measure("missing_share", "missing", share=True),
    Measure("reward", "reward"),
)
"""In every comparison, in this order, where one of its runs has it; then those of the runs' views."""
_SHARES = ("accuracy", "pass_rate", "_share", "agreement")


@dataclass(frozen=True)
class Compared:
    """One run."""

    run: RunFolder
    job: CompiledJob
    summary: Mapping[str, Any]
    rows: Sequence[Row]
    values: Mapping[str, str]
    """What it has for each key in which the runs differ."""


@dataclass(frozen=True)
class Group:
    """Runs that differ in seeds alone."""

    values: Mapping[str, str]
    runs: tuple[Compared, ...]

    @property
    def name(self) -> str:
        """What sets it apart."""
        return " ".join(f"{key.rpartition('.')[2]}={value}" for key, value in self.values.items())

    def mean(self, measure: Measure) -> float | None:
        """Over the runs that have it."""
        return m.mean([measure.value(one.summary) for one in self.runs])

    def spread(self, measure: Measure) -> float | None:
        """Standard deviation between the runs; None of fewer than two."""
        return spread_of([measure.value(one.summary) for one in self.runs])


@dataclass(frozen=True)
class Comparison:
    """Everything that table, JSON and page show."""

    runs: tuple[Compared, ...]
    groups: tuple[Group, ...]
    """Of the runs that can be read: of another one there is no figure to take a mean of."""
    keys: tuple[str, ...]
    """Keys in which the runs differ, seeds last."""
    seeds: tuple[str, ...]
    measures: tuple[Measure, ...]

    @property
    def has_seeds(self) -> bool:
        """Whether a group has more than one run."""
        return any(len(group.runs) > 1 for group in self.groups)

    def to_json(self) -> dict[str, Any]:
        """For machines; what is not known is None."""
        return {
            "differs": list(self.keys),
            "seeds": list(self.seeds),
            "runs": [
                {
                    "id": one.run.id,
                    "step": one.job.step,
                    "status": one.summary["status"],
                    "sweep": one.job.asked.sweep.id if one.job.asked.sweep else None,
                    "values": dict(one.values),
                    "figures": {measure.key: measure.value(one.summary) for measure in self.measures},
                }
                for one in self.runs
            ],
            "groups": [
                {
                    "values": dict(group.values),
                    "runs": [one.run.id for one in group.runs],
                    "figures": {
                        measure.key: {"mean": group.mean(measure), "spread": group.spread(measure)}
                        for measure in self.measures
                    },
                }
                for group in self.groups
            ],
        }


def spread_of(values: m.Column) -> float | None:
    """Standard deviation of what is known of a sample; None of fewer than two values."""
    known = m.known(values)
    return stdev(known) if len(known) > 1 else None


def compare(runs: Sequence[RunFolder], summarised: Callable[[RunFolder], Mapping[str, Any]]) -> Comparison:
    """Compare two runs or more.

    Args:
        summarised: the summary of a run.

    Raises:
        UsageError: there are fewer. ArtifactError, DataError: a run is damaged.
    """
    distinct = list({run.path: run for run in runs}.values())
    if len(distinct) < 2:
        raise UsageError("a comparison needs two runs or more", hint="name them, or a sweep with `--sweep ID`")
    jobs = [run.job() for run in distinct]
    table = differences(jobs)
    seeds = tuple(key for key in table if is_seed(key))
    keys = (*(key for key in table if key not in seeds), *seeds)
    compared = tuple(
        Compared(run, job, summarised(run), m.by_step(run.read_metrics()), {key: table[key][index] for key in keys})
        for index, (run, job) in enumerate(zip(distinct, jobs, strict=True))
    )
    groups: dict[tuple[str, ...], list[Compared]] = {}
    apart = [key for key in keys if key not in seeds]
    for one in compared:
        if one.summary["status"] == UNREADABLE:
            continue
        groups.setdefault(tuple(one.values[key] for key in apart), []).append(one)
    measures = [*MEASURES, *_of_views(jobs)]
    return Comparison(
        runs=compared,
        groups=tuple(
            Group(dict(zip(apart, values, strict=True)), tuple(members)) for values, members in groups.items()
        ),
        keys=keys,
        seeds=seeds,
        measures=tuple(one for one in measures if any(one.value(run.summary) is not None for run in compared)),
    )


def of_sweep(runs: Sequence[RunFolder], jobs: Sequence[CompiledJob | None], name: str) -> list[RunFolder]:
    """The runs of a sweep that is called by its name or a unique part of it, in the order of the sweep.

    Raises:
        NotFoundError: no sweep, or more than one, goes by that name.
    """
    members: dict[str, list[tuple[int, RunFolder]]] = {}
    for run, job in zip(runs, jobs, strict=True):
        if job is not None and (part := job.asked.sweep) is not None:
            members.setdefault(part.id, []).append((part.number, run))
    found = [sweep for sweep in members if sweep == name] or [
        sweep for sweep in members if name and (sweep.startswith(name) or sweep.endswith(name))
    ]
    if name == "last" and members:
        found = [list(members)[-1]]
    if len(found) == 1:
        return [run for _, run in sorted(members[found[0]], key=lambda member: member[0])]
    if found:
        raise NotFoundError(f"`{name}` fits {len(found)} sweeps", hint=f"say which: {listed(found)}")
    guess = closest(name, members)
    known = f"did you mean `{guess}`?" if guess else f"there are: {listed(members)}"
    raise NotFoundError(f"no sweep `{name}`", hint=known if members else "`steps run ... --sweep KEY=V1,V2` makes one")


def is_seed(key: str) -> bool:
    """Whether a config key is a seed."""
    name = key.rpartition(".")[2]
    return name == "seed" or name.endswith("_seed")


def differences(jobs: Sequence[CompiledJob]) -> dict[str, list[str]]:
    """Key -> the value of every job, of keys in which they differ.

    Of keys that only follow others (``${grpo.seed}``) none is named: those that a sweep or a command has written tell
    everything. Jobs that say nothing of what was written are compared by their whole configs.
    """
    flats = [_flat(job.at(_OWN).config) for job in jobs]
    keys = [
        key
        for key in dict.fromkeys(key for flat in flats for key in flat)
        if len({_at(flat, key) for flat in flats}) > 1
    ]
    sweeps = {job.asked.sweep.id if job.asked.sweep else None for job in jobs}
    if len(sweeps) == 1 and None not in sweeps:
        written = {key for job in jobs if job.asked.sweep for key, _ in job.asked.sweep.values}
    else:
        written = {row[0] for job in jobs for row in job.asked.differences}
    named = [key for key in keys if key in written]
    found = {key: [_at(flat, key) for flat in flats] for key in named or keys}
    if len({job.step for job in jobs}) > 1:
        found = {_STEP: [job.step for job in jobs], **found}
    return {**found, **_changed_inputs(jobs)}


def _changed_inputs(jobs: Sequence[CompiledJob]) -> dict[str, list[str]]:
    """Inputs of one name with another content: the config does not show them."""
    known = [{(one.key, one.path): one.fingerprint for one in job.inputs if one.fingerprint} for job in jobs]
    shared = [place for place in known[0] if all(place in one for one in known)]
    return {
        f"{key} (content)": [(one[key, path] or "").removeprefix("sha256:")[:12] for one in known]
        for key, path in shared
        if len({one[key, path] for one in known}) > 1
    }


def _of_views(jobs: Sequence[CompiledJob]) -> list[Measure]:
    found: dict[str, Measure] = {}
    for job in jobs:
        view = view_of(job)
        for number in view.numbers if view else ():
            share = number.key.endswith(_SHARES)
            found.setdefault(number.key, Measure(number.key, label(number.key), share=share))
    return list(found.values())


def _at(flat: Mapping[str, str], key: str) -> str:
    return flat.get(key, NOT_SET)


def _flat(value: Any, key: str = "") -> dict[str, str]:
    """Dotted key -> value as a person writes it; lists are values."""
    if isinstance(value, dict) and value:
        found: dict[str, str] = {}
        for name, child in value.items():
            found |= _flat(child, f"{key}.{name}" if key else str(name))
        return found
    return {key: value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)}


def course(group: Group, metric: str) -> list[tuple[float, float, float | None]]:
    """(step, mean, spread) of a metric over the runs of a group, at the steps that any of them has it."""
    at: dict[float, list[float]] = {}
    for one in group.runs:
        for row in one.rows:
            step, value = m.number(row.get("step")), m.number(row.get(metric))
            if step is not None and value is not None:
                at.setdefault(step, []).append(value)
    return [(step, fmean(values), spread_of(list(values))) for step, values in sorted(at.items())]
