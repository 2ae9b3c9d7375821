"""A pipeline as it is written: one YAML file of named nodes, read into values that remember their lines."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from nemotron.config.origins import Node as Value
from nemotron.config.origins import kind, plain, shown
from nemotron.config.overrides import Operation, Override
from nemotron.config.yaml import read_yaml
from nemotron.disk.home import expanded
from nemotron.errors import ConfigError, NotFoundError, Origin
from nemotron.suggest import closest, listed

SHIPPED = Path(__file__).parent / "shipped"
_NAME = re.compile(r"[a-z][a-z0-9_-]{0,40}")
_OPERATIONS: dict[str, Operation] = {"": "set", "+": "add", "++": "force", "~": "delete"}
_PIPELINE_KEYS = ("title", "description", "profile", "result", "nodes")
_NODE_KEYS = ("step", "config", "overrides", "profile", "takes", "after")

_START = "write `nodes:` and below it `NAME: {step: STEP}`; `nemotron pipelines list --json` names the shipped files"


@dataclass(frozen=True, slots=True)
class Taken:
    """One entry of ``takes``: what a node is given, and by whom."""

    what: str
    """An artifact type, or the config key that carries it."""
    node: str
    """The node that makes it."""
    type: str | None
    """The type that is meant, where a key is named."""
    origin: Origin


@dataclass(frozen=True, kw_only=True)
class NodeSpec:
    """One node as it is written."""

    name: str
    step: str
    config: str = "default"
    """A config of the step, or the path of a YAML file."""
    overrides: tuple[Override, ...] = ()
    profile: str | None = None
    takes: tuple[Taken, ...] = ()
    after: tuple[tuple[str, Origin], ...] = ()
    """Nodes that have to end well before this one starts: gates."""
    origin: Origin

    def needs(self) -> Iterator[tuple[str, Origin]]:
        """The nodes that come before, each with the place that says so."""
        yield from ((taken.node, taken.origin) for taken in self.takes)
        yield from self.after


@dataclass(frozen=True, kw_only=True)
class PipelineSpec:
    """A pipeline as it is written."""

    name: str
    path: Path
    title: str = ""
    description: str = ""
    result: tuple[tuple[str, Origin], ...] = ()
    """The nodes whose work it is done for; the last one unless the file says otherwise."""
    nodes: Mapping[str, NodeSpec] = field(default_factory=dict)


def shipped() -> dict[str, Path]:
    """Name -> file of the pipelines that come with the product."""
    return {path.stem: path for path in sorted(SHIPPED.glob("*.yaml"))}


def find_pipeline(name: str) -> Path:
    """The file of a shipped pipeline, or the path that ``name`` is.

    Raises:
        NotFoundError: neither.
    """
    known = shipped()
    if name in known:
        return known[name]
    path = expanded(name)
    if path.suffix in (".yaml", ".yml") or "/" in name:
        if not path.is_file():
            raise NotFoundError(f"there is no pipeline file `{name}`", hint=f"shipped are {listed(known)}")
        return path
    guess = closest(name, known)
    hint = f"did you mean `{guess}`?" if guess else f"shipped are {listed(known)}; a file of your own is named by path"
    raise NotFoundError(f"there is no pipeline `{name}`", hint=hint)


def read_pipeline(path: Path) -> PipelineSpec:
    """Read a pipeline file. That its nodes fit together is :mod:`nemotron.pipelines.chain`'s business.

    Raises:
        ConfigError: broken YAML, or something that no pipeline has; with the line.
    """
    root = read_yaml(path, start=_START)
    top = _fields(root, _PIPELINE_KEYS, "a pipeline")
    nodes = top.get("nodes")
    if nodes is None or not isinstance(nodes.value, dict) or not nodes.value:
        origin = nodes.origin if nodes is not None else Origin(shown(path))
        raise ConfigError("a pipeline has `nodes`: a mapping of names to steps", hint=_START, origin=origin)
    profile = _text(top.get("profile"), "profile")
    found = {name: _node(name, value, path, profile) for name, value in nodes.value.items()}
    last = next(reversed(found.values()))
    return PipelineSpec(
        name=path.stem,
        path=path,
        title=_text(top.get("title"), "title") or path.stem,
        description=_text(top.get("description"), "description") or "",
        result=tuple(_names(top["result"], "result")) if "result" in top else ((last.name, last.origin),),
        nodes=found,
    )


def with_overrides(pipeline: PipelineSpec, overrides: list[Override]) -> PipelineSpec:
    """The pipeline with overrides of the command line, whose keys begin with the name of a node: ``rm.rm.seed=3``.

    Raises:
        NotFoundError: there is no node of that name.
    """
    nodes = dict(pipeline.nodes)
    for one in overrides:
        name, *rest = one.path
        if name not in nodes or not rest:
            raise NotFoundError(f"`{one.key}` names no key of a node", hint=_named(name, nodes), origin=one.origin)
        mine = replace(one, path=tuple(rest))
        # The command line wins over the file; two words of it for one key are refused as those of any step.
        written = [known for known in pipeline.nodes[name].overrides if known.path == mine.path]
        others = [known for known in nodes[name].overrides if known not in written]
        nodes[name] = replace(nodes[name], overrides=(*others, mine))
    return replace(pipeline, nodes=nodes)


def _named(name: str, nodes: Mapping[str, NodeSpec]) -> str:
    """What to write instead of a name that is none of a node's."""
    if name in nodes:
        return f"write `{name}.KEY=VALUE`"
    if source := next((node for node in nodes if name.startswith(f"{node}_")), None):
        return f"if `{name}` is the conversion that is inserted behind `{source}`: write it as a node to set its keys"
    guess = closest(name, nodes)
    return f"did you mean `{guess}`?" if guess else f"write `NODE.KEY=VALUE`: {listed(nodes)}"


def _node(name: str, value: Value, path: Path, profile: str | None) -> NodeSpec:
    if not _NAME.fullmatch(name):
        hint = "small letters, digits, `-` and `_`, a letter first, 41 at most"
        raise ConfigError(f"`{name}` is no name of a node", hint=hint, origin=value.origin)
    parts = _fields(value, _NODE_KEYS, f"the node `{name}`", f"write `{name}: {{step: STEP}}`")
    step = _text(parts.get("step"), "step")
    if step is None:
        raise ConfigError(
            f"the node `{name}` has no `step`", hint="`nemotron steps list` shows them", origin=value.origin
        )
    config = _text(parts.get("config"), "config") or "default"
    if config.endswith((".yaml", ".yml")):
        config = str(path.parent / expanded(config))
    return NodeSpec(
        name=name,
        step=step,
        config=config,
        overrides=tuple(_overrides(parts.get("overrides"), name)),
        profile=_text(parts.get("profile"), "profile") or profile,
        takes=tuple(_takes(parts.get("takes"), name)),
        after=tuple(_names(parts["after"], "after")) if "after" in parts else (),
        origin=value.origin,
    )


def _fields(value: Value, known: tuple[str, ...], what: str, hint: str | None = None) -> dict[str, Value]:
    if not isinstance(value.value, dict):
        raise ConfigError(f"{what} is a mapping, not {kind(plain(value))}", hint=hint, origin=value.origin)
    for name, child in value.value.items():
        if name not in known:
            guess = closest(str(name), known)
            hint = f"did you mean `{guess}`?" if guess else f"it has {listed(known)}"
            raise ConfigError(f"{what} has no key `{name}`", hint=hint, origin=child.origin)
    return dict(value.value)


def _text(value: Value | None, name: str, hint: str | None = None) -> str | None:
    if value is None or value.value is None:
        return None
    if not isinstance(value.value, str) or not value.value.strip():
        raise ConfigError(f"`{name}` is a text, not {kind(plain(value))}", hint=hint, origin=value.origin)
    return value.value.strip()


def _names(value: Value, key: str) -> Iterator[tuple[str, Origin]]:
    """One name, or a list of them."""
    entries = value.value if isinstance(value.value, list) else [value]
    for entry in entries:
        name = _text(entry, key, "write the name of a node, or a list of names")
        if name is not None:
            yield name, entry.origin


def _takes(value: Value | None, node: str) -> Iterator[Taken]:
    if value is None:
        return
    entries = _mapping(value, f"`takes` of `{node}`", "types or keys to nodes, as `prepared_data: data`")
    for what, source in entries:
        hint = "write `NODE` or `NODE.TYPE`"
        name, dot, type_ = (_text(source, what, hint) or "").partition(".")
        if not name or (dot and not type_):
            missing = "no type" if name else "no node"
            raise ConfigError(f"`{what}` is taken from {missing}", hint=hint, origin=source.origin)
        yield Taken(what, name, type_ or None, source.origin)


def _overrides(value: Value | None, node: str) -> Iterator[Override]:
    """Every entry of ``overrides`` as the word of the command line that it stands for."""
    if value is None:
        return
    for key, child in _mapping(value, f"`overrides` of `{node}`", "keys to values, as `rm.max_num_epochs: 2`"):
        name = key.lstrip("+~")
        operation = _OPERATIONS.get(key[: len(key) - len(name)])
        if operation is None or not all(name.split(".")) or (operation == "delete" and child.value is not None):
            hint = "write `key: value`, or `~key:` without a value to delete"
            raise ConfigError(f"`{key}` is no key of a config", hint=hint, origin=child.origin)
        written = None if operation == "delete" else child
        # Not the value: it may be a secret.
        yield Override(operation, tuple(name.split(".")), written, child.origin, f"{key}: ...")


def _mapping(value: Value, what: str, hint: str) -> list[tuple[str, Value]]:
    if value.value is None:
        return []
    if not isinstance(value.value, dict):
        raise ConfigError(f"{what} is a mapping of {hint}", origin=value.origin)
    return list(value.value.items())
