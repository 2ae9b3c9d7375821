"""SIGTERM, a scheduler's polite end, stops what runs as Ctrl-C does: status written, helpers ended."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType


@contextmanager
def terminated_like_interrupted(*more: signal.Signals) -> Iterator[None]:
    """SIGTERM, and what else is named, raises KeyboardInterrupt while the block runs. For the main thread.

    What the process was started to ignore (``nohup``) stays ignored.
    """

    def stop(signum: int, frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    known = {number: signal.getsignal(number) for number in (signal.SIGTERM, *more)}
    before = {number: old for number, old in known.items() if number == signal.SIGTERM or old != signal.SIG_IGN}
    for number in before:
        signal.signal(number, stop)
    try:
        yield
    finally:
        for number, old in before.items():
            signal.signal(number, old)


@contextmanager
def held_back() -> Iterator[None]:
    """Ctrl-C and SIGTERM wait until the block is done, for what must be done as a whole. Other threads get none."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    came: list[int] = []
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    # What was not set from Python cannot be put back from there.
    before = {number: handler for number, handler in handlers.items() if handler is not None}
    try:
        for number in before:
            signal.signal(number, lambda number, frame: came.append(number))
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        for noted in came:
            signal.raise_signal(noted)
