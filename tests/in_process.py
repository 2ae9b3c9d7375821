"""`nemotron` in the process of the tests: starting Python costs as much as the command, and torch ten times as much.

What the command may leave behind (environment, folder, logging, signal handlers, threads of torch, what it remembers of
the disk) is put back. What only a process of its own can show is tested with one: tests/cli/test_surface.py, kills.
"""

from __future__ import annotations

import gc
import io
import logging
import os
import signal
import sys
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, redirect_stderr, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nemotron.cli.main import main

NOISE = ("RL_", "NEMOTRON_", "HF_", "NO_COLOR", "FORCE_COLOR", "COLUMNS", "LINES", "TERM")
"""Beginnings of the variables that change what the command says."""


@dataclass(frozen=True)
class Result:
    """How a command ended."""

    code: int
    stdout: str
    stderr: str


def nemotron(*words: str, cwd: Path | None = None, env: Mapping[str, str] | None = None, bare: bool = False) -> Result:
    """One command line, to its end.

    Args:
        cwd: the folder to work in; default the present one.
        env: variables to set.
        bare: leave out the variables of `NOISE`.
    """
    out, err = (
        io.TextIOWrapper(io.BytesIO(), encoding="utf-8", errors=errors, newline="", write_through=True)
        for errors in ("strict", "backslashreplace")  # as those of Python
    )
    with ExitStack() as stack:
        stack.enter_context(_put_back())
        if cwd is not None:
            os.chdir(cwd)
        for name in list(os.environ):
            if bare and name.startswith(NOISE):
                del os.environ[name]
        os.environ.update(env or {})
        sys.argv = ["nemotron", *words]
        stack.enter_context(redirect_stdout(out))
        stack.enter_context(redirect_stderr(err))
        code = main(words)
    return Result(code, *(stream.buffer.getvalue().decode() for stream in (out, err)))


@contextmanager
def _put_back() -> Iterator[None]:
    environment, folder, argv = dict(os.environ), os.getcwd(), sys.argv
    handlers = {number: signal.getsignal(number) for number in signal.valid_signals()}
    root = logging.getLogger()
    levels = {logger: logger.level for logger in [root, *map(logging.getLogger, root.manager.loggerDict)]}
    root_handlers, disabled = list(root.handlers), root.manager.disable
    threads = sys.modules["torch"].get_num_threads() if "torch" in sys.modules else None
    _forget_the_disk()
    try:
        yield
    finally:
        gc.unfreeze()
        os.chdir(folder)
        for name in os.environ.keys() - environment.keys():
            del os.environ[name]
        os.environ.update(environment)
        sys.argv = argv
        for number, handler in handlers.items():
            if signal.getsignal(number) is not handler:
                signal.signal(number, handler)
        root.handlers[:], root.manager.disable = root_handlers, disabled
        for logger, level in levels.items():
            if logger.level != level:  # each call empties what every other logger remembers
                logger.setLevel(level)
        if threads is not None:
            sys.modules["torch"].set_num_threads(threads)
        _forget_the_disk()


_bounded: dict[str, list[Any]] = {}
"""Module -> its caches that have a bound."""
_looked_at = 0
"""Modules there were when that was looked up."""


def _forget_the_disk() -> None:
    """Empty every cache with a bound: they hold what was read from files, by paths that may be relative.

    Those without one hold facts of the program, which are the same for every command.
    """
    global _looked_at
    if len(sys.modules) != _looked_at:
        _looked_at = len(sys.modules)
        for name, module in list(sys.modules.items()):
            if name.startswith("nemotron.") and name not in _bounded:
                cached = [value for value in vars(module).values() if hasattr(value, "cache_clear")]
                _bounded[name] = [value for value in cached if value.cache_parameters()["maxsize"] is not None]
    for caches in _bounded.values():
        for cache in caches:
            cache.cache_clear()
