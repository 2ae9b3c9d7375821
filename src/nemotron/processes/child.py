"""One way to start, hear, watch and end a process of ours: judge, critic, reward workers, a server of somebody else's.

A child has a session of its own, so Ctrl-C in a terminal is for the run, which then ends its children, and so a child
can be ended with everything that it has started. It lives no longer than its parent: our own programs end when their
stdin closes (:mod:`nemotron.processes.lifetime`), those of others are started on a leash
(:mod:`nemotron.processes.leash`).
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO, Any

from nemotron.errors import OutputError
from nemotron.processes.leash import CLEAN, POLITE_S

_POLL_S = 0.2
_STOP_TIMEOUT_S = 3.0
_TAIL_BYTES = 2000
_BLOCK = 1 << 16
_LONGEST_LINE = 64 << 20
"""Bytes of a line from a child; one that is longer is no line of ours."""


class ChildEnded(Exception):
    """The process is no more, or has closed its stdout."""


class Child:
    """A process with pipes to its stdin and from its stdout. Used by one thread at a time, but for :meth:`kill`."""

    def __init__(
        self,
        name: str,
        *,
        hidden: Sequence[str] = (),
        log_path: Path | None = None,
        show_stderr: bool = False,
        log_stdout: bool = False,
    ) -> None:
        """Nothing is started yet.

        Args:
            name: for messages, "judge".
            hidden: words kept out of :meth:`tail`, such as a token.
            log_path: where stderr goes; by default a temporary file that vanishes.
            show_stderr: leave stderr where ours is, as for code of the user's that prints.
            log_stdout: stdout goes to the log, too, as for a program that has no words for us; there are no lines then.
        """
        self._name, self._hidden, self._log_path = name, tuple(hidden), log_path
        self._show_stderr, self._log_stdout = show_stderr, log_stdout
        self._process: subprocess.Popen[bytes] | None = None
        self._log: IO[bytes] | None = None
        self._rest = b""
        self._started = 0.0

    def start(self, command: Sequence[str], environment: Mapping[str, str], *, cwd: Path | None = None) -> None:
        """Start ``command`` in exactly this ``environment``, in ``cwd`` or where we are; returns at once.

        Raises:
            OutputError: the log cannot be written.
            OSError: there is no such program.
        """
        self._log = None if self._show_stderr else self._open_log()
        self._started, self._rest = time.monotonic(), b""
        self._process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=self._log if self._log_stdout else subprocess.PIPE,
            stderr=self._log,
            env=dict(environment),
            cwd=cwd,
            start_new_session=True,
        )

    @property
    def process(self) -> subprocess.Popen[bytes]:
        """The process, while there is one."""
        if self._process is None:
            raise RuntimeError(f"the {self._name} is used outside of its `with` block")
        return self._process

    @property
    def running(self) -> bool:
        """Whether it has been started and has not ended."""
        return self._process is not None and self._process.poll() is None

    def send(self, line: bytes) -> None:
        """Write a line to its stdin.

        Raises:
            ChildEnded: it does not read any more.
        """
        pipe = self.process.stdin
        assert pipe is not None
        try:
            pipe.write(line + b"\n")
            pipe.flush()
        except (BrokenPipeError, ValueError) as error:
            raise ChildEnded from error

    def line(self, deadline: float) -> bytes:
        """The next line of its stdout, without the line feed; half a line does not outlast ``deadline``.

        Args:
            deadline: on the clock of ``time.monotonic``.

        Raises:
            TimeoutError: there is none by then.
            ChildEnded: there will be none.
        """
        pipe = self.process.stdout
        assert pipe is not None
        while b"\n" not in self._rest:
            # The pipe's own buffer is not used: what `select` sees must be all there is.
            readable, _, _ = select.select([pipe], [], [], max(0.0, deadline - time.monotonic()))
            if not readable:
                raise TimeoutError
            block = os.read(pipe.fileno(), _BLOCK)
            if not block or len(self._rest) > _LONGEST_LINE:
                raise ChildEnded
            self._rest += block
        line, _, self._rest = self._rest.partition(b"\n")
        return line

    def returncode(self) -> int | None:
        """Its exit code when it has ended; None while it runs."""
        return self.process.poll()

    def ended(self, within_s: float = _POLL_S) -> int | None:
        """As ``returncode`` after a moment: a refused connection is noticed a little before the process is gone."""
        try:
            return self.process.wait(within_s)
        except subprocess.TimeoutExpired:
            return None

    def kill(self) -> None:
        """End it at once, with everything that it has started; also while another thread waits for a line."""
        process = self._process
        if process is not None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)

    def close(self, *, patience_s: float = _STOP_TIMEOUT_S) -> None:
        """Close its stdin, wait a little, end what is left of it. May be called more than once."""
        process = self._process
        if process is not None:
            for pipe in (process.stdin, process.stdout):
                if pipe is not None:
                    # What was not sent is for a process that is no more.
                    with contextlib.suppress(BrokenPipeError):
                        pipe.close()
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(patience_s)
            self.kill()
            process.wait()
            self._process, self._rest = None, b""
        if self._log is not None:
            self._log.close()
            self._log = None

    def tail(self) -> str:
        """The end of its stderr, on lines of its own; empty when it wrote nothing."""
        text = self.words(_TAIL_BYTES)
        return f":\n{text}" if text else ""

    def words(self, size: int) -> str:
        """The last ``size`` bytes of its stderr as text."""
        if self._log is None:
            return ""
        # The child writes at the file offset that both share, so it must not be moved.
        descriptor = self._log.fileno()
        start = max(0, os.fstat(descriptor).st_size - size)
        text = os.pread(descriptor, size, start).decode(errors="replace")
        for word in self._hidden:
            text = text.replace(word, "[token]")
        return text.strip()

    def _open_log(self) -> IO[bytes]:
        if self._log_path is None:
            return tempfile.TemporaryFile()
        try:
            return self._log_path.open("w+b")
        except OSError as error:
            raise OutputError(f"cannot write the {self._name}'s log `{self._log_path}`: {error.strerror}") from error


class ServerChild(Child):
    """A server. Starting returns at once; loading takes seconds that the caller can use."""

    def start_server(self, command: Sequence[str], variables: Mapping[str, str]) -> None:
        """Start one of our own servers with ``variables`` beside our environment. Raises OutputError without a log."""
        self.start(command, {**os.environ, **variables})

    def start_on_leash(
        self,
        command: Sequence[str],
        variables: Mapping[str, str],
        *,
        clean: bool = False,
        polite_s: float = POLITE_S,
    ) -> None:
        """Start a server of somebody else's, which knows nothing of us, and end it when we end.

        Args:
            clean: with a folder for its temporary files that goes with it (:mod:`nemotron.processes.leash`).
            polite_s: how long such a one may take to end.
        """
        words = [f"{CLEAN}{polite_s}"] if clean else []
        self.start_server([sys.executable, "-m", "nemotron.processes.leash", *words, *command], variables)

    def announcement(self, timeout_s: float) -> dict[str, Any] | None:
        """What one of our servers says when it is ready, a line of JSON; None when it died (see ``returncode``) or the
        time is up.

        Other lines are what a library prints on a stdout that is not its own; they are passed over. ``timeout_s``
        counts from the start.
        """
        while True:
            try:
                line = self.line(self._started + timeout_s)
            except TimeoutError:
                return None
            except ChildEnded:
                with contextlib.suppress(subprocess.TimeoutExpired):
                    self.process.wait(_STOP_TIMEOUT_S)
                return None
            try:
                announced = json.loads(line)
            except ValueError:
                continue
            if isinstance(announced, dict):
                return announced

    def answers(self, url: str, timeout_s: float) -> bool:
        """Wait until it answers ``url`` with success; False when it died (see ``returncode``) or the time is up."""
        # An HTTP client, which whoever has children of other kinds does without.
        from nemotron.processes.answering import healthy

        while time.monotonic() < self._started + timeout_s and self.running:
            if healthy(url):
                return True
            time.sleep(_POLL_S)
        return False
