"""Profile files -> typed profiles.

Read are, the nearest first: the file that NEMOTRON_ENV_FILE names, alone; else the ``env.toml`` and ``profiles/*.toml``
found in this folder or the nearest one above, up to the root of the project; and the shipped ones below them. A nearer
profile hides one of the same name farther away. A profile may extend another one, wherever that stands.
"""

from __future__ import annotations

import os
import re
import tomllib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from datetime import date, time
from functools import cached_property
from pathlib import Path
from typing import Any

from nemotron.config.layers import Resolved
from nemotron.config.merge import merge
from nemotron.config.origins import Node, kind, located, plain, shown, walk
from nemotron.config.resolvers import interpolate
from nemotron.config.validate import validate
from nemotron.disk.documents import MOST_TOML, read_bytes
from nemotron.disk.home import expanded
from nemotron.errors import CompileError, ConfigError, Finding, NotFoundError, Origin
from nemotron.profiles import reference
from nemotron.profiles.model import MODELS, BaseProfile, placeholders
from nemotron.suggest import closest, listed

SHIPPED = Path(__file__).parent / "shipped"
"""Profiles with the names that the documentation uses, and placeholders to fill in."""
ENV_FILE = "NEMOTRON_ENV_FILE"
NO_PROFILES = frozenset({"wandb", "cli", "cache", "artifacts"})
"""Tables of ``env.toml`` that are no profiles: settings of NVIDIA's command."""
_VARIABLE = re.compile(r"\$\{oc\.env:\s*(\w+)")
_WORD = re.compile(r"[\w.]+")


@dataclass(frozen=True)
class Profile:
    """A profile, typed, and where it was written."""

    name: str
    settings: BaseProfile = field(repr=False)
    """May hold secrets: values of ``env_vars`` that were read from the environment."""
    files: tuple[Path, ...]
    """The files of the chain, parents first."""
    raw: Mapping[str, Any] = field(repr=False)
    """Before interpolation; holds no secrets."""
    origins: Mapping[str, Origin] = field(repr=False)

    @property
    def unfilled(self) -> list[str]:
        """Keys that still hold a placeholder."""
        return placeholders(self.settings.model_dump(by_alias=True))

    @property
    def from_environment(self) -> dict[str, str]:
        """Those of ``env_vars`` that are read from the environment: name -> the variable they are read from.

        Of several (a default of a default), the first that is set. Other keys are followed, however far.
        """
        found = {}
        for name in self.raw.get("env_vars", {}):
            if read := _read_by(self.raw, ("env_vars", name), set()):
                found[name] = next((one for one in read if one in os.environ), read[0])
        return found

    @property
    def snapshot(self) -> dict[str, Any]:
        """What is kept with a run: everything that is set, values from the environment as they are written."""
        return {key: value for key, value in self.raw.items() if key != "extends"}

    def origin(self, key: str) -> Origin:
        """Where a key was written, or else the profile."""
        return self.origins.get(key) or self.origins[""]


def _read_by(raw: Mapping[str, Any], key: tuple[str, ...], seen: set[tuple[str, ...]]) -> list[str]:
    """Variables that the text at ``key`` reads, itself or through other keys that it names in whatever way.

    A word that only looks like a key is followed too: a value that is no secret may be hidden, no secret is shown.
    """
    at: Any = raw
    for name in key:
        at = at.get(name) if isinstance(at, Mapping) else None
    if key in seen or not isinstance(at, str) or "${" not in at:
        return []
    seen.add(key)
    found = _VARIABLE.findall(at)
    for word in _WORD.findall(at):
        names = tuple(word.strip(".").split("."))
        for other in (names, (*key[:-1], *names)):
            found += _read_by(raw, other, seen)
    return found


@dataclass(frozen=True)
class Table:
    """One table of a file."""

    name: str
    file: Path
    values: dict[str, Any]

    @property
    def origin(self) -> Origin:
        """File and table."""
        return Origin(f"{shown(self.file)} [{self.name}]")


class Profiles:
    """All profiles that can be used from a folder."""

    def __init__(self, cwd: Path | None = None, environ: Mapping[str, str] | None = None) -> None:
        self._environ = os.environ if environ is None else environ
        self._cwd = Path.cwd() if cwd is None else cwd

    @cached_property
    def tables(self) -> dict[str, Table]:
        """Name -> table, the nearest of a name.

        Raises:
            ConfigError: a file cannot be read, or two of the same tier have a profile of one name.
            NotFoundError: NEMOTRON_ENV_FILE names a file that is not there.
        """
        found: dict[str, Table] = {}
        for tier in self._tiers():
            nearer = dict(found)
            for file in tier:
                for table in _tables(file):
                    if table.name in nearer:
                        continue
                    if (other := found.get(table.name)) is not None:
                        raise ConfigError(
                            f"the profile `{table.name}` stands in {shown(other.file)} and in {shown(file)}",
                            hint="rename one of the two",
                        )
                    found[table.name] = table
        return found

    def names(self) -> list[str]:
        """Names for `-r` and `-b`: tables that have an executor, themselves or from the one that they extend."""
        return sorted(name for name in self.tables if self._executor(name))

    def get(self, name: str) -> Profile:
        """The profile ``name``, complete.

        Raises:
            NotFoundError: there is none of that name.
            CompileError: with every key that is wrong.
            ConfigError: `extends` goes in a circle or nowhere, or there is no `executor`.
        """
        chain = self._chain(name)
        root = Node({}, chain[-1].origin)
        for table in chain:
            values = reference.translated(table.values, table.origin)
            merge(root, located(values, table.origin))
        root.value.pop("extends", None)
        return _typed(name, root, tuple(table.file for table in chain))

    def _executor(self, name: str) -> str | None:
        seen: set[str] = set()
        at: str | None = name
        while isinstance(at, str) and at in self.tables and at not in seen:
            seen.add(at)
            values = self.tables[at].values
            if isinstance(values.get("executor"), str):
                return str(values["executor"])
            at = values.get("extends")
        return None

    def _chain(self, name: str) -> list[Table]:
        """The table and those that it extends, parents first."""
        if name not in self.tables:
            names = self.names()
            guess = closest(name, names)
            hint = f"did you mean `{guess}`? " if guess else ""
            raise NotFoundError(
                f"there is no profile `{name}`", hint=f"{hint}`nemotron profiles list` shows the {len(names)} there are"
            )
        chain = [self.tables[name]]
        while (parent := chain[0].values.get("extends")) is not None:
            child = chain[0]
            if not isinstance(parent, str):
                raise ConfigError("`extends` should be the name of one profile", origin=child.origin)
            if parent not in self.tables:
                # Those that extend it in their turn would only go in a circle.
                others = [other for other in self.tables if other not in {table.name for table in chain}]
                guess = closest(parent, others)
                raise ConfigError(
                    f"`{child.name}` extends `{parent}`, which does not exist",
                    hint=f"did you mean `{guess}`?"
                    if guess
                    else f"there are {listed(sorted(others))}"
                    if others
                    else None,
                    origin=child.origin,
                )
            if any(table.name == parent for table in chain):
                circle = " -> ".join([*(table.name for table in reversed(chain)), parent])
                raise ConfigError(f"`extends` goes in a circle: {circle}", origin=child.origin)
            chain.insert(0, self.tables[parent])
        return chain

    def _tiers(self) -> Iterator[list[Path]]:
        named = self._environ.get(ENV_FILE)
        if named:
            file = expanded(named)
            if not file.is_file():
                raise NotFoundError(
                    f"{ENV_FILE} names `{named}`, which is no file", hint="unset the variable, or name a TOML file"
                )
            yield [file]
        else:
            yield _nearest(self._cwd)
        yield sorted(SHIPPED.glob("*.toml"))


def from_snapshot(name: str, values: dict[str, Any], file: Path) -> Profile:
    """A profile as it was kept with a run, with today's environment.

    Raises:
        ConfigError, CompileError: as :meth:`Profiles.get`.
    """
    return _typed(name, located(values, Origin(shown(file))), (file,))


def _typed(name: str, root: Node, files: tuple[Path, ...]) -> Profile:
    raw = plain(root)
    executor = raw.get("executor")
    if not isinstance(executor, str) or executor not in MODELS:
        raise _no_executor(name, executor, root.origin)
    origins = {key: node.origin for key, node in walk(root)}
    # A profile may speak of the environment and of its own keys; `${run_dir:}` and assets are of a job.
    values, findings = interpolate(raw, origins, run_dir="RUN_DIR")
    findings += reference.refused(raw, executor, origins)
    if findings:
        raise CompileError(_named(findings, name))
    resolved = Resolved(values, raw, origins, files)
    settings, findings = validate(resolved, MODELS[executor])
    if settings is None:
        raise CompileError(_named(findings, name))
    return Profile(name, settings, files, raw, origins)


def _no_executor(name: str, executor: object, origin: Origin) -> ConfigError:
    if executor is None:
        return ConfigError(
            f"the profile `{name}` names no executor",
            hint=f"set `executor` to one of {listed(MODELS)}, or extend a profile that has one",
            origin=origin,
        )
    if not isinstance(executor, str):
        return ConfigError(f"`executor` should be one of {listed(MODELS)}, not {kind(executor)}", origin=origin)
    guess = closest(executor, MODELS)
    hint = f"did you mean `{guess}`?" if guess else f"there are {listed(MODELS)}"
    return ConfigError(
        f"there is no executor `{executor}`", hint=reference.EXECUTORS.get(executor, hint), origin=origin
    )


def _nearest(cwd: Path) -> list[Path]:
    """Profile files of the nearest folder that has any, up to the root of the project."""
    for folder in (cwd, *cwd.parents):
        files = [folder / "env.toml", *sorted((folder / "profiles").glob("*.toml"))]
        if found := [file for file in files if file.is_file()]:
            return found
        if (folder / "pyproject.toml").is_file() or (folder / ".git").exists():
            break
    return []


def _tables(file: Path) -> Iterator[Table]:
    try:
        content = tomllib.loads(read_bytes(file, MOST_TOML).decode("utf-8-sig"))
    except (OSError, UnicodeDecodeError, RecursionError) as error:
        reason = error.strerror if isinstance(error, OSError) else str(error)
        raise ConfigError(f"cannot read this file: {reason}", origin=Origin(shown(file))) from error
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"this is not TOML: {error}", origin=Origin(shown(file))) from error
    for name, values in content.items():
        if name in NO_PROFILES:
            continue
        if not isinstance(values, dict):
            raise ConfigError(
                f"`{name}` stands outside of any profile",
                hint="write keys below a line `[name of a profile]`",
                origin=Origin(shown(file)),
            )
        table = Table(name, file, values)
        for key, node in walk(located(values, table.origin)):
            if isinstance(node.value, date | time):
                raise ConfigError(f"`{key}` is a date or a time: write it as text, in quotes", origin=table.origin)
        yield table


def _named(findings: list[Finding], profile: str) -> list[Finding]:
    """Findings that say whose keys they speak of."""
    return [replace(finding, name="profile", message=f"profile `{profile}`: {finding.message}") for finding in findings]
