"""What runs beside the code that is tested, inside the sandbox: ``python harness.py``. Copied there, stands alone.

``task.json`` says what to do with ``solution.py``: run it as a program, call a function of it, or run a test after it.
The result goes to file descriptor 3 with a token that the code is not given, so that printing "passed" or leaving early
does not pass. (The code shares this process, so code that searches its memory can find the token: see the guide.)
"""

from __future__ import annotations

import json
import os
import sys
from typing import Any

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


def main() -> None:
    """Do the task."""
    with open("task.json", encoding="utf-8") as file:
        task = json.load(file)
    os.unlink("task.json")
    with open("solution.py", encoding="utf-8", errors="surrogatepass") as file:
        source = file.read()
    out = os.dup(3)
    os.close(3)
    mode, names = task["mode"], {"__name__": "__main__" if task["mode"] == "main" else "solution"}
    code = compile(source, "solution.py", "exec")
    if task["weak"]:
        guard(os.getcwd())
    exec(code, names)
    told: dict[str, Any] = {"token": task["token"]}
    if mode == "call":
        solution: Any = names
        function = solution.get(task["function"]) or getattr(solution["Solution"](), task["function"])
        told["value"] = function(*task["arguments"])
    elif mode == "assert":
        exec(compile(task["test"], "test.py", "exec"), names)
    text = json.dumps(told).encode()
    while text:
        text = text[os.write(out, text) :]


if __name__ == "__main__":
    main()
