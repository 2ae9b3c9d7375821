"""What a person sees on stdout: plain columns, titles, wrapped text. Colour only on a terminal that wants it."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

from nemotron.outcome import styled

if TYPE_CHECKING:
    from rich.console import RenderableType

    from nemotron.executors.base import Submission


def print_columns(rows: Sequence[Sequence[str]], *, header: Sequence[str]) -> None:
    """Print aligned columns on stdout; on a terminal the last column is cut to fit, in a pipe it is whole."""
    import shutil

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


def print_submission(submission: Submission) -> None:
    """What would be sent to a cluster, exactly, part by part."""
    for part in submission.shown():
        print_title(f"--- {part.title}")
        print(part.text)


def print_title(text: str) -> None:
    """A section title on stdout, after an empty line."""
    print(f"\n{styled(text, 'title', sys.stdout)}")


def print_block(text: str, *, indent: int = 2) -> None:
    """Text on stdout, wrapped to the terminal (100 columns in a pipe)."""
    import shutil
    import textwrap

    width = min(shutil.get_terminal_size((100, 24)).columns, 120) if sys.stdout.isatty() else 100
    pad = " " * indent
    words = " ".join(text.split())
    print(textwrap.fill(words, width, initial_indent=pad, subsequent_indent=pad, break_on_hyphens=False))
