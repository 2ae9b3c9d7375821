"""SIGTERM, a scheduler's polite end, stops what runs as Ctrl-C does: status written, helpers ended."""

from __future__ import annotations

import signal
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
