"""What a person sees: errors, findings and plain columns. Colour only on a terminal that wants it."""

from __future__ import annotations

import os
import shutil
import sys
import textwrap
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, TextIO

from nemotron.errors import CompileError, Finding, NemotronError, Origin

if TYPE_CHECKING:
    from rich.console import RenderableType

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
        lines.append(textwrap.indent(snippet, "  "))
    if hint is not None:
        lines.append(f"{styled('hint:', 'hint', err)} {hint}")
    print("\n".join(lines), file=err)


def print_columns(rows: Sequence[Sequence[str]], *, header: Sequence[str]) -> None:
    """Print aligned columns on stdout; on a terminal the last column is cut to fit, in a pipe it is whole."""
    widths = [max(len(row[n]) for row in (header, *rows)) for n in range(len(header) - 1)]
    for number, row in enumerate((header, *rows)):
        line = "  ".join([*(cell.ljust(width) for cell, width in zip(row, widths, strict=False)), row[-1]])
        if sys.stdout.isatty():
            line = line[: shutil.get_terminal_size().columns]
        print(styled(line, "title", sys.stdout) if number == 0 else line)


def print_rendered(renderable: RenderableType) -> None:
    """A rich renderable on stdout; a pipe has no width, so there every line is as long as it needs to be."""
    from rich.console import Console
    from rich.measure import Measurement

    console = Console(highlight=False, markup=False)
    if console.is_terminal:
        console.print(renderable)
        return
    console.width = 10_000
    console.width = max(80, Measurement.get(console, console.options, renderable).maximum)
    with console.capture() as captured:
        console.print(renderable)
    print("\n".join(line.rstrip() for line in captured.get().splitlines()))


def print_title(text: str) -> None:
    """A section title on stdout, after an empty line."""
    print(f"\n{styled(text, 'title', sys.stdout)}")


def print_block(text: str, *, indent: int = 2) -> None:
    """Text on stdout, wrapped to the terminal (100 columns in a pipe)."""
    width = min(shutil.get_terminal_size((100, 24)).columns, 120) if sys.stdout.isatty() else 100
    pad = " " * indent
    words = " ".join(text.split())
    print(textwrap.fill(words, width, initial_indent=pad, subsequent_indent=pad, break_on_hyphens=False))
