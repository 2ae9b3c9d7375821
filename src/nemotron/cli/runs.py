"""``nemotron runs``: look at runs and their output, compare them, rebuild a report, end a run, go on with one."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from nemotron.cli.group import PATH, Invocation, argument, as_json, flag, group, option, runs_dir
from nemotron.errors import NemotronError, UsageError
from nemotron.outcome import print_error

if TYPE_CHECKING:
    from nemotron.job import CompiledJob
    from nemotron.runs.folder import RunFolder

app = group("Look at runs and their output, rebuild their reports, compare, cancel and resume them.")

run_name = argument(
    "run",
    metavar="RUN",
    help="`last`, `last:STEP`, a run id, a unique beginning or end of one, or a folder.",
)
run_names = argument("runs", metavar="RUN", nargs=-1, help="Two runs or more, each as in the other commands.")
max_steps = option(
    "--max-steps",
    metavar="N",
    type=int,
    help="End with step N instead of `max_num_steps`; a finished run goes on.",
)
attach = flag("--attach", help="Of a run on a cluster: stay until the job ends.")
follow = flag("-f", "--follow", help="Go on until the job ends; its exit code is returned.")
accept_changed = flag(
    "--accept-changed-inputs",
    "accept_changed",
    help="Go on although data or models are not what they were; it is noted.",
)
sweep_name = option("--sweep", metavar="ID", help="All runs of a sweep: `last`, or as its runs are called.")
html_file = option("--html", metavar="FILE", type=PATH, help="Write a page with the curves over each other, too.")


@app.command("list")
@as_json
@runs_dir
def list_command(as_json: bool, runs_dir: Path) -> None:
    """List runs, the newest last."""
    from nemotron.runs.folder import list_runs

    summaries = [_summary(run) for run in list_runs(runs_dir)]
    if as_json:
        _print_json(summaries)
    elif summaries:
        _print_table(summaries)
    else:
        click.echo(f"no runs in `{runs_dir}`", err=True)


@app.command("show")
@run_name
@as_json
@runs_dir
def show_command(run: str, as_json: bool, runs_dir: Path) -> None:
    """Show the summary of a run: KL drift, reward spread, length, held-out metric, paths."""
    from rich.console import Console

    from nemotron.executors import state_of
    from nemotron.runs.summary import print_summary, summarise

    found = _fresh(_find(runs_dir, run))
    if as_json:
        _print_json(summarise(found, state_of(found)))
    else:
        print_summary(found, Console(highlight=False), state_of(found))


@app.command("compare")
@run_names
@sweep_name
@html_file
@as_json
@runs_dir
def compare_command(runs: tuple[str, ...], sweep: str | None, html: Path | None, as_json: bool, runs_dir: Path) -> None:
    """Compare runs: in what they differ, held-out, KL, reward spread, length; mean and spread over seeds."""
    from nemotron.reports.compare_page import group_rows, render_comparison, table_rows
    from nemotron.runs.compare import compare

    if html is not None and (not html.name or html.is_dir()):
        raise UsageError(f"`--html` should name the file of the page, and `{html}` is a folder", hint="as `page.html`")
    found = [_find(runs_dir, name) for name in runs]
    if sweep is not None:
        found += _sweep(runs_dir, sweep)
    comparison = compare([_fresh(run) for run in found], _summary)
    if html is not None:
        from nemotron.disk.atomic import write_atomic
        from nemotron.runs.words import relative

        write_atomic(html, render_comparison(comparison).encode(), place="name another file with `--html`", after="")
        click.echo(f"page: {relative(str(html.absolute()))}", err=True)
    if as_json:
        _print_json(comparison.to_json())
        return
    _print_rows(*table_rows(comparison))
    if comparison.has_seeds:
        click.echo("\nover seeds: mean ± standard deviation")
        _print_rows(*group_rows(comparison))


@app.command("report")
@run_name
@runs_dir
def report_command(run: str, runs_dir: Path) -> None:
    """Rebuild the report.html of a run and print its path."""
    from nemotron.executors import state_of
    from nemotron.reports.report import write_report
    from nemotron.runs.words import relative

    found = _fresh(_find(runs_dir, run))
    click.echo(relative(str(write_report(found, state_of(found)))))


@app.command("resume")
@run_name
@max_steps
@attach
@accept_changed
@runs_dir
@click.pass_obj
def resume_command(
    said: Invocation, run: str, max_steps: int | None, attach: bool, accept_changed: bool, runs_dir: Path
) -> int:
    """Go on with a run from its newest checkpoint, with the config it was started with, where it was started."""
    from nemotron.executors import is_elsewhere
    from nemotron.executors.local import resume

    found = _find(runs_dir, run)
    if not is_elsewhere(found):
        return resume(found.path, max_steps=max_steps, command=said.words, accept_changed=accept_changed)
    from nemotron.executors.elsewhere import resumed

    return resumed(found, max_steps=max_steps, command=said.words, attached=attach, accept_changed=accept_changed)


@app.command("logs")
@run_name
@follow
@runs_dir
def logs_command(run: str, follow: bool, runs_dir: Path) -> int:
    """Print what the newest attempt of a run printed, wherever it runs; `-f` goes on until it ends."""
    from nemotron.executors.elsewhere import print_logs

    return print_logs(_find(runs_dir, run), follow_on=follow)


@app.command("cancel")
@run_name
@runs_dir
def cancel_command(run: str, runs_dir: Path) -> None:
    """End a run that goes on; its checkpoints stay, and `runs resume` goes on with it."""
    from nemotron.executors.elsewhere import cancel

    cancel(_find(runs_dir, run))


def _fresh(run: RunFolder) -> RunFolder:
    """The run, with the mirror of one that lies elsewhere brought up to date."""
    from nemotron.executors import is_elsewhere

    if is_elsewhere(run):
        from nemotron.executors.elsewhere import refresh

        refresh(run)
    return run


def _find(runs_dir: Path, name: str) -> RunFolder:
    """The run of that name; which one `last` is, among runs of different steps, is said."""
    from nemotron.runs.folder import find_run
    from nemotron.runs.words import relative

    found = find_run(runs_dir, name)
    if name == "last":
        click.echo(f"last = {relative(str(found.path))}, {found.job().step}", err=True)
    return found


def _sweep(runs_dir: Path, name: str) -> list[RunFolder]:
    from nemotron.runs.compare import of_sweep
    from nemotron.runs.folder import list_runs

    known = list_runs(runs_dir)
    return of_sweep(known, [_job_or_none(run) for run in known], name)


def _job_or_none(run: RunFolder) -> CompiledJob | None:
    """None for a run that this version cannot read."""
    from nemotron.errors import ArtifactError

    try:
        return run.job()
    except ArtifactError:
        return None


def _summary(run: RunFolder) -> dict[str, Any]:
    """The summary of a run; what can be said of one that this version cannot read."""
    from nemotron.executors import state_of
    from nemotron.runs.status import UNREADABLE
    from nemotron.runs.summary import summarise

    try:
        return summarise(run, state_of(run))
    except NemotronError as error:
        print_error(error, label="warning")
        return {"id": run.id, "status": UNREADABLE, "error": error.message, "run_dir": str(run.path)}


def _print_json(value: Any) -> None:
    from nemotron.runs.jsonl import to_json

    click.echo(to_json(value, indent=2).decode())


def _print_rows(header: list[str], rows: list[list[str]]) -> None:
    from nemotron.cli.render import print_columns

    print_columns(rows, header=header)


def _print_table(summaries: list[dict[str, Any]]) -> None:
    from rich.cells import cell_len
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    from nemotron.runs.summary import state_text

    names = ["run", "status", "steps", "time", "KL", "length", "held-out", "reward"]
    if any(summary.get("sweep") for summary in summaries):
        names.append("sweep")
    rows = [_cells(summary) for summary in summaries]
    console = Console(highlight=False)
    widths = [max(cell_len(cell) for cell in column) + 2 for column in zip(names, *rows, strict=False)]
    # An id is copied from here, and half a figure is a wrong one: where there is no room the last columns stay away.
    shown = len(names)
    while console.is_terminal and shown > 2 and sum(widths[:shown]) > console.width:
        shown -= 1
    console.width = max(console.width, sum(widths[:shown]))
    table = Table(box=None, header_style="dim", padding=(0, 2, 0, 0))
    for name in names[:shown]:
        table.add_column(name, no_wrap=True, justify="right" if name in _FIGURES else "left")
    for run, state, *figures in rows:
        table.add_row(run, Text(*state_text(state)), *figures[: shown - 2])
    console.print(table)


_FIGURES = frozenset({"steps", "time", "KL", "length", "reward"})


def _cells(summary: dict[str, Any]) -> list[str]:
    """A row of the list; of a run that cannot be read no more is known than that."""
    from nemotron.runs.status import UNREADABLE
    from nemotron.runs.words import duration, fixed, percent

    if summary["status"] == UNREADABLE:
        return [summary["id"], UNREADABLE, *[""] * (len(_FIGURES) + 2)]
    heldout = summary["heldout"]
    return [
        summary["id"],
        summary["status"],
        f"{summary['steps']}/{summary['steps_total'] or '?'}",
        duration(summary["wall_s"]),
        fixed(summary["kl"], 4),
        fixed(summary["response_length"], 1),
        f"{percent(heldout['before'])} → {percent(heldout['after'])}",
        fixed(summary["reward"], 3),
        _sweep_text(summary),
    ]


def _sweep_text(summary: dict[str, Any]) -> str:
    """The end of a sweep's name, which is enough to ask for it, and what the run has of it."""
    sweep = summary["sweep"]
    if not sweep:
        return ""
    values = " ".join(f"{key.rpartition('.')[2]}={value}" for key, value in sweep["values"].items())
    return f"{sweep['id'].rpartition('-')[2]} {values}"
