"""How a process of ours ends: an error becomes a message with place and fix, and an exit code.

The command and the worker end here, and nowhere else is an error turned into an exit code or caught for good.
"""

from __future__ import annotations

import errno
import io
import os
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any, TextIO

from nemotron import __version__
from nemotron.disk.faults import reason
from nemotron.errors import CompileError, Finding, NemotronError, NotFoundError, Origin, OutputError, UsageError
from nemotron.own_code import raised_by_own_code

_COLOURS = {"error": "31;1", "warning": "33;1", "note": "36;1", "hint": "32", "title": "1", "dim": "2"}


def styled(text: str, style: str, stream: TextIO) -> str:
    """``text`` in a colour when ``stream`` is a terminal and NO_COLOR is not set."""
    if not stream.isatty() or os.environ.get("NO_COLOR"):
        return text
    return f"\033[{_COLOURS[style]}m{text}\033[0m"


def print_error(error: NemotronError, *, label: str = "error") -> None:
    """Print an error on stderr: message, place, source lines if it has any, hint; first its findings if it has any."""
    if isinstance(error, CompileError):
        # Once something is wrong, notes and warnings would only bury it.
        print_findings(finding for finding in error.findings if finding.severity == "error")
    _say(label, error.message, error.origin, getattr(error, "snippet", None), error.hint)


def print_findings(findings: Iterable[Finding]) -> None:
    """Print findings on stderr, one block each."""
    for finding in findings:
        _say(finding.severity, finding.message, finding.origin, None, finding.hint)
        print(file=sys.stderr)


def _say(label: str, message: str, origin: Origin | None, snippet: str | None, hint: str | None) -> None:
    err = sys.stderr
    lines = [f"{styled(f'{label}:', label, err)} {message}"]
    if origin is not None:
        lines.append(f"  {styled('-->', 'dim', err)} {origin}")
    if snippet is not None:
        import textwrap

        lines.append(textwrap.indent(snippet, "  "))
    if hint is not None:
        lines.append(f"{styled('hint:', 'hint', err)} {hint}")
    print("\n".join(lines), file=err)


def exit_code_of(action: Callable[[], int], words: tuple[str, ...]) -> int:
    """Do ``action`` and return its exit code, or print the error that ends it on stderr and return that one's.

    Args:
        words: the command line, for the report of a bug.
    """
    steady_streams()
    try:
        with interrupts_first():
            code = action()
        sys.stdout.flush()
    except NemotronError as error:
        print_error(error)
        return error.finding_exit_code if isinstance(error, CompileError) else error.exit_code
    except KeyboardInterrupt as interrupt:
        if isinstance(interrupt.__cause__, NemotronError):
            print_error(interrupt.__cause__, label="warning")
        return 130
    except BrokenPipeError:
        # The reader of a pipe left, as `| head` does. Python would complain when it flushes at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except Exception as error:  # noqa: BLE001  a bug must not look like a crash of the user's making
        if isinstance(error, FileNotFoundError) and (gone := _without_folder()) is not None:
            print_error(gone)
            return gone.exit_code
        from nemotron.out_of_memory import out_of_memory

        if (known := out_of_memory(error) or _name_too_long(error) or _forbidden(error)) is not None:
            print_error(known)
            return known.exit_code
        _report_bug(error, words)
        return 1
    except SystemExit as error:
        # A step that ends the process says nothing, and its number may be any.
        if (own := raised_by_own_code(error)) is None:
            raise
        print_error(own)
        return own.exit_code
    return code


@contextmanager
def interrupts_first() -> Iterator[None]:
    """An error that the block raises in the wake of an interrupt is that interrupt, with the error as its cause:
    whatever is broken off in mid-work, of ours or of a library, may raise once more when it lets go of what it holds.
    """
    try:
        yield
    except BaseException as error:
        behind: BaseException | None = error
        while behind is not None and not isinstance(behind, KeyboardInterrupt):
            behind = behind.__context__
        if behind is None or behind is error:
            raise
        raise behind from error


def _name_too_long(error: Exception) -> UsageError | None:
    """The error for a name that no file system takes, whoever looked it up; None of other errors."""
    if not isinstance(error, OSError) or error.errno != errno.ENAMETOOLONG:
        return None
    name = os.fsdecode(error.filename) if isinstance(error.filename, str | bytes) else ""
    message = f"the name `{name[:40]}...` is too long for a file: it has {len(os.fsencode(name)):,} bytes"
    return UsageError(message, hint="a name has at most 255 bytes, a path 4,096")


def _forbidden(error: Exception) -> NotFoundError | None:
    """The error for a path in a folder that one may not enter, whoever looked it up; None of other errors."""
    if not isinstance(error, PermissionError) or not isinstance(error.filename, str | bytes | os.PathLike):
        return None
    name = os.fsdecode(error.filename)
    return NotFoundError(
        f"cannot get at `{name}`: {reason(error)}", hint="ask its owner for the right to it, or name another path"
    )


class _Messages(io.FileIO):
    """Takes what nobody reads: a run must not end because its messages have no reader or no room any more."""

    def write(self, data: Any) -> int:
        try:
            return super().write(data)
        except OSError:
            return len(data)


class _Data(io.FileIO):
    """Says what is wrong with stdout in the user's words; a reader who left is the pipe's own error."""

    def write(self, data: Any) -> int:
        try:
            return super().write(data)
        except BrokenPipeError:
            raise
        except OSError as error:
            # What was not written would be tried again, and complained of, when Python ends.
            os.dup2(os.open(os.devnull, os.O_WRONLY), self.fileno())
            raise OutputError(f"cannot write to stdout: {reason(error)}") from error


def steady_streams() -> None:
    """Make the streams of this process ones that can be written to, whatever the shell did with them.

    A stream that was closed takes what is written, and keeps its number from the next file that is opened. Messages
    that cannot be written are lost; data that cannot be are an error. Streams that a caller put there stay as they are.
    """
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # the lowest free number, which is this one
    if sys.stdout is sys.__stdout__ and not _is_steady(sys.stdout):
        sys.stdout = _text(_Data(1, "w", closefd=False), sys.stdout)
    if sys.stderr is sys.__stderr__ and not _is_steady(sys.stderr):
        sys.stderr = _text(_Messages(2, "w", closefd=False), sys.stderr)


def _is_steady(stream: TextIO | None) -> bool:
    raw = getattr(getattr(stream, "buffer", None), "raw", None)
    return isinstance(raw, _Messages | _Data)


def _text(raw: io.FileIO, before: TextIO | None) -> io.TextIOWrapper:
    """A text stream onto ``raw`` that writes as ``before`` did, which is none when it was closed."""
    encoding, errors = (before.encoding, before.errors) if before is not None else ("utf-8", "backslashreplace")
    lines = raw.isatty() or isinstance(raw, _Messages)
    return io.TextIOWrapper(io.BufferedWriter(raw), encoding=encoding, errors=errors, line_buffering=lines)


def _without_folder() -> NotFoundError | None:
    """What to say when the folder is gone that relative paths begin in."""
    try:
        os.getcwd()
    except OSError:
        return NotFoundError(
            "the folder in which this command was given is not there any more",
            hint="`cd` to one that is, and give it again",
        )
    return None


def _report_bug(error: Exception, words: tuple[str, ...]) -> None:
    """A short message and a file with the traceback, which NEMOTRON_TRACEBACK=1 prints at once. What a step of the
    user's own raised is reported alike, as that step's."""
    import tempfile
    import traceback

    text = "".join(traceback.format_exception(error))
    if os.environ.get("NEMOTRON_TRACEBACK") == "1":
        print(text, file=sys.stderr)
    own = raised_by_own_code(error)
    if own is not None:
        print_error(own)
        whose = "this is the step's own code, not nemotron's"
    else:
        print(f"error: unexpected {type(error).__name__}: {str(error).partition(chr(10))[0]}", file=sys.stderr)
        whose = "this is a bug in nemotron"
    # Values may be secrets; the keys are enough to find a bug.
    command = " ".join(f"{word.partition('=')[0]}=..." if "=" in word else word for word in words)
    try:
        with tempfile.NamedTemporaryFile("w", prefix="nemotron-crash-", suffix=".log", delete=False) as log:
            log.write(f"nemotron {__version__}\nPython {sys.version}\ncommand: {command}\n\n{text}")
        todo = f"please report it with `{log.name}`" if own is None else f"its traceback is in `{log.name}`"
        print(f"hint: {whose}; {todo}", file=sys.stderr)
    except OSError:
        print(f"hint: {whose}; NEMOTRON_TRACEBACK=1 prints where", file=sys.stderr)
