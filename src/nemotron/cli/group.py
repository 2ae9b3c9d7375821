"""How every group of commands is made: plain text, help by ``-h`` too, and nothing of a shell's completion."""

from __future__ import annotations

import typer

HELP = {"help_option_names": ["-h", "--help"]}


def group(text: str | None = None) -> typer.Typer:
    """A group that shows its help when it is given no command. A single command in it needs no text."""
    return typer.Typer(
        help=text, no_args_is_help=True, rich_markup_mode=None, add_completion=False, context_settings=HELP
    )
