"""The answer's side of a test, inside its sandbox. Copied there; it knows no right value and decides nothing.

``task.json`` says what to do with ``solution.py``: run it as a program, call a function of it, or do what a test in
another sandbox asks for (`examiner`). What it says is what the answer says: the code shares this process and may as
well speak itself. Whoever asked compares.
"""

from __future__ import annotations

import builtins
import io
import json
import operator
import os
import sys
from types import ModuleType

from nemotron.sandbox.exchange import NotPlainError, Peer, ProtocolError, base_of, decode, encode

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

RESULT_FD, CHANNEL = 3, (4, 5)
_FORBIDDEN = (
    "socket.",
    "os.fork",
    "os.exec",
    "os.posix_spawn",
    "os.spawn",
    "os.system",
    "os.kill",
    "subprocess.",
    "ctypes.",
)
_FORBIDDEN_IN_FULL = {
    *(
        "os.chmod",
        "os.chown",
        "os.link",
        "os.listxattr",
        "os.mkdir",
        "os.remove",
        "os.rename",
        "os.rmdir",
        "os.setxattr",
    ),
    *("os.symlink", "os.truncate", "os.utime", "os.putenv", "os.add_dll_directory", "signal.pthread_kill"),
    *(
        "pty.spawn",
        "resource.prlimit",
        "resource.setrlimit",
        "mmap.__new__",
        "code.__new__",
        "fcntl.fcntl",
        "fcntl.ioctl",
    ),
}


def guard(box: str) -> None:
    """The weak level's only wall against the network and against writing elsewhere: Python's audit hook."""
    inside, flags = box.rstrip("/") + "/", os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        refused = event.startswith(_FORBIDDEN) or event in _FORBIDDEN_IN_FULL
        if event == "open":
            path, mode, flag = arguments
            name = os.fsdecode(path) if isinstance(path, str | bytes) else ""
            writes = (isinstance(mode, str) and set(mode) & set("wax+")) or (isinstance(flag, int) and flag & flags)
            refused = isinstance(path, int) is False and (
                name.startswith("/proc") or (bool(writes) and not os.path.abspath(name).startswith(inside))
            )
        if refused:
            raise PermissionError(f"{event} is not allowed here")

    sys.addaudithook(hook)


def start() -> tuple[dict[str, Any], str]:
    """The task and the answer's source, neither of them left in the folder for later; walls where they are ours."""
    sys.path.remove(os.getcwd())
    with open("task.json", encoding="utf-8") as file:
        task: dict[str, Any] = json.load(file)
    os.unlink("task.json")
    source = ""
    if os.path.exists("solution.py"):
        with open("solution.py", encoding="utf-8", errors="surrogatepass") as file:
            source = file.read()
    if task["weak"]:
        guard(os.getcwd())
    return task, source


def main() -> None:
    """Do the task."""
    task, source = start()
    mode, names = task["mode"], {"__name__": "__main__" if task["mode"] == "main" else "solution"}
    exec(compile(source, "solution.py", "exec"), names)
    if mode == "call":
        solution: Any = names
        function = solution.get(task["function"]) or getattr(solution["Solution"](), task["function"])
        say(json.dumps({"value": function(*task["arguments"])}))
    elif mode == "plain":
        say(json.dumps(_plain(names, task)))
    elif mode == "serve":
        Answer(names, task["most_bytes"]).serve()


def say(text: str) -> None:
    """Write to the result."""
    left = text.encode()
    while left:
        left = left[os.write(RESULT_FD, left) :]


def _plain(names: dict[str, Any], task: dict[str, Any]) -> dict[str, Any]:
    function = names.get(task["function"]) or getattr(builtins, task["function"])
    value = function(*decode(task["arguments"], _unknown))
    try:
        return {"value": encode(value, _refuse)}
    except NotPlainError:
        return {"not_plain": True}


def _refuse(value: Any) -> Any:
    raise NotPlainError(type(value).__name__)


def _unknown(tag: str, content: Any) -> Any:
    raise ProtocolError(tag)


class Borrowed:
    """A function or an iterator of the test's, as the answer sees it: it can be called, and no more."""

    def __init__(self, peer: Peer, number: int) -> None:
        self._peer, self._number = peer, number

    def __call__(self, *arguments: Any, **named: Any) -> Any:
        return self._peer.ask("call", self, list(arguments), named)

    def __iter__(self) -> Borrowed:
        return self

    def __next__(self) -> Any:
        return self._peer.ask("next", self)


class Answer(Peer):
    """Serves the names of the answer and the objects that its functions give."""

    def __init__(self, names: dict[str, Any], most_bytes: int) -> None:
        super().__init__(CHANNEL, most_bytes)
        self._names = names
        self._printed = sys.stdout = io.StringIO()

    def refer(self, value: Any) -> Any:
        if isinstance(value, Borrowed):
            return {"h": value._number}
        return {"o": self.hold(value)}

    def resolve(self, tag: str, content: Any) -> Any:
        return self.held(content) if tag == "h" else Borrowed(self, content)

    def said(self) -> str:
        text = self._printed.getvalue()
        self._printed.seek(0)
        self._printed.truncate()
        return text

    def answer(self, operation: str, arguments: list[Any]) -> Any:
        if operation == "names":
            return {name: self._described(name) for name in arguments[0] if name in self._names}
        if operation == "call":
            function, given, named = arguments
            value = function(*given, **named)
            # By Python's custom what works in place gives None; the test's own objects then become what these became.
            return [value, given if value is None else None]
        if operation == "base":
            return base_of(arguments[0])
        if operation in ("enter", "exit"):
            return getattr(arguments[0], f"__{operation}__")(*arguments[1:])
        function = getattr(builtins, operation, None) or getattr(operator, operation)
        return function(*arguments)

    def _described(self, name: str) -> list[Any]:
        value = self._names[name]
        if isinstance(value, ModuleType):
            return ["module", value.__name__]
        if getattr(value, "__module__", None) == "typing":
            return ["typing", name]
        if isinstance(value, type) and issubclass(value, BaseException):
            return ["error", [kind.__name__ for kind in value.__mro__]]
        return ["value", value]
