"""The command `nemotron`. Small on purpose: heavy imports happen inside the commands that need them.

`nemotron.outcome` turns what ends a command into a message and an exit code.
"""

from __future__ import annotations

import gc
import os
import sys
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path

from nemotron.disk.home import expanded

# Looking for pydantic's plugins reads the metadata of every installed package.
os.environ.setdefault("PYDANTIC_DISABLE_PLUGINS", "__all__")

import click

from nemotron import __version__
from nemotron.cli.group import HELP, PATH, Group, Invocation, RepeatedOption, UnknownCommand, option
from nemotron.errors import Origin, UsageError
from nemotron.manifest import VARIABLE
from nemotron.outcome import exit_code_of
from nemotron.processes import garbage
from nemotron.suggest import closest, listed

_MODULES = ("steps", "pipelines", "runs", "profiles", "artifacts", "doctor")
"""Of `nemotron.cli`, each with an `app`; in the order in which the help lists them."""


class _Modules(Group):
    """Imports and builds what it is asked for: a light command pays for no other one."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """All of them, imported or not."""
        return list(_MODULES)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """The command or group of that name; None where there is none."""
        if cmd_name in _MODULES and cmd_name not in self.commands:
            self.add_command(import_module(f"nemotron.cli.{cmd_name}").app, cmd_name)
        return super().get_command(ctx, cmd_name)


@click.group(cls=_Modules, context_settings=HELP)
@click.version_option(__version__, prog_name="nemotron", message="%(prog)s %(version)s", help="Print the version.")
@option(
    "--steps-dir",
    metavar="DIR",
    type=PATH,
    multiple=True,
    help="A folder with steps of your own; also NEMOTRON_STEPS.",
)
def app(steps_dir: tuple[Path, ...]) -> None:
    """Compile, prove and run LLM post-training steps, on a laptop or a cluster."""
    if steps_dir:
        # The processes that the command starts have to find them, too.
        named = [str(expanded(path).absolute()) for path in steps_dir]
        os.environ[VARIABLE] = os.pathsep.join([*named, *filter(None, [os.environ.get(VARIABLE)])])


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command line and return its exit code. Messages go to stderr, data to stdout."""
    words = tuple(sys.argv[1:] if argv is None else argv)
    before = gc.get_threshold()
    garbage.starting()
    try:
        return exit_code_of(lambda: _dispatch(words), words)
    finally:
        if argv is None:
            garbage.ending()
        gc.set_threshold(*before)


def _dispatch(words: tuple[str, ...]) -> int:
    cut = words.index("--") if "--" in words else len(words)
    invocation = Invocation(words[:cut], words[cut + 1 :])
    _refuse_bytes(words)
    try:
        # Not `app.main`, which has ends of its own for Ctrl-C, closed pipes and a shell's completion.
        with app.make_context("nemotron", list(invocation.words), obj=invocation) as ctx:
            result = app.invoke(ctx)
    except click.exceptions.Exit as end:
        return end.exit_code
    except click.exceptions.NoArgsIsHelpError as error:
        print(error.format_message(), file=sys.stderr)
        return UsageError.exit_code
    except click.UsageError as error:
        raise _usage_error(error, invocation.words) from None
    return result if isinstance(result, int) else 0


def _refuse_bytes(words: tuple[str, ...]) -> None:
    """Names of files may be any bytes; what is written down about a run is text."""
    try:
        here = os.getcwd()
    except OSError:
        here = ""  # whoever needs the folder says that it is gone
    encoding = sys.getfilesystemencoding()
    hint = f"rename it{', or set PYTHONUTF8=1' if encoding != 'utf-8' else ''}"
    for number, name in enumerate((here, *words)):
        if not name.isprintable() and any("\udc80" <= letter <= "\udcff" for letter in name):
            shown = os.fsencode(name).decode("ascii", "backslashreplace")
            what = "an argument" if number else "the name of this folder"
            origin = Origin("command line", argument=number) if number else None
            raise UsageError(f"{what} is no text in {encoding}: `{shown}`", hint=hint, origin=origin)


def _usage_error(error: click.UsageError, words: tuple[str, ...]) -> UsageError:
    """click's complaint in our words, with the place on the command line and a fix."""
    ctx = error.ctx or _innermost(words)
    if isinstance(error, click.NoSuchOption):
        option = error.option_name
        return UsageError(
            f"unknown option `{option}`", hint=_option_hint(option, ctx, words), origin=_at(option, words)
        )
    if isinstance(error, UnknownCommand) and isinstance(ctx.command, click.Group):
        names = ctx.command.list_commands(ctx)
        guess = closest(error.name, names)
        hint = f"did you mean `{ctx.command_path} {guess}`?" if guess else f"there are {listed(names)}"
        return UsageError(f"unknown command `{error.name}`", hint=hint, origin=_at(error.name, words))
    if isinstance(error, RepeatedOption):
        return UsageError(error.message, hint="keep one of them", origin=_at_again(error.names, words))
    message = error.format_message().rstrip(".").replace("'", "`").replace('"', "`")
    place = _at(error.option_name, words) if isinstance(error, click.BadOptionUsage) else None
    hint = f"`{ctx.command_path} --help` shows the usage"
    return UsageError(message[0].lower() + message[1:], hint=hint, origin=place)


def _innermost(words: tuple[str, ...]) -> click.Context:
    """The context of the command that ``words`` lead to; click leaves it out of some complaints."""
    ctx = click.Context(app, info_name="nemotron")
    for word in words:
        command = ctx.command.get_command(ctx, word) if isinstance(ctx.command, click.Group) else None
        if command is None:
            break
        ctx = click.Context(command, parent=ctx, info_name=word)
    return ctx


def _option_hint(option: str, ctx: click.Context, words: tuple[str, ...]) -> str:
    from nemotron.cli.steps import RUN_OPTIONS

    word = next((word for word in words if word.partition("=")[0] == option), option)
    if "." in option or "=" in word:
        bare = word.lstrip("-")
        if "." in option:
            return f"overrides have no dashes: `{bare if '=' in bare else f'{bare}=...'}`"
    if option in ("-r", "--run") and ctx.command_path == "nemotron pipelines run":
        return "no terminal stays with the jobs of a pipeline: `-b PROFILE` submits all of them to Slurm"
    own = [name for parameter in ctx.command.params for name in (*parameter.opts, *parameter.secondary_opts)]
    if guess := closest(option, [name for name in own if name.startswith("--")]):
        return f"did you mean `{guess}`?"
    if option == "--json":
        other = (
            "; `nemotron doctor PROFILE --json` asks the same" if ctx.command_path == "nemotron profiles check" else ""
        )
        return f"`{ctx.command_path}` prints for people only{other}"
    if option in RUN_OPTIONS and ctx.command_path != "nemotron steps run":
        return f"`{option}` belongs to `nemotron steps run`; write it after the step"
    return f"`{ctx.command_path} --help` lists the options"


def _at_again(names: tuple[str, ...], words: tuple[str, ...]) -> Origin | None:
    """Where an option is given for the second time."""
    found = [number for number, word in enumerate(words, 1) if word.partition("=")[0] in names]
    return Origin("command line", argument=found[1]) if len(found) > 1 else None


def _at(word: str, words: tuple[str, ...]) -> Origin | None:
    for position, candidate in enumerate(words, 1):
        if candidate == word or candidate.startswith(f"{word}="):
            return Origin("command line", argument=position)
    return None
