"""A server of our own in a child process: started, waited for, and never left behind.

The child says on stdout, in one line of JSON, when it is ready, and ends when its stdin closes; so it outlives neither
this object nor a parent that was killed.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import subprocess
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO, Any

from nemotron.errors import OutputError

_POLL_S = 0.2
_STOP_TIMEOUT_S = 3.0
_TAIL_BYTES = 2000


class ServerChild:
    """One such process. Starting returns at once; loading takes seconds that the caller can use."""

    def __init__(self, name: str, *, token: str, log_path: Path | None) -> None:
        """``name``: for messages, "judge". ``token``: kept out of ``tail``. ``log_path``: where stderr goes; by default
        a temporary file that vanishes."""
        self._name, self._token, self._log_path = name, token, log_path
        self._process: subprocess.Popen[bytes] | None = None
        self._log: IO[bytes] | None = None
        self._started = 0.0

    def start(self, command: Sequence[str], variables: Mapping[str, str]) -> None:
        """Start ``command`` with ``variables`` beside our own environment. Raises OutputError without a log."""
        self._log = self._open_log()
        self._started = time.monotonic()
        self._process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log,
            env={**os.environ, **variables},
            # Ctrl-C in the terminal is for the run; the run then ends its server.
            start_new_session=True,
        )

    @property
    def process(self) -> subprocess.Popen[bytes]:
        """The process, while there is one."""
        if self._process is None:
            raise RuntimeError(f"the {self._name} is used outside of its `with` block")
        return self._process

    def announcement(self, timeout_s: float) -> dict[str, Any] | None:
        """What the server says when it is ready; None when it died (see ``returncode``) or the time is up.

        ``timeout_s`` counts from its start.
        """
        process = self.process
        if process.stdout is None:
            raise RuntimeError("the server was started without a pipe")
        while time.monotonic() < self._started + timeout_s:
            readable, _, _ = select.select([process.stdout], [], [], _POLL_S)
            if readable:
                line = process.stdout.readline()
                if not line:
                    process.wait(_STOP_TIMEOUT_S)
                    return None
                announced: dict[str, Any] = json.loads(line)
                return announced
        return None

    def returncode(self) -> int | None:
        """Its exit code when it has ended; None while it runs."""
        return self.process.poll()

    def ended(self) -> int | None:
        """As ``returncode`` after a moment: a refused connection is noticed a little before the process is gone."""
        try:
            return self.process.wait(_POLL_S)
        except subprocess.TimeoutExpired:
            return None

    def close(self) -> None:
        """End the server. May be called more than once."""
        process, self._process = self._process, None
        if process is not None:
            for pipe in (process.stdin, process.stdout):
                if pipe is not None:
                    with contextlib.suppress(BrokenPipeError):
                        pipe.close()
            try:
                process.wait(_STOP_TIMEOUT_S)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        if self._log is not None:
            self._log.close()
            self._log = None

    def tail(self) -> str:
        """The end of the server's stderr, on lines of its own; empty when it wrote nothing."""
        if self._log is None:
            return ""
        # The child writes at the file offset that both share, so it must not be moved.
        descriptor = self._log.fileno()
        start = max(0, os.fstat(descriptor).st_size - _TAIL_BYTES)
        text = os.pread(descriptor, _TAIL_BYTES, start).decode(errors="replace")
        text = text.replace(self._token, "[token]").strip()
        return f":\n{text}" if text else ""

    def _open_log(self) -> IO[bytes]:
        if self._log_path is None:
            return tempfile.TemporaryFile()
        try:
            return self._log_path.open("w+b")
        except OSError as error:
            raise OutputError(f"cannot write the {self._name}'s log `{self._log_path}`: {error.strerror}") from error
