"""Hold a program of somebody else's on a leash: ``python -m nemotron.processes.leash [--clean=SECONDS] COMMAND ...``.

The program ends with everything that it has started when our stdin closes, that is, when whoever started us lets go or
is killed. It never sees that stdin.

With ``--clean`` it is asked to end first and has so many seconds for it. Such a program has a folder of its own for
temporary files (``TMPDIR``), which goes with it however it ends: some leave sockets and shared memory behind when they
are killed.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Sequence

CLEAN = "--clean="
POLITE_S = 2.5
"""Seconds for a polite end; whoever lets go kills all of us soon after."""


def main(words: Sequence[str]) -> int:
    """Run a command in a process group of ours; returns its exit code."""
    if os.getpgrp() != os.getpid():
        # What is ended below must not be the group of whoever started us.
        os.setpgid(0, 0)
    clean = words[0].startswith(CLEAN)
    polite_s = float(words[0].removeprefix(CLEAN)) if clean else 0.0
    command = words[1:] if clean else words
    # Short, as the path of a socket has to be.
    scratch = tempfile.mkdtemp(prefix="nemotron-") if clean else None
    environment = os.environ if scratch is None else {**os.environ, "TMPDIR": scratch}
    if scratch is not None:
        _remove_after_us(scratch)
    let_go = threading.Event()
    with subprocess.Popen(command, stdin=subprocess.DEVNULL, env=environment) as program:

        def watch() -> None:
            while os.read(0, 4096):
                continue  # words on our stdin are for nobody
            let_go.set()
            if clean:
                _pass_on(program, signal.SIGTERM)
                with contextlib.suppress(subprocess.TimeoutExpired):
                    program.wait(polite_s)
            # The group has this process, the program and what it has started: all of it ends here.
            os.killpg(0, signal.SIGKILL)

        watcher = threading.Thread(target=watch, name="leash", daemon=True)
        watcher.start()
        # A polite end is for the program; we say how it ended.
        signal.signal(signal.SIGTERM, lambda number, frame: _pass_on(program, number))
        code = program.wait()
        if let_go.is_set():
            # What the program has started may still be there.
            watcher.join()
    if scratch is not None:
        shutil.rmtree(scratch, ignore_errors=True)
    return code if code >= 0 else 128 - code


def _pass_on(program: subprocess.Popen[bytes], number: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        program.send_signal(number)


def _remove_after_us(folder: str) -> None:
    """Have ``folder`` removed when this process is no more, even by ``kill -9`` of its group."""
    ours, theirs = os.pipe()
    if os.fork():
        os.close(ours)  # the other end is closed by our end
        return
    os.setsid()
    os.close(theirs)
    nothing = os.open(os.devnull, os.O_RDWR)
    for descriptor in (0, 1, 2):
        os.dup2(nothing, descriptor)
    os.read(ours, 1)
    shutil.rmtree(folder, ignore_errors=True)
    os._exit(0)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
