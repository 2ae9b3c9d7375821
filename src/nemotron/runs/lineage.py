"""Where a run came from, as rows of a table: data and models with their hashes, config, versions."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from nemotron.runs.asked import extensions

_JUDGE = ("env", "nemo_gym", "genrm_model", "responses_api_models", "vllm_model")


@dataclass(frozen=True, slots=True)
class Fact:
    """One line of the lineage table."""

    name: str
    value: str
    sha256: str = ""


def lineage(job: dict[str, Any]) -> list[Fact]:
    """The facts of ``job.json``. ``job["inputs"]`` is a list of objects with ``key`` or ``type``, ``path``, ``sha256``;
    a path of the config that is not among them is listed without a hash. A job that says what was asked has data and
    models there, so they are not repeated here."""
    config = job.get("config")
    if (job.get("asked") or {}).get("inputs"):
        # The page lists them with their sizes.
        return list(_versions(job))
    facts = list(_inputs(job.get("inputs")))
    listed = {fact.value for fact in facts}
    facts += [fact for fact in _from_config(config if isinstance(config, dict) else {}) if fact.value not in listed]
    return [*facts, *_versions(job)]


def _inputs(inputs: Any) -> Iterator[Fact]:
    for item in inputs if isinstance(inputs, list) else []:
        if isinstance(item, dict) and item.get("path"):
            yield Fact(str(item.get("key") or item.get("type") or "input"), str(item["path"]), _hash(item))


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


def _versions(job: dict[str, Any]) -> Iterator[Fact]:
    yield Fact("config", str(job.get("config_name", "–")), str(job.get("fingerprint") or ""))
    for change in extensions(job):
        yield Fact("extended", change)
    made = job.get("provenance")
    if not isinstance(made, dict):
        return
    packages = _get(made, "packages")
    versions = {"nemotron": made.get("nemotron"), "python": made.get("python")}
    versions |= packages if isinstance(packages, dict) else {}
    yield Fact("versions", ", ".join(f"{name} {version}" for name, version in versions.items() if version))
    yield Fact("platform", str(made.get("platform", "–")))
    sha = _get(made, "git", "sha")
    if sha:
        yield Fact("git commit", f"{sha}{' with local changes' if _get(made, 'git', 'dirty') else ''}")


def _hash(item: dict[str, Any]) -> str:
    return str(item.get("sha256") or item.get("fingerprint") or "")


def _get(value: Any, *keys: str) -> Any:
    for key in keys:
        value = value.get(key) if isinstance(value, dict) else None
    return value
