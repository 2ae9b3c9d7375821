"""Values and calls between two programs that do not trust each other. Copied into the sandbox; standard library only.

Lines of JSON on two pipes. Only plain data is copied; anything else stays where it is and is named by a number, so that
neither side ever holds an object whose behaviour the other one has chosen. `Peer` has both directions of calls.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from importlib import import_module

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

_SMALL = 1 << 53
"""Integers from here on travel as hexadecimal text, which costs no more than its length to read."""

# Values of the standard library that are rebuilt from plain arguments.
_REBUILT: dict[str, Callable[[Any], list[Any]]] = {
    "decimal.Decimal": lambda value: [str(value)],
    "fractions.Fraction": lambda value: [value.numerator, value.denominator],
    "datetime.timedelta": lambda value: [value.days, value.seconds, value.microseconds],
    "datetime.date": lambda value: [value.year, value.month, value.day],
    "datetime.time": lambda value: [value.hour, value.minute, value.second, value.microsecond],
    "datetime.datetime": lambda value: [*value.timetuple()[:6], value.microsecond],
    "collections.deque": lambda value: [list(value)] if value.maxlen is None else [list(value), value.maxlen],
    "builtins.complex": lambda value: [value.real, value.imag],
    "builtins.range": lambda value: [value.start, value.stop, value.step],
}
_MANY: dict[type, str] = {tuple: "t", set: "s", frozenset: "f"}


class NotPlainError(TypeError):
    """A value can neither be copied nor stay behind."""


class ProtocolError(Exception):
    """The other side does not keep to the form of messages."""


def encode(value: Any, refer: Callable[[Any], Any]) -> Any:
    """A value as JSON; what is not plain becomes what ``refer`` makes of it."""
    kind = type(value)
    if value is None or kind is bool or kind is str or kind is float:
        return value
    if kind is int:
        return value if -_SMALL < value < _SMALL else {"i": hex(value)}
    if kind is list:
        return [encode(item, refer) for item in value]
    if kind in _MANY:
        return {_MANY[kind]: [encode(item, refer) for item in value]}
    if kind is bytes or kind is bytearray:
        return {"b" if kind is bytes else "B": value.hex()}
    if kind is dict or (isinstance(value, dict) and kind.__module__ == "collections"):
        return {"d": [[encode(key, refer), encode(item, refer)] for key, item in dict.items(value)]}
    name = f"{kind.__module__}.{kind.__qualname__}"
    if name in _REBUILT and getattr(value, "tzinfo", None) is None:
        return {"v": [name, *(encode(part, refer) for part in _REBUILT[name](value))]}
    return refer(value)


def base_of(value: Any) -> Any:
    """The plain value that an instance of a class derived from a plain type has; `TypeError` where there is none."""
    bases: tuple[Any, ...] = (int, float, str, bytes, list, tuple, set, frozenset, dict)
    for base in bases:
        if isinstance(value, base):
            return dict(dict.items(value)) if isinstance(value, dict) else base(value)
    raise TypeError(f"a {type(value).__name__} has no plain value")


def decode(tree: Any, resolve: Callable[[str, Any], Any]) -> Any:
    """The value of `encode`; ``resolve`` gets what ``refer`` made, as its tag and content."""
    if isinstance(tree, list):
        return [decode(item, resolve) for item in tree]
    if not isinstance(tree, dict):
        return tree
    try:
        [(tag, content)] = tree.items()
        if tag == "i":
            return int(content, 16)
        if tag in _MANY.values():
            items = [decode(item, resolve) for item in content]
            return next(kind for kind, name in _MANY.items() if name == tag)(items)
        if tag == "d":
            return {decode(key, resolve): decode(item, resolve) for key, item in content}
        if tag in ("b", "B"):
            return (bytes if tag == "b" else bytearray).fromhex(content)
        if tag == "v":
            name, *parts = content
            if name not in _REBUILT:
                raise ProtocolError(name)
            module, _, attribute = name.rpartition(".")
            return getattr(import_module(module), attribute)(*(decode(part, resolve) for part in parts))
    except (TypeError, ValueError, AttributeError, ArithmeticError) as error:
        raise ProtocolError(str(error)) from error
    return resolve(tag, content)


class Peer:
    """One end: asks the other, and answers what it asks meanwhile."""

    def __init__(self, fds: tuple[int, int], most_bytes: int) -> None:
        self._in, self._out = fds
        self._most, self._rest = most_bytes, b""
        self._held: list[Any] = []
        self.known: dict[str, type[BaseException]] = {}
        """Exceptions that are raised here by these names, beside the built-in ones."""

    def refer(self, value: Any) -> Any:
        """What stands for a value that is not plain."""
        raise NotImplementedError

    def resolve(self, tag: str, content: Any) -> Any:
        """What `refer` of the other side stands for here."""
        raise NotImplementedError

    def answer(self, operation: str, arguments: list[Any]) -> Any:
        """Do what the other side asks for."""
        raise NotImplementedError

    def heard(self, text: str) -> None:
        """What was printed at the other side meanwhile."""

    def said(self) -> str:
        """What was printed here since the last time."""
        return ""

    def hold(self, value: Any) -> int:
        """A number for a value that stays here."""
        self._held.append(value)
        return len(self._held) - 1

    def held(self, number: Any) -> Any:
        """The value of a number that was given out here."""
        if type(number) is not int or not 0 <= number < len(self._held):
            raise ProtocolError("a number that was not given out")
        return self._held[number]

    def ask(self, operation: str, *arguments: Any) -> Any:
        """Let the other side do something; its value, or the exception that it raised."""
        self._send({"ask": [operation, encode(list(arguments), self.refer)]})
        while True:
            message = self._take()
            if message is None:
                raise ProtocolError("the other side ended")
            if "ask" in message:
                self._reply(message)
                continue
            self.heard(str(message.get("printed", "")))
            if "told" in message:
                return decode(message["told"], self.resolve)
            if "ended" in message and operation == "next":
                raise StopIteration
            raise self._raised(message)

    def serve(self) -> None:
        """Answer until the other side ends."""
        while (message := self._take()) is not None:
            self._reply(message)

    def _reply(self, message: dict[str, Any]) -> None:
        operation, arguments = message.get("ask", ("", []))
        try:
            reply = {"told": encode(self.answer(operation, decode(arguments, self.resolve)), self.refer)}
        except (ProtocolError, NotPlainError):
            raise
        except BaseException as error:  # noqa: BLE001 - it is raised again at the other side
            names = [kind.__name__ for kind in type(error).__mro__]
            parts = [part if isinstance(part, str | int) else repr(part) for part in error.args]
            reply = {"raised": names, "with": parts}
            if operation == "next" and isinstance(error, StopIteration):
                reply = {"ended": True}
        self._send({**reply, "printed": self.said()})

    def _raised(self, message: dict[str, Any]) -> BaseException:
        import builtins

        names, parts = message.get("raised"), message.get("with")
        if not isinstance(names, list) or not isinstance(parts, list):
            raise ProtocolError("no answer")
        for name in names:
            kind = self.known.get(name) or getattr(builtins, str(name), None)
            # These three would end a loop of the asking side instead of failing it.
            if not isinstance(kind, type) or issubclass(kind, StopIteration | StopAsyncIteration | GeneratorExit):
                continue
            if issubclass(kind, BaseException):
                try:
                    return kind(*parts)
                except TypeError:
                    continue  # it wants other arguments; one that it derives from does not
        return RuntimeError(*parts)

    def _send(self, message: dict[str, Any]) -> None:
        line = memoryview(json.dumps(message).encode() + b"\n")
        try:
            while line:
                line = line[os.write(self._out, line) :]
        except BrokenPipeError as error:
            raise ProtocolError("the other side ended") from error

    def _take(self) -> dict[str, Any] | None:
        blocks = [self._rest]
        size = len(self._rest)
        while b"\n" not in blocks[-1]:
            block = os.read(self._in, 1 << 16)
            size += len(block)
            if not block:
                return None
            if size > self._most:
                raise ProtocolError("too long a message")
            blocks.append(block)
        line, _, self._rest = b"".join(blocks).partition(b"\n")
        try:
            message = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise ProtocolError("no JSON") from error
        if not isinstance(message, dict):
            raise ProtocolError("no message")
        return message
