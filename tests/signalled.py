"""Ctrl-C at a chosen line: between two lines is where Python asks whether a signal has come."""

from __future__ import annotations

import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any


@contextmanager
def signalled_at(line: int | None, *files: str) -> Iterator[list[int]]:
    """A signal when the main thread has run that many lines of ``files``, names or what names begin with; how many it
    has run."""
    count = [0]

    def each(frame: FrameType, event: str, argument: object) -> Any:
        if not frame.f_code.co_filename.startswith(files):
            return None
        # Not as a generator is let go of: what is raised there is ignored, and no signal comes there.
        count[0] += event == "line"
        if event == "line" and count[0] == line:
            sys.settrace(None)
            signal.raise_signal(signal.SIGINT)
        return each

    before = sys.gettrace()
    sys.settrace(each)
    try:
        yield count
    finally:
        sys.settrace(before)
