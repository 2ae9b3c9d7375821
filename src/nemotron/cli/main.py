"""The command `nemotron`. Small on purpose: heavy imports happen inside the commands that need them.

`nemotron.outcome` turns what ends a command into a message and an exit code.
"""

from __future__ import annotations

import gc
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Annotated, Any

# Looking for pydantic's plugins reads the metadata of every installed package, a tenth of a light command's time.
os.environ.setdefault("PYDANTIC_DISABLE_PLUGINS", "__all__")

import typer
from typer.core import TyperGroup

from nemotron import __version__
from nemotron.cli.group import HELP
from nemotron.errors import Origin, UsageError
from nemotron.manifest import VARIABLE
from nemotron.outcome import exit_code_of
from nemotron.suggest import closest, listed

# typer brings its own copy of click from 0.17 on; the class has no public name that old and new versions share.
_ClickException: Any = next(cls for cls in typer.BadParameter.__mro__ if cls.__name__ == "ClickException")
_MODULES = ("steps", "pipelines", "runs", "profiles", "artifacts", "doctor")
"""Of `nemotron.cli`, each with an `app`; in the order in which the help lists them."""


class _Commands(TyperGroup):
    """Imports and builds what it is asked for: a light command pays for no other one."""

    def list_commands(self, ctx: Any) -> list[str]:
        """All of them, built or not."""
        return list(_MODULES)

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        """The command or group of that name; None where there is none."""
        if cmd_name in _MODULES and cmd_name not in self.commands:
            found = typer.main.get_command(import_module(f"nemotron.cli.{cmd_name}").app)
            found.name = cmd_name
            self.commands[cmd_name] = found
        return super().get_command(ctx, cmd_name)


app = typer.Typer(
    cls=_Commands,
    help="Compile, prove and run LLM post-training steps, on a laptop or a cluster.",
    context_settings=HELP,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    add_completion=False,
    no_args_is_help=True,
)


@dataclass(frozen=True, slots=True)
class Invocation:
    """The words of the command line, for messages that point at one."""

    words: tuple[str, ...]
    """Everything after `nemotron` up to ``--``."""
    passthrough: tuple[str, ...]
    """Everything after ``--``."""


def _print_version(wanted: bool) -> None:
    if wanted:
        print(f"nemotron {__version__}")
        raise typer.Exit


@app.callback()
def root(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version.")
    ] = False,
    steps_dir: Annotated[
        list[Path] | None,
        typer.Option("--steps-dir", metavar="DIR", help="A folder with steps of your own; also NEMOTRON_STEPS."),
    ] = None,
) -> None:
    """Take the options that stand before a command."""
    if steps_dir:
        # The processes that the command starts have to find them, too.
        named = [str(path.expanduser().absolute()) for path in steps_dir]
        os.environ[VARIABLE] = os.pathsep.join([*named, *filter(None, [os.environ.get(VARIABLE)])])


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command line and return its exit code. Messages go to stderr, data to stdout."""
    words = tuple(sys.argv[1:] if argv is None else argv)
    # What start-up makes lives to the end: looking for garbage in it after every few hundred objects finds none and is
    # a fifteenth of a light command's time. A run collects as usual (engines/worker.py).
    before = gc.get_threshold()
    gc.set_threshold(100_000, *before[1:])
    try:
        return exit_code_of(lambda: _dispatch(words), words)
    finally:
        gc.set_threshold(*before)


def _dispatch(words: tuple[str, ...]) -> int:
    cut = words.index("--") if "--" in words else len(words)
    invocation = Invocation(words[:cut], words[cut + 1 :])
    try:
        result = app(args=list(invocation.words), prog_name="nemotron", standalone_mode=False, obj=invocation)
    except _ClickException as error:
        if type(error).__name__ == "NoArgsIsHelpError":
            print(error.ctx.get_help(), file=sys.stderr)
            return UsageError.exit_code
        raise _usage_error(error, invocation.words) from None
    return result if isinstance(result, int) else 0


def _usage_error(error: Any, words: tuple[str, ...]) -> UsageError:
    """typer's complaint in our words, with the place on the command line and a fix."""
    command = error.ctx.command_path if getattr(error, "ctx", None) else _command_path(words)
    default_hint = f"`{command} --help` shows the usage"
    if type(error).__name__ == "NoSuchOption":
        option = error.option_name
        hint = _option_hint(option, error, words)
        return UsageError(f"unknown option `{option}`", hint=hint, origin=_at(option, words))
    message = error.format_message().rstrip(".").replace("'", "`").replace('"', "`")
    if message.startswith("No such command"):
        name = message.split("`")[1]
        names = error.ctx.command.list_commands(error.ctx)
        guess = closest(name, names)
        hint = f"did you mean `{command} {guess}`?" if guess else f"there are {listed(names)}"
        return UsageError(f"unknown command `{name}`", hint=hint, origin=_at(name, words))
    place = _at(option, words) if (option := getattr(error, "option_name", None)) else None
    return UsageError(message[0].lower() + message[1:], hint=default_hint, origin=place)


def _command_path(words: tuple[str, ...]) -> str:
    """The command that ``words`` lead to; typer leaves it out of some complaints."""
    command: Any = typer.main.get_command(app)
    path = ["nemotron"]
    for word in words:
        find: Any = getattr(command, "get_command", None)
        command = find(None, word) if find else None  # no context: a name is all that is looked at
        if command is None:
            break
        path.append(word)
    return " ".join(path)


def _option_hint(option: str, error: Any, words: tuple[str, ...]) -> str:
    from nemotron.cli.steps import RUN_OPTIONS

    word = next((word for word in words if word.partition("=")[0] == option), option)
    if "." in option or "=" in word:
        bare = word.lstrip("-")
        if "." in option:
            return f"overrides have no dashes: `{bare if '=' in bare else f'{bare}=...'}`"
    if option in ("-r", "--run") and error.ctx.command_path == "nemotron pipelines run":
        return "no terminal stays with the jobs of a pipeline: `-b PROFILE` submits all of them to Slurm"
    own = [name for parameter in error.ctx.command.params for name in (*parameter.opts, *parameter.secondary_opts)]
    if guess := closest(option, [name for name in own if name.startswith("--")]):
        return f"did you mean `{guess}`?"
    if option in RUN_OPTIONS and error.ctx.command_path != "nemotron steps run":
        return f"`{option}` belongs to `nemotron steps run`; write it after the step"
    return f"`{error.ctx.command_path} --help` lists the options"


def _at(word: str, words: tuple[str, ...]) -> Origin | None:
    for position, candidate in enumerate(words, 1):
        if candidate == word or candidate.startswith(f"{word}="):
            return Origin("command line", argument=position)
    return None
