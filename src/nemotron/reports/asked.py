"""What a run was asked to do, for its page: the command, data and models by name, what differs from the default."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from nemotron.config.origins import PYTHON
from nemotron.job import CompiledJob, Resumed
from nemotron.runs.words import relative

FEW = 12
"""So many values of config files are shown without being asked for."""


@dataclass(frozen=True, slots=True)
class Attempt:
    """A command that went on with the run."""

    command: str
    about: str
    """When, from where, and with which new end."""


@dataclass(frozen=True, slots=True)
class Input:
    """Data or a model."""

    role: str
    name: str
    """Name on the hub, path, or address."""
    size: str
    sha256: str


@dataclass(frozen=True, slots=True)
class Difference:
    """A value that is not the one of the step's default config."""

    key: str
    default: str
    value: str
    origin: str


@dataclass(frozen=True, slots=True)
class Asked:
    """Empty where the run is older than what its ``job.json`` should say."""

    command: str
    attempts: list[Attempt]
    inputs: list[Input]
    typed: list[Difference]
    """From the command line or the environment."""
    written: list[Difference]
    """From config files."""

    @property
    def many(self) -> bool:
        """Whether the values of config files are better folded away."""
        return len(self.written) > FEW


def asked_of(job: CompiledJob) -> Asked:
    """What a job says under ``asked``, with the hashes that it has of the inputs."""
    asked = job.asked
    hashes = {one.key: (one.fingerprint or "").removeprefix("sha256:") for one in job.inputs}
    inputs = [
        Input(role, relative(name), size, hashes.get(key) or hashes.get(role, ""))
        for role, key, name, size in asked.inputs
    ]
    if asked.inputs and (endpoint := _judge(job).get("base_url")):
        inputs.append(Input("judge", f"{_judge(job).get('model')} at {endpoint}", "", ""))
    rows = [Difference(*row) for row in asked.differences]
    typed = [row for row in rows if row.origin.startswith(("command line", "environment", PYTHON))]
    return Asked(
        command=_shell(asked.command),
        attempts=[_attempt(entry) for entry in asked.resumed],
        inputs=inputs,
        typed=typed,
        written=[row for row in rows if row not in typed],
    )


def extensions(job: CompiledJob) -> list[str]:
    """Changes of the end of the run, in words: ``dpo.max_num_steps 60 → 90``."""
    return [f"{entry.key} {entry.was} → {entry.now}" for entry in job.asked.resumed if entry.key]


def _attempt(entry: Resumed) -> Attempt:
    begun = entry.at[:16].replace("T", " ") + " UTC"
    parts = [begun, f"was {entry.state}", f"from {entry.checkpoint}" if entry.checkpoint else "from the start"]
    if entry.key:
        parts.append(f"{entry.key} {entry.was} → {entry.now}")
    parts += [f"with another {one.key} than before" for one in entry.changed]
    return Attempt(_shell(entry.command), ", ".join(parts))


def _shell(words: Sequence[str]) -> str:
    return shlex.join(["nemotron", *words]) if words else ""


def _judge(job: CompiledJob) -> dict[str, Any]:
    at: Any = job.config
    for key in ("env", "nemo_gym", "genrm_model", "responses_api_models", "vllm_model"):
        at = at.get(key) if isinstance(at, dict) else None
    return at if isinstance(at, dict) else {}
