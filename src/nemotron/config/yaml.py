"""YAML 1.2 text to located values. The only reader of YAML in the project, so `6e9` means the same to everyone.

The text is composed by ruamel.yaml into its node graph, which carries a line and column for every value; scalars are
then built by ruamel's own constructor.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.error import MarkedYAMLError, YAMLError
from ruamel.yaml.events import (
    AliasEvent,
    MappingEndEvent,
    MappingStartEvent,
    ScalarEvent,
    SequenceEndEvent,
    SequenceStartEvent,
)
from ruamel.yaml.nodes import MappingNode, ScalarNode, SequenceNode

from nemotron.config.origins import Node, YamlError, shown
from nemotron.disk.documents import read_bytes
from nemotron.errors import ConfigError, NotFoundError, Origin

DEEPEST = 50
"""Lists and mappings inside each other. A config has about ten; readers that call themselves break at a hundred."""
MOST_LETTERS = 1 << 20
MOST_VALUES = 200_000
"""What a document may hold, aliases written out."""
_ALIAS = re.compile(r"(?:^|[\s,:\[{-])\*[^\s*]")
"""What may be an alias: a star at the beginning of a value. Comments and patterns of files have stars, too."""
_INDENT = re.compile(r"^[ ?:-]*", re.MULTILINE)
_SHOWN = 160
"""Characters of a line that a message shows."""
_TAG = "tag:yaml.org,2002:"
_BUILT = {_TAG + name for name in ("null", "bool", "int", "float")}
# Resolved by ruamel beyond the core schema of YAML 1.2; a date or `=` is a string to us, as it is to JSON.
_TEXT = {_TAG + name for name in ("str", "timestamp", "value")}
_COLLECTIONS = {_TAG + "map", _TAG + "seq"}


def read_yaml(path: Path, *, start: str = "start from the step's own config with `defaults: default`") -> Node:
    """Read a config file whose root is a mapping.

    Args:
        start: what to do about an empty one.

    Raises:
        NotFoundError: there is no such file.
        YamlError: broken YAML, a duplicate key, an empty file, another root than a mapping, or not UTF-8.
    """
    origin = Origin(shown(path))
    try:
        text = read_bytes(path).decode("utf-8-sig")
    except FileNotFoundError:
        raise NotFoundError(f"there is no config file `{shown(path)}`") from None
    except UnicodeDecodeError as error:
        byte = f"byte {error.start} is 0x{error.object[error.start]:02x}"
        raise YamlError(f"`{shown(path)}` is not UTF-8 text: {byte}", origin=origin) from None
    except OSError as error:
        raise ConfigError(f"`{shown(path)}` cannot be read: {error.strerror}", origin=origin) from None
    root = parse_yaml(text, origin)
    if root is None:
        raise YamlError(f"`{shown(path)}` is empty", origin=origin, hint=start)
    if not isinstance(root.value, dict):
        what = "a list" if isinstance(root.value, list) else "a single value"
        raise YamlError(f"`{shown(path)}` must hold a mapping, but holds {what}", origin=root.origin)
    return root


def parse_yaml(text: str, origin: Origin, *, flow_only: bool = False) -> Node | None:
    """Parse one YAML document; None when it holds nothing.

    ``origin`` names the source. A source with an argument number is a command-line word: every value gets that origin,
    since a column inside a word helps nobody. ``flow_only`` refuses block mappings and lists (``a: b``), which in a
    word of the command line are a slip, not a wish.

    Raises:
        YamlError: with the place and the source lines around it.
    """
    yaml = YAML(typ="safe", pure=True)
    reader = _Reader(yaml, text, origin, flow_only)
    try:
        _check_bounds(text, reader)
        root = yaml.compose(text)
        return None if root is None else reader.node(root)
    except MarkedYAMLError as error:
        problem = ": ".join(part for part in (error.context, error.problem) if part)
        raise reader.error(f"broken YAML: {_readable(problem)}", error.problem_mark or error.context_mark) from None
    except YAMLError as error:
        # A ReaderError: a control character, which has a position but no mark.
        raise YamlError(f"broken YAML: {str(error).splitlines()[0]}", origin=origin) from None


def _check_bounds(text: str, reader: _Reader) -> None:
    """Refuse what would be read for ever, or break readers that call themselves: size, depth, aliases of aliases.

    Raises:
        YamlError: one of the bounds is passed; the place is named where there is one.
    """
    if len(text) > MOST_LETTERS:
        raise reader.error(f"a config or blend of {len(text):,} letters, more than {MOST_LETTERS:,}", None)
    # Only text that can be deep, or repeats itself, is looked at twice.
    # A reference's brace opens nothing: where one could, behind a `$`, the parser stops.
    deep = text.count("[") + text.count("{") - text.count("${") + max(map(len, _INDENT.findall(text)), default=0)
    if deep <= DEEPEST and _ALIAS.search(text) is None:
        return
    open_sizes: list[int] = [0]
    anchors: list[str | None] = []
    sizes: dict[str, int] = {}
    for event in YAML(typ="safe", pure=True).parse(text):
        if isinstance(event, MappingStartEvent | SequenceStartEvent):
            open_sizes.append(1)
            anchors.append(event.anchor)
            if len(open_sizes) > DEEPEST:
                raise reader.error(f"more than {DEEPEST} lists and mappings are inside each other", event.start_mark)
        elif isinstance(event, MappingEndEvent | SequenceEndEvent):
            size, anchor = open_sizes.pop(), anchors.pop()
            open_sizes[-1] += size
            if anchor is not None:
                sizes[anchor] = size
        elif isinstance(event, AliasEvent):
            open_sizes[-1] += sizes.get(event.anchor, 1)
        elif isinstance(event, ScalarEvent):
            open_sizes[-1] += 1
        if open_sizes[-1] > MOST_VALUES:
            message = f"its aliases stand for more than {MOST_VALUES:,} values"
            raise reader.error(message, event.start_mark)


def _readable(problem: str) -> str:
    """ruamel's words with the code in backticks and white space visible."""
    return problem.replace("'\\t'", "`<tab>`").replace("'", "`").replace("\t", "<tab>")


class _Reader:
    """Turns ruamel's nodes into ours."""

    def __init__(self, yaml: YAML, text: str, origin: Origin, flow_only: bool) -> None:
        self._yaml = yaml
        self._lines = text.splitlines()
        self._origin = origin
        self._flow_only = flow_only
        self._open: set[int] = set()
        self._flat: set[int] = set()

    def node(self, node: Any) -> Node:
        origin = self._at(node.start_mark)
        if isinstance(node, ScalarNode):
            return Node(self._scalar(node), origin)
        if id(node) in self._open:
            raise self.error("an alias refers to the value that contains it", node.start_mark)
        if self._flow_only and not node.flow_style:
            raise self.error("a mapping or list on the command line needs braces or brackets", node.start_mark)
        if str(node.tag) not in _COLLECTIONS:
            raise self._unknown_tag(node)
        self._open.add(id(node))
        try:
            if isinstance(node, SequenceNode):
                return Node([self.node(child) for child in node.value], origin)
            return Node(self._mapping(node), origin)
        finally:
            self._open.discard(id(node))

    def _mapping(self, node: MappingNode) -> dict[str, Node]:
        # An anchored mapping is met once per alias, but must be checked and flattened only once.
        if id(node) not in self._flat:
            self._flat.add(id(node))
            self._flatten(node)
        return {key.value: self._entry(key, value) for key, value in node.value}

    def _entry(self, key: ScalarNode, value: Any) -> Node:
        node = self.node(value)
        # An indented section starts at its first child; a person looks for its name.
        if not isinstance(value, ScalarNode) and not value.flow_style:
            node.origin = self._at(key.start_mark)
        return node

    def _flatten(self, node: MappingNode) -> None:
        own: dict[str, ScalarNode] = {}
        for key, _ in node.value:
            if not isinstance(key, ScalarNode):
                raise self.error("a key must be a plain string", key.start_mark)
            if str(key.tag) not in _TEXT | _BUILT | {_TAG + "merge"}:
                raise self._unknown_tag(key)
            if key.tag != _TAG + "merge" and key.value in own:
                first = own[key.value].start_mark.line + 1
                raise self.error(f"duplicate key `{key.value}`, first given in line {first}", key.start_mark)
            own[key.value] = key
        # `<<: *anchor` puts merged pairs before the mapping's own, so a plain dict lets the own ones win.
        self._yaml.constructor.flatten_mapping(node)

    def _scalar(self, node: ScalarNode) -> str | int | float | bool | None:
        tag = str(node.tag)
        if tag in _TEXT:
            return str(node.value)
        if tag not in _BUILT:
            raise self._unknown_tag(node)
        try:
            built: int | float | bool | None = self._yaml.constructor.construct_object(node)
        except (ValueError, KeyError):
            raise self.error(f"`{node.value}` is not a {tag.removeprefix(_TAG)}", node.start_mark) from None
        return built

    def _unknown_tag(self, node: Any) -> YamlError:
        return self.error(f"unknown tag `{node.tag}`", node.start_mark)

    def _at(self, mark: Any) -> Origin:
        if self._origin.argument is not None or mark is None:
            return self._origin
        return Origin(self._origin.source, line=mark.line + 1, column=mark.column + 1)

    def error(self, message: str, mark: Any) -> YamlError:
        """An error at ``mark`` with up to three source lines, the last of which is the one meant."""
        origin = self._at(mark)
        if origin.line is None:
            return YamlError(message, origin=origin)
        # A parser notices an unclosed bracket only at the end of the text, one line past the last.
        last = max(min(origin.line, len(self._lines)), 1)
        first = max(last - 2, 1)
        width = len(str(last))
        # Of a line that no terminal shows, what stands around the place.
        column = origin.column or 1
        left = (
            max(0, column - 1 - _SHOWN // 2) if max(map(len, self._lines[first - 1 : last]), default=0) > _SHOWN else 0
        )
        rows = [f"{n:>{width}} | {self._lines[n - 1][left : left + _SHOWN]}" for n in range(first, last + 1)]
        if origin.line <= len(self._lines) and origin.column is not None:
            rows.append(f"{'':>{width}} | {'':>{column - 1 - left}}^")
        return YamlError(message, origin=origin, snippet="\n".join(rows))
