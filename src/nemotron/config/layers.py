"""One resolution path for everyone: `defaults:` chain < the YAML named by `-c` < overrides, then interpolation."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from nemotron.config.edit import Applier
from nemotron.config.merge import merge_layer
from nemotron.config.named import Artifacts, write_out
from nemotron.config.origins import Node, kind, no_text, plain, readable, shown, walk
from nemotron.config.overrides import Override
from nemotron.config.resolvers import interpolate
from nemotron.config.yaml import read_yaml
from nemotron.disk.home import expanded
from nemotron.errors import CompileError, ConfigError, Finding, NotFoundError, Origin
from nemotron.suggest import closest, listed

_BITS = 64
"""Of a whole number, its sign among them."""
_REFERENCE = re.compile(r"\$\{([\w.]+)\}")


@dataclass(frozen=True, slots=True)
class Resolved:
    """A config after layers, overrides and interpolation, with the origin of every value."""

    values: dict[str, Any]
    """Plain and interpolated."""
    raw: dict[str, Any]
    """Plain, before interpolation."""
    origins: dict[str, Origin]
    """Dotted key -> where its value was written; a deleted key maps to the word that deleted it."""
    files: tuple[Path, ...]
    """Every YAML file read, parents first."""
    findings: tuple[Finding, ...] = ()
    """What was wrong with the overrides; ``validate`` reports them together with its own."""
    words: Mapping[str, str] = field(default_factory=dict)
    """Key -> its value as it was typed on the command line, where `0123` is not yet 123."""

    def origin(self, key: str) -> Origin | None:
        """Where the value of ``key`` was written, or else its nearest section.

        A value that only refers to another key, as `${policy.precision}` does, was written where that key was.
        """
        key = self.source(key)
        while key not in self.origins and key:
            key = key.rpartition(".")[0]
        return self.origins.get(key)

    def source(self, key: str) -> str:
        """The key that ``key`` has its value from: references are followed, at it and at the sections around it.

        Example: with ``eval.heldout.rewards: ${rewards}`` the source of ``eval.heldout.rewards.functions`` is
        ``rewards.functions``. A key without a reference is its own source.
        """
        seen = {key}
        while (target := self._target(key)) is not None and target not in seen:
            seen.add(target)
            key = target
        return key

    def sources(self, key: str) -> set[str]:
        """The keys that the value of ``key`` is computed from, as in ``${mul:${a},${b}}``, itself left out."""
        text = self.written(key)
        return {self.source(name) for name in _REFERENCE.findall(text)} if isinstance(text, str) else set()

    def _target(self, key: str) -> str | None:
        """One reference followed: at the key itself, else at the nearest section that is one."""
        names = key.split(".")
        for length in range(len(names), 0, -1):
            text = _descend(self.raw, ".".join(names[:length]), None)
            match = _REFERENCE.fullmatch(text) if isinstance(text, str) else None
            if match and match[1] in self.origins:
                return ".".join([match[1], *names[length:]])
        return None

    def get(self, key: str, default: Any = None) -> Any:
        """The value of a dotted key (list positions count from 0), or ``default`` where there is none."""
        return _descend(self.values, key, default)

    def written(self, key: str) -> Any:
        """The value of a dotted key as it is written, before interpolation; None where there is none."""
        return _descend(self.raw, self.source(key), None)

    def in_run_dir(self, run_dir: str) -> Resolved:
        """The same config for another run folder: `${run_dir:}` is only known once the folder is made.

        Raises:
            CompileError: an interpolation cannot be resolved.
        """
        values, findings = interpolate(self.raw, self.origins, run_dir=run_dir, before=self.values)
        if findings:
            raise CompileError(findings)
        return replace(self, values=values)


def _descend(at: Any, key: str, default: Any) -> Any:
    for name in key.split("."):
        if isinstance(at, dict) and name in at:
            at = at[name]
        elif isinstance(at, list) and name.isdecimal() and int(name) < len(at):
            at = at[int(name)]
        else:
            return default
    return at


def load(
    config_dir: Path,
    name_or_path: str,
    overrides: Sequence[Override],
    *,
    run_dir: str,
    model: type[BaseModel] | None = None,
    artifacts: Artifacts | None = None,
) -> Resolved:
    """Load a config: ``name_or_path`` is a name in ``config_dir`` or a path (see :func:`find_config`).

    ``model`` tells which keys an override may set although no YAML mentions them. Overrides that cannot work are kept
    in ``Resolved.findings``. ``artifacts`` finds what `${artifact:RUN:TYPE}` names.

    Raises:
        NotFoundError: no such config, or a `defaults` entry that does not exist.
        ConfigError: broken YAML, a `defaults` cycle, a misplaced `_override_`.
        CompileError: interpolations that cannot be resolved, with all findings so far.
    """
    root, files = read_layers(config_dir, name_or_path)
    applier = Applier(root, model)
    applier.apply(overrides)
    origins = {**applier.removed, **{key: node.origin for key, node in walk(root)}}
    findings = list(write_out(root, artifacts)) if artifacts is not None else []
    raw = plain(root)
    findings = findings or list(_unusable(raw, origins))
    if not findings:
        values, findings = interpolate(raw, origins, run_dir=run_dir)
        # The environment may hold what the files do not.
        findings = findings or list(_unusable(values, origins))
    if findings:
        raise CompileError([*applier.findings, *findings])
    typed = [one for one in overrides if one.value is not None and one.origin.argument is not None]
    words = {one.key: one.text.partition("=")[2] for one in typed}
    return Resolved(values, raw, origins, files, tuple(applier.findings), words)


def _unusable(values: Any, origins: dict[str, Origin]) -> Iterator[Finding]:
    """Keys and values that nothing can take: texts that are not UTF-8, whole numbers that 64 bits do not hold."""

    def at(value: Any, key: str, place: Origin | None) -> Iterator[Finding]:
        place = origins.get(key, place)
        if isinstance(value, str) and (reason := no_text(value)):
            yield Finding("error", "invalid-value", f"`{key}` {reason}", key, place, "write it as plain text")
        if isinstance(value, int) and value.bit_length() >= _BITS:
            message = f"`{key}` is a whole number of {value.bit_length()} bits: no library takes more than {_BITS}"
            yield Finding("error", "out-of-range", message, key, place, "write a smaller one")
        items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
        for name, child in items:
            below = f"{key}.{name}" if key else str(name)
            if reason := no_text(str(name)):
                # The name cannot be printed as it is.
                below, place = readable(below), origins.get(below, place)
                yield Finding("error", "invalid-value", f"the key `{below}` {reason}", below, place)
            else:
                yield from at(child, below, place)

    return at(values, "", None)


def read_layers(config_dir: Path, name_or_path: str) -> tuple[Node, tuple[Path, ...]]:
    """The `defaults:` chain merged with the file itself, before overrides and interpolation, and the files read.

    Raises:
        NotFoundError, ConfigError: as :func:`load`.
    """
    chain = chain_of(config_dir, name_or_path)
    root = Node({}, Origin(shown(chain[-1][0])))
    for _, layer in chain:
        merge_layer(root, layer)
    return root, tuple(file for file, _ in chain)


def chain_of(config_dir: Path, name_or_path: str) -> list[tuple[Path, Node]]:
    """The file that ``-c`` names and its `defaults:` chain, parents first, as they are written.

    Raises:
        NotFoundError, ConfigError: as :func:`load`.
    """
    return _chain(find_config(config_dir, name_or_path), config_dir, ())


def config_names(config_dir: Path) -> list[str]:
    """The names that ``-c`` takes for a step: default first, then in order."""
    names = sorted(path.stem for path in config_dir.glob("*.yaml"))
    return sorted(names, key=lambda name: name != "default")


def find_config(config_dir: Path, name_or_path: str) -> Path:
    """The file of ``-c``: a path when it holds a `/` or ends in `.yaml` or `.yml`, else a name in ``config_dir``.

    Raises:
        NotFoundError: there is no such file; for a name, the hint lists those there are.
    """
    if "/" in name_or_path or name_or_path.endswith((".yaml", ".yml")):
        path = expanded(name_or_path)
        if not path.is_file():
            what = "is a folder, not a config file" if path.is_dir() else "does not exist"
            raise NotFoundError(f"the config file `{name_or_path}` {what}")
        return path
    path = config_dir / f"{name_or_path}.yaml"
    if not name_or_path or not path.is_file():
        names = config_names(config_dir)
        guess = closest(name_or_path, names)
        hint = f"did you mean `{guess}`? " if guess else ""
        hint += f"Configs: {listed(names)}; a path to your own YAML works too" if names else f"write `{shown(path)}`"
        raise NotFoundError(f"there is no config `{name_or_path}` for this step", hint=hint)
    return path


def _chain(path: Path, config_dir: Path, above: tuple[Path, ...]) -> list[tuple[Path, Node]]:
    """``path`` and its parents, depth first, parents before children."""
    layer = read_yaml(path)
    entries = layer.value.pop("defaults", None)
    here = (*above, path.resolve())
    chain = []
    for entry in _entries(entries):
        parent = _parent(entry, path, config_dir)
        if parent.resolve() in here:
            loop = [*here[here.index(parent.resolve()) :], parent.resolve()]
            raise ConfigError(f"`defaults` go in a circle: {' -> '.join(p.name for p in loop)}", origin=entry.origin)
        chain += _chain(parent, config_dir, here)
    return [*chain, (path, layer)]


def _entries(node: Node | None) -> list[Node]:
    if node is None:
        return []
    entries: list[Node] = node.value if isinstance(node.value, list) else [node]
    for entry in entries:
        if not isinstance(entry.value, str) or not entry.value:
            raise ConfigError(
                f"`defaults` takes a path or a list of paths, not {kind(entry.value)}",
                hint="write `defaults: default`, or `defaults: [base.yaml, other.yaml]`; there are no Hydra groups",
                origin=entry.origin,
            )
    return entries


def _parent(entry: Node, child: Path, config_dir: Path) -> Path:
    """The file of a `defaults` entry: relative to the file that holds it; a bare name may also be the step's config."""
    name = entry.value
    beside = child.parent / expanded(name)
    bare = "/" not in name and not name.endswith((".yaml", ".yml"))
    candidates = [beside.with_name(f"{name}.yaml"), config_dir / f"{name}.yaml"] if bare else [beside]
    for candidate in candidates:
        # A file named like the step's own config means that one, not itself.
        if candidate.is_file() and not (bare and candidate.resolve() == child.resolve() and child.parent != config_dir):
            return candidate
    if name == "_self_":
        hint = "the file itself always comes last here; leave `_self_` out"
    elif bare:
        hint = f"the step has the configs {listed(config_names(config_dir))}"
    else:
        hint = f"paths in `defaults` are relative to the file: looked for `{shown(beside)}`"
    raise NotFoundError(f"`defaults` names `{name}`, which does not exist", hint=hint, origin=entry.origin)
