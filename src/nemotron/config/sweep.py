"""``--sweep KEY=V1,V2``: several values of a key, and the runs that all combinations of such keys make."""

from __future__ import annotations

import itertools
import json
from collections.abc import Sequence
from dataclasses import dataclass

from nemotron.config.origins import Node, YamlError, plain
from nemotron.config.overrides import Override, parse_overrides
from nemotron.config.yaml import parse_yaml
from nemotron.errors import Origin, UsageError

MOST = 512
"""Runs of one sweep. More are a slip: each is compiled before the first one starts."""


@dataclass(frozen=True, slots=True)
class Axis:
    """One key with its values, each as the override that sets it."""

    key: str
    origin: Origin
    choices: tuple[Override, ...]


@dataclass(frozen=True, slots=True)
class Combination:
    """What one run of a sweep sets."""

    overrides: tuple[Override, ...]

    @property
    def values(self) -> tuple[tuple[str, str], ...]:
        """(key, value as JSON), in the order of the command line."""
        return tuple((one.key, _text(one)) for one in self.overrides)

    def __str__(self) -> str:
        return " ".join(f"{key}={value}" for key, value in self.values)


def combinations(tokens: Sequence[tuple[int, str]], overrides: Sequence[Override]) -> list[Combination]:
    """All combinations of the values of ``--sweep`` words, the last key changing fastest.

    Args:
        tokens: the words with their 1-based positions on the command line.
        overrides: those that hold for every run.

    Raises:
        UsageError: a word is none of the form, or contradicts another one; the origin names it.
    """
    axes: list[Axis] = []
    for position, word in tokens:
        axis = _axis(word, Origin("command line", argument=position))
        if any(axis.key == other.key for other in axes):
            raise UsageError(
                f"`{axis.key}` is swept twice",
                hint="write all its values into one `--sweep`, separated by commas",
                origin=axis.origin,
            )
        fixed = next((one for one in overrides if one.key == axis.key), None)
        if fixed is not None:
            raise UsageError(
                f"`{axis.key}` is swept, and set by `{fixed.text}`", hint="keep one of the two", origin=axis.origin
            )
        axes.append(axis)
    number = 1
    for axis in axes:
        number *= len(axis.choices)
    if number > MOST:
        raise UsageError(
            f"this sweep has {number:,} runs, more than {MOST}", hint="sweep in parts", origin=axes[-1].origin
        )
    return [Combination(chosen) for chosen in itertools.product(*(axis.choices for axis in axes))]


def _axis(word: str, origin: Origin) -> Axis:
    key, equals, text = word.partition("=")
    if not key:
        raise UsageError(f"`--sweep {word}` has no key", hint="write `--sweep key=value,value`", origin=origin)
    if not equals:
        raise UsageError(f"`--sweep {key}` has no values", hint="write `--sweep key=value,value`", origin=origin)
    # What the key looks like is checked as for any override; the prefixes + and ++ mean the same here.
    [stem] = parse_overrides([(origin.argument or 0, f"{key}=null")])
    try:
        listed = parse_yaml(f"[{text}]", origin, flow_only=True)
    except YamlError as error:
        message = f"the values of `--sweep {key}` are not YAML: {error.message.removeprefix('broken YAML: ')}"
        hint = f'quote what holds commas or braces: `--sweep \'{key}="a,b","${{oc.env:NAME}}"\'`'
        raise UsageError(message, hint=hint, origin=origin) from None
    assert listed is not None  # there are brackets
    nodes: list[Node] = listed.value
    if not nodes:
        raise UsageError(f"`--sweep {key}=` has no values", hint="write `--sweep key=value,value`", origin=origin)
    choices = tuple(
        Override(stem.operation, stem.path, node, origin, f"{key}={json.dumps(plain(node), default=str)}")
        for node in nodes
    )
    texts = [_text(one) for one in choices]
    if twice := next((text for number, text in enumerate(texts) if text in texts[:number]), None):
        raise UsageError(f"`--sweep {key}` has the value {twice} twice", hint="leave one away", origin=origin)
    return Axis(stem.key, origin, choices)


def _text(override: Override) -> str:
    assert override.value is not None
    value = plain(override.value)
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)
