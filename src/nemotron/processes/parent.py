"""What a child process says to the one that started it."""

from __future__ import annotations

import os
from typing import TextIO


def tell(out: TextIO, line: str) -> None:
    """Write a line for the parent; ends this process, without a word, where nobody reads it any more.

    Raises:
        SystemExit: the parent is gone, and with it all need for this process.
    """
    try:
        out.write(f"{line}\n")
        out.flush()
    except BrokenPipeError:
        # Python would try what is left once more when it closes the stream, and complain.
        os.dup2(os.open(os.devnull, os.O_WRONLY), out.fileno())
        raise SystemExit(1) from None
