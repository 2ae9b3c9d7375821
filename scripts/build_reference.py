"""Write docs/reference from the code: commands, exit codes, errors, artifact types, every parameter of every step.

    python scripts/build_reference.py            # write the pages
    python scripts/build_reference.py --check    # exit with 1 when a page is not what the code says

tests/unit/test_reference.py runs the check.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path

import click

from nemotron import errors
from nemotron.cli.group import Argument
from nemotron.cli.main import app
from nemotron.config.describe import Parameter, parameters
from nemotron.manifest import Step, declaration, load_catalog, load_types

FOLDER = Path(__file__).parents[1] / "docs" / "reference"
NOTE = "<!-- Written by scripts/build_reference.py from the code: change the code, not this page. -->\n\n"


def pages() -> dict[str, str]:
    """File name below docs/reference -> content."""
    steps = load_catalog().steps
    found = {
        "README.md": index(steps),
        "cli.md": cli(),
        "exit-codes.md": exit_codes(),
        "errors.md": error_names(steps),
        "artifact-types.md": artifact_types(steps),
    }
    return found | {f"steps/{page_of(step)}": step_page(step) for step in steps}


def page_of(step: Step) -> str:
    """The file name of a step's page."""
    return step.id.replace("/", "-") + ".md"


def index(steps: tuple[Step, ...]) -> str:
    """The list of pages."""
    lines = [
        "# Reference",
        "",
        "- [Commands and options](cli.md)",
        "- [Exit codes](exit-codes.md)",
        "- [Errors by name](errors.md)",
        "- [Artifact types](artifact-types.md)",
        "- Parameters of every step:",
        *(f"  - [`{step.id}`](steps/{page_of(step)}): {step.title}" for step in steps),
    ]
    return NOTE + "\n".join(lines) + "\n"


def cli() -> str:
    """Every command with its arguments and options."""
    return NOTE + "# Commands\n\n" + "\n".join(_command(click.Context(app, info_name="nemotron")))


def _command(ctx: click.Context) -> Iterator[str]:
    command = ctx.command
    if isinstance(command, click.Group):
        for name in command.list_commands(ctx):
            child = command.get_command(ctx, name)
            assert child is not None, name
            yield from _command(click.Context(child, parent=ctx, info_name=name))
        return
    words = [ctx.command_path, *(_usage(one) for one in command.params if isinstance(one, Argument))]
    yield f"## `{' '.join(words)}`\n"
    yield f"{command.help}\n"
    if command.params:
        yield "| | |\n| --- | --- |"
        yield from map(_parameter, command.params)
        yield ""


def _usage(argument: Argument) -> str:
    name = argument.human_readable_name
    many = f"{name} ..." if argument.nargs == -1 else name
    return many if argument.required else f"[{many}]"


def _parameter(parameter: click.Parameter) -> str:
    if isinstance(parameter, Argument):
        return f"| `{parameter.human_readable_name}` | {_cell(parameter.about)} |"
    assert isinstance(parameter, click.Option), parameter.name
    value = "" if parameter.is_flag else f" {parameter.metavar or parameter.human_readable_name.upper()}"
    names = ", ".join(f"`{_cell(f'{name}{value}')}`" for name in (*parameter.opts, *parameter.secondary_opts))
    variable = f" Environment: `{parameter.envvar}`." if parameter.envvar else ""
    return f"| {names} | {_cell(parameter.help or '')}{variable} |"


def _cell(text: str) -> str:
    """Text that stands in a table."""
    return text.replace("|", "\\|")


def exit_codes() -> str:
    """Every exit code with the classes of errors that have it."""
    lines = ["# Exit codes", "", "| code | error | when |", "| --- | --- | --- |", "| 0 | | done |"]
    lines.append("| 1 | | a bug in nemotron; the message names a file with what is needed to find it |")
    classes = [
        value for value in vars(errors).values() if isinstance(value, type) and value is not errors.NemotronError
    ]
    tree = [kind for kind in classes if issubclass(kind, errors.NemotronError) and kind is not errors.CompileError]
    for kind in sorted(tree, key=lambda kind: kind.exit_code):
        meaning = " ".join((kind.__doc__ or "").split())
        lines.append(f"| {kind.exit_code} | `{kind.__name__}` | {meaning} |")
    lines.append("| 130 | | interrupted by Ctrl-C or SIGTERM; `nemotron runs resume` goes on |")
    lines += ["", "A compile that finds several things wrong has the code of the first one."]
    return NOTE + "\n".join(lines) + "\n"


def error_names(steps: tuple[Step, ...]) -> str:
    """Every name of a finding: what its rule looks at, and how to recover, by step."""
    about: dict[str, list[str]] = {}
    recovery: dict[str, dict[str, list[str]]] = {}
    for step in steps:
        for stage in getattr(declaration(step), "rules", ()):
            for rule in (rule for rules in stage for rule in rules.members):
                text = " ".join((rule.check.__doc__ or "").split())
                if text not in about.setdefault(rule.name, []):
                    about[rule.name].append(text)
        for known in step.errors:
            recovery.setdefault(known.name, {}).setdefault(known.recovery, []).append(step.id.rpartition("/")[2])
    lines = ["# Errors by name", ""]
    lines.append("A finding of the dry run has a name (`--json` shows it). What its rule looks at, and what to do:")
    for name in sorted({*about, *recovery}):
        lines += ["", f"## {name}", ""]
        lines += [f"- {text}" for text in about.get(name, ())]
        for text, where in recovery.get(name, {}).items():
            lines.append(f"- {', '.join(f'`{step}`' for step in where)}: {text}")
    return NOTE + "\n".join(lines) + "\n"


def artifact_types(steps: tuple[Step, ...]) -> str:
    """Every artifact type: what it is on disk, what it stands in for, who takes and makes it."""
    lines = ["# Artifact types"]
    for name, kind in load_types().items():
        lines += ["", f"## {name}", "", kind.description, "", f"On disk: {kind.on_disk}"]
        for what, names in (("Stands in for", kind.is_a), ("Converts to", kind.convert_to)):
            if names:
                lines += ["", f"{what}: " + ", ".join(_reference(other, kind.convert_to) for other in names)]
        for what, attribute in (("Taken by", "consumes"), ("Made by", "produces")):
            users = [
                f"`{step.id}`" + (f" ({', '.join(f'`{key}`' for key in artifact.bind)})" if artifact.bind else "")
                for step in steps
                for artifact in getattr(step, attribute)
                if artifact.type == name
            ]
            if users:
                lines += ["", f"{what}: {', '.join(users)}"]
    return NOTE + "\n".join(lines) + "\n"


def _reference(name: str, convert: dict[str, str]) -> str:
    return f"`{name}` with `{convert[name]}`" if name in convert else f"`{name}`"


def step_page(step: Step) -> str:
    """Every parameter of a step: type, value in default.yaml, meaning."""
    lines = [f"# Parameters of `{step.id}`", "", " ".join(step.description.split()), ""]
    lines.append("Values are those of `default.yaml`; `-` is a key that is optional and not set.")
    rows = parameters(declaration(step).config, step.config_dir)
    sections: dict[str, list[Parameter]] = {}
    for row in rows:
        if not row.section:
            sections.setdefault(row.name.rpartition(".")[0], []).append(row)
    about = {row.name: row.description for row in rows if row.section}
    for name, members in sections.items():
        lines += ["", f"## {name or 'at the top'}", ""]
        if about.get(name):
            lines += [about[name], ""]
        lines += ["| key | type | value | meaning |", "| --- | --- | --- | --- |"]
        lines += [_row(row) for row in members]
    return NOTE + "\n".join(lines) + "\n"


def _row(row: Parameter) -> str:
    value = "-" if row.source == "none" else f"`{json.dumps(row.default, ensure_ascii=False, default=str)}`"
    cells = (f"`{row.name.rpartition('.')[2]}`", row.type, value, row.description)
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


def stale() -> list[str]:
    """Pages that are missing, other than the code says, or left over."""
    wanted = pages()
    there = {path.relative_to(FOLDER).as_posix(): path.read_text() for path in FOLDER.rglob("*.md")}
    return sorted(name for name in {*wanted, *there} if wanted.get(name) != there.get(name))


def main() -> int:
    """Write the pages, or check them."""
    if "--check" in sys.argv[1:]:
        print("\n".join(stale()))
        return int(bool(stale()))
    for path in FOLDER.rglob("*.md"):
        path.unlink()
    for name, content in pages().items():
        path = FOLDER / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content)
    return 0


if __name__ == "__main__":
    sys.exit(main())
