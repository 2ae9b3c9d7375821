"""Hold a program of somebody else's on a leash: ``python -m nemotron.processes.leash COMMAND ...``.

The program ends with everything that it has started when our stdin closes, that is, when whoever started us lets go or
is killed. It never sees that stdin.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Sequence


def main(command: Sequence[str]) -> int:
    """Run ``command`` in a process group of ours; returns its exit code."""
    if os.getpgrp() != os.getpid():
        # What is ended below must not be the group of whoever started us.
        os.setpgid(0, 0)
    with subprocess.Popen(command, stdin=subprocess.DEVNULL) as program:

        def watch() -> None:
            while os.read(0, 4096):
                continue  # words on our stdin are for nobody
            # The group has this process, the program and what it has started: all of it ends here.
            os.killpg(0, signal.SIGKILL)

        threading.Thread(target=watch, name="leash", daemon=True).start()
        # A polite end is for the program; we say how it ended.
        signal.signal(signal.SIGTERM, lambda number, frame: _pass_on(program, number))
        code = program.wait()
    return code if code >= 0 else 128 - code


def _pass_on(program: subprocess.Popen[bytes], number: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        program.send_signal(number)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
