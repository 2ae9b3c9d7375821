"""The test's side of a test, inside a sandbox of its own. Copied there.

It runs the lines of a test in a process that the answer is not in. The names that the test takes from the answer stand
here for calls into the answer's process; what comes back is plain data, compared here, or a `Remote`, which is equal to
no plain data and answers none of the questions that decide a test about plain data.
"""

from __future__ import annotations

import ast
import builtins
import json
import operator
import os
import sys
from collections import deque
from collections.abc import Iterator
from importlib import import_module

from nemotron.sandbox.exchange import NotPlainError, Peer, ProtocolError
from nemotron.sandbox.harness import CHANNEL, say, start

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

# What the plain types answer with yes or no about themselves. An object of the answer's is not asked: it would say yes.
_PREDICATES = {
    name
    for kind in (str, bytes, int, float, set, dict)
    for name in dir(kind)
    if name.startswith(("is", "startswith", "endswith"))
}
_COMPARISONS = ("eq", "ne", "lt", "le", "gt", "ge")
_ARITHMETIC = ("add", "sub", "mul", "truediv", "floordiv", "mod", "pow", "matmul", "and_", "or_", "xor")
_UNARY = {"str": str, "repr": str, "len": int, "int": int, "float": float, "bool": bool, "abs": None, "neg": None}


class Remote:
    """Something in the answer's process that is no plain data: a function, a class, an instance, a generator."""

    _peer: Examiner
    _number: int

    def __init__(self, peer: Examiner, number: int) -> None:
        object.__setattr__(self, "_peer", peer)
        object.__setattr__(self, "_number", number)

    def __call__(self, *arguments: Any, **named: Any) -> Any:
        value, after = self._peer.ask("call", self, list(arguments), named)
        for mine, became in zip(arguments, after or (), strict=False):
            _update(mine, became)
        return value

    def __getattr__(self, name: str) -> Any:
        if (name.startswith("__") and name not in ("__name__", "__doc__")) or name in _PREDICATES:
            raise AttributeError(name)
        return self._peer.ask("getattr", self, name)

    def __setattr__(self, name: str, value: Any) -> None:
        self._peer.ask("setattr", self, name, value)

    def __delattr__(self, name: str) -> None:
        self._peer.ask("delattr", self, name)

    def __getitem__(self, key: Any) -> Any:
        return self._peer.ask("getitem", self, key)

    def __setitem__(self, key: Any, value: Any) -> None:
        self._peer.ask("setitem", self, key, value)

    def __delitem__(self, key: Any) -> None:
        self._peer.ask("delitem", self, key)

    def __iter__(self) -> Iterator[Any]:
        return self._peer.ask("iter", self)  # type: ignore[no-any-return]

    def __next__(self) -> Any:
        return self._peer.ask("next", self)

    def __instancecheck__(self, value: Any) -> bool:
        return isinstance(value, Remote) and self._peer.ask("isinstance", value, self) is True

    def __subclasscheck__(self, value: Any) -> bool:
        return isinstance(value, Remote) and self._peer.ask("issubclass", value, self) is True

    def __enter__(self) -> Any:
        return self._peer.ask("enter", self)

    def __exit__(self, kind: object, value: object, trace: object) -> bool:
        return self._peer.ask("exit", self, None, None, None) is True

    def __hash__(self) -> int:
        try:
            return hash(self._peer.base(self))
        except TypeError:
            return self._number


def _update(mine: Any, became: Any) -> None:
    """Make a container of the test's what it became at the answer."""
    if type(mine) is not type(became) or mine == became:
        return
    if isinstance(mine, list | bytearray):
        mine[:] = became
    elif isinstance(mine, dict | set):
        mine.clear()
        mine.update(became)
    elif isinstance(mine, deque):
        mine.clear()
        mine.extend(became)


def _operator(name: str) -> None:
    """Two objects of the answer's are left to it; with plain data the one's plain value counts, if it has any."""

    def apply(left: Any, right: Any, *, swapped: bool = False) -> Any:
        mine, other = (right, left) if swapped else (left, right)
        if isinstance(other, Remote):
            return mine._peer.ask(name, left, right)
        try:
            base = mine._peer.base(mine)
        except TypeError:
            return NotImplemented
        return getattr(operator, name)(*((other, base) if swapped else (base, other)))

    plain = name.rstrip("_")
    setattr(Remote, f"__{plain}__", apply)
    if name in _ARITHMETIC:
        setattr(Remote, f"__r{plain}__", lambda self, other: apply(other, self, swapped=True))


def _conversion(name: str, kind: type | None) -> None:
    def convert(self: Any) -> Any:
        value = self._peer.ask(name, self)
        if kind is not None and type(value) is not kind:
            raise TypeError(f"{name} gave no {kind.__name__}")
        return value

    setattr(Remote, f"__{name}__", convert)


for _name in (*_COMPARISONS, *_ARITHMETIC):
    _operator(_name)
for _name, _kind in _UNARY.items():
    _conversion(_name, _kind)


class Examiner(Peer):
    """Asks the answer's process; of the test it hands out functions and iterators, to be called and nothing else."""

    def __init__(self, most_bytes: int) -> None:
        super().__init__(CHANNEL, most_bytes)
        self._bases: dict[int, Any] = {}

    def ask(self, operation: str, *arguments: Any) -> Any:
        try:
            return super().ask(operation, *arguments)
        except ProtocolError:
            # The answer's doing, and nothing that a test may catch.
            os._exit(1)
        except NotPlainError as error:
            say(json.dumps({"cannot": str(error)}))
            os._exit(0)

    def base(self, remote: Remote) -> Any:
        """The plain value of an object; what cannot change is asked for once, or it would change with each question."""
        number = remote._number
        if number in self._bases:
            return self._bases[number]
        value = self.ask("base", remote)
        if isinstance(value, int | float | str | bytes | tuple | frozenset):
            self._bases[number] = value
        return value

    def refer(self, value: Any) -> Any:
        if isinstance(value, Remote):
            return {"h": value._number}
        # A file is an iterator too, but whoever gets one wants to read it.
        walks = isinstance(value, Iterator) and type(value).__module__ in ("builtins", "itertools")
        if callable(value) or walks:
            return {"k": self.hold(value)}
        if isinstance(value, BaseException):
            return repr(value)
        raise NotPlainError(f"the test hands the answer a {type(value).__name__}, which cannot leave its process")

    def resolve(self, tag: str, content: Any) -> Any:
        if tag == "h":
            return self.held(content)
        if tag != "o" or type(content) is not int:
            raise ProtocolError("no value")
        return Remote(self, content)

    def heard(self, text: str) -> None:
        sys.stdout.write(text)

    def answer(self, operation: str, arguments: list[Any]) -> Any:
        if operation == "next":
            return next(arguments[0])
        if operation != "call":
            raise ProtocolError(operation)
        function, given, named = arguments
        return function(*given, **named)


def main() -> None:
    """Run the test; say whether it went through, or that it cannot be run so."""
    task, _ = start()
    peer = Examiner(task["most_bytes"])
    # Nothing of ours is in the names of the test.
    names: dict[str, Any] = {"__name__": "solution", **_taken(peer, task)}
    exec(compile(task["test"], "test.py", "exec"), names)
    say(json.dumps({"passed": True}))
    os._exit(0)


def _taken(peer: Examiner, task: dict[str, Any]) -> dict[str, Any]:
    """The names that the test uses and the answer has. Built-in functions are the test's own, but for what it tests."""
    tree = ast.parse(task["test"])
    used = {node.id for node in ast.walk(tree) if isinstance(node, ast.Name)}
    wanted = {name for name in used if not name.startswith("__") and not hasattr(builtins, name)}
    # A library of which a test uses a part is the library, whatever the answer calls by its name.
    owners = {_identifier(node.value) for node in ast.walk(tree) if isinstance(node, ast.Attribute)}
    called = {_identifier(node.func) for node in ast.walk(tree) if isinstance(node, ast.Call)}
    libraries = (owners - called) & wanted & sys.stdlib_module_names
    wanted -= libraries
    if task["function"]:
        wanted.add(task["function"])
    taken: dict[str, Any] = {name: import_module(name) for name in libraries}
    for name, (kind, value) in peer.ask("names", sorted(wanted)).items():
        if kind == "value":
            taken[name] = value
        elif kind == "module" and value == name and name in sys.stdlib_module_names:
            taken[name] = import_module(name)
        elif kind == "typing" and name[0].isupper():
            taken[name] = getattr(import_module("typing"), name)
        elif kind == "error":
            taken[name] = _error(name, value)
            peer.known[name] = taken[name]
    return taken


def _identifier(node: ast.expr) -> str:
    return node.id if isinstance(node, ast.Name) else ""


def _error(name: str, ancestors: list[str]) -> type[BaseException]:
    for ancestor in ancestors:
        kind = getattr(builtins, ancestor, None)
        if isinstance(kind, type) and issubclass(kind, BaseException):
            return type(name, (kind,), {})
    raise ProtocolError("an exception that is none")
