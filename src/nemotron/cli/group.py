"""What commands are made of: groups, arguments with a help of their own, and what several commands take."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import click

Body = TypeVar("Body", bound=Callable[..., Any] | click.Command)

HELP = {"help_option_names": ["-h", "--help"]}
PATH = click.Path(path_type=Path)


@dataclass(frozen=True, slots=True)
class Invocation:
    """The words of the command line, for messages that point at one; commands get it by `click.pass_obj`."""

    words: tuple[str, ...]
    """Everything after `nemotron` up to ``--``."""
    passthrough: tuple[str, ...]
    """Everything after ``--``."""


class UnknownCommand(click.UsageError):
    """A word that names no command of a group."""

    def __init__(self, name: str, ctx: click.Context) -> None:
        super().__init__(f"No such command {name!r}.", ctx)
        self.name = name


class RepeatedOption(click.UsageError):
    """An option with one value that is given more than once."""

    def __init__(self, option: click.Parameter, ctx: click.Context) -> None:
        super().__init__(f"`{'/'.join(option.opts)}` is given more than once", ctx)
        self.names = tuple(option.opts)


def _has_one_value(parameter: click.Parameter) -> bool:
    return isinstance(parameter, click.Option) and not (parameter.multiple or parameter.is_flag or parameter.count)


def _kind(parameter: click.Parameter) -> str:
    """What the value is, as the help shows it."""
    kind = "path" if isinstance(parameter.type, click.Path) else "str"
    return f"<list[{kind}]>" if parameter.nargs == -1 else f"<{kind}>"


class WholeNumber(click.IntRange):
    """One that its complaints call what it is; click calls it an integer range."""

    name = "integer"


class Argument(click.Argument):
    """One that the help explains: click before 8.5 knows no help of arguments."""

    def __init__(self, decls: list[str], help: str, **attrs: Any) -> None:
        super().__init__(decls, **attrs)
        self.about = help

    def get_usage_pieces(self, ctx: click.Context) -> list[str]:
        """``{NEEDED}``, ``[IF WANTED]`` or ``[AS MANY AS WANTED]...``."""
        shown = f"{{{self.human_readable_name}}}" if self.required else f"[{self.human_readable_name}]"
        return [f"{shown}..." if self.nargs == -1 else shown]

    def row(self) -> tuple[str, str]:
        """The line of the help."""
        extra = ""
        if self.required:
            extra = "  [required]"
        elif isinstance(self.default, str | Path):
            extra = f"  [default: {self.default}]"
        return f"{self.human_readable_name} {_kind(self)}", f"{self.about}{extra}"


class Option(click.Option):
    """One that says of a value without a name what it is."""

    def make_metavar(self, ctx: click.Context) -> str:
        """What stands for the value in the help."""
        return self.metavar or _kind(self)


class Command(click.Command):
    """One whose help has a section of arguments, and whose options with one value are given once."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """As click does, which would take the last of several values without a word.

        Raises:
            RepeatedOption: an option that has one value is there twice.
        """
        given = [one for one in self.make_parser(ctx).parse_args(list(args))[2] if _has_one_value(one)]
        if twice := next((one for one in given if given.count(one) > 1), None):
            raise RepeatedOption(twice, ctx)
        return super().parse_args(ctx, args)

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the sections of arguments and options."""
        rows = [parameter.row() for parameter in self.params if isinstance(parameter, Argument)]
        if rows:
            with formatter.section("Arguments"):
                formatter.write_dl(rows)
        super().format_options(ctx, formatter)


class Group(click.Group):
    """One that shows its help, also by ``-h``, when it is given no command, and lists commands as they were written."""

    command_class = Command

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Their names, in the order of the help."""
        return list(self.commands)

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """The command that the first word names.

        Raises:
            UnknownCommand: there is none of that name.
        """
        if self.get_command(ctx, args[0]) is None:
            raise UnknownCommand(args[0], ctx)
        return super().resolve_command(ctx, args)


def group(text: str) -> Group:
    """A group of commands."""
    return Group(help=text, context_settings=HELP)


def argument(name: str, *, help: str, **attrs: Any) -> Callable[[Body], Body]:
    """A word of the command line that is no option."""
    return click.argument(name, cls=Argument, help=help, **attrs)


def option(*names: str, help: str, **attrs: Any) -> Callable[[Body], Body]:
    """An option with a value; ``names`` ends with that of the function's argument where it is another one."""
    return click.option(*names, cls=Option, help=help, **attrs)


def flag(*names: str, help: str, **attrs: Any) -> Callable[[Body], Body]:
    """An option without a value."""
    return click.option(*names, is_flag=True, help=help, **attrs)


def runs_dir_option(help: str) -> Callable[[Body], Body]:
    """Where the runs are."""
    return option(
        "--runs-dir",
        type=PATH,
        envvar="NEMOTRON_RUNS_DIR",
        show_envvar=True,
        default=Path("runs"),
        show_default=True,
        help=help,
    )


as_json = flag("--json", "as_json", help="Print JSON.")
runs_dir = runs_dir_option("The folder that holds the run folders.")
