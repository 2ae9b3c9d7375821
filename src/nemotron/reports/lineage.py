"""Where a run came from, as rows of a table: data and models with their hashes, config, versions."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from nemotron.job import CompiledJob
from nemotron.reports.asked import extensions

_JUDGE = ("env", "nemo_gym", "genrm_model", "responses_api_models", "vllm_model")


@dataclass(frozen=True, slots=True)
class Fact:
    """One line of the lineage table."""

    name: str
    value: str
    sha256: str = ""


def lineage(job: CompiledJob) -> list[Fact]:
    """The facts of a compiled job; a path of the config that is not among its inputs is listed without a hash.

    A job that says what was asked has data and models there, so they are not repeated here.
    """
    if job.asked.inputs:
        # The page lists them with their sizes.
        return list(_versions(job))
    facts = [Fact(one.key, one.path, one.fingerprint or "") for one in job.inputs]
    listed = {fact.value for fact in facts}
    facts += [fact for fact in _from_config(job.config) if fact.value not in listed]
    return [*facts, *_versions(job)]


def _from_config(config: dict[str, Any]) -> Iterator[Fact]:
    judge = _get(config, *_JUDGE)
    named = [
        ("policy.model_name", _get(config, "policy", "model_name")),
        ("judge model", _get(judge, "model")),
        ("judge endpoint", _get(judge, "base_url")),
    ]
    # With a manifest the files that the data sets name are not read.
    if not _get(config, "data", "manifest_path"):
        roles = ("train", "validation")
        named += [(f"data.{role}.data_path", _get(config, "data", role, "data_path")) for role in roles]
    if not _get(config, "eval", "heldout", "split"):
        named.append(("eval.heldout.data_path", _get(config, "eval", "heldout", "data_path")))
    for name, value in named:
        if value:
            yield Fact(name, str(value))


def _versions(job: CompiledJob) -> Iterator[Fact]:
    yield Fact("config", job.config_name, job.fingerprint)
    for change in extensions(job):
        yield Fact("extended", change)
    made = job.provenance
    versions = {"nemotron": made.nemotron, "python": made.python, **made.packages}
    yield Fact("versions", ", ".join(f"{name} {version}" for name, version in versions.items() if version))
    yield Fact("platform", made.platform)
    if made.git is not None:
        yield Fact("git commit", f"{made.git.sha}{' with local changes' if made.git.dirty else ''}")


def _get(value: Any, *keys: str) -> Any:
    for key in keys:
        value = value.get(key) if isinstance(value, dict) else None
    return value
