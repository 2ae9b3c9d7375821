"""`nemotron pipelines`: steps that feed one another, from one file."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from nemotron.cli.group import Invocation, WholeNumber, argument, as_json, flag, group, option, runs_dir_option
from nemotron.cli.render import print_columns, print_rendered, print_title
from nemotron.errors import ArtifactError, CompileError, Finding, Origin, UsageError
from nemotron.outcome import print_error, print_findings

if TYPE_CHECKING:
    from nemotron.config.overrides import Override
    from nemotron.pipelines.chain import Chain, Node
    from nemotron.pipelines.state import PipelineFolder

app = group("List, explain and run chains of steps.")

runs_dir = runs_dir_option("The folder that holds the run folders; `pipelines` lies next to it.")
pipeline_name = argument(
    "pipeline", metavar="PIPELINE", help="A shipped pipeline, or the path of a YAML file of your own."
)
started_name = argument(
    "pipeline", metavar="ID", default="last", help="`last`, an id, or a unique beginning or end of one."
)
started_or_all = argument(
    "pipeline", metavar="ID", required=False, help="`last`, an id, or a part of one; all unless given."
)
overrides = argument(
    "overrides", metavar="NODE.KEY=VALUE", nargs=-1, help="Overrides: node.a.b=v, +node.a.b=v, ~node.a.b"
)
as_svg = flag("--svg", "as_svg", help="Print the graph as an SVG picture.")
dry_run = flag("-d", "--dry-run", help="Compile, print graph and plans, write nothing.")
plans_as_json = flag("--json", "as_json", help="With --dry-run: print graph and plans as JSON.")
force = option("--force", metavar="NODE", multiple=True, help="Do a node anew; may be given more than once.")
begin_with = option("--from", "begin_with", metavar="NODE", help="Do a node anew, and all that depends on it.")
until = option("--until", metavar="NODE", help="Do only a node and what it needs.")
batch = option("-b", "--batch", metavar="PROFILE", help="Submit nodes without a profile of their own.")
side_by_side = option(
    "--side-by-side",
    metavar="N",
    type=WholeNumber(min=1),
    help="Nodes that work at once on this machine; by default one for every two cores, if memory is enough.",
)


@app.command("list")
@as_json
def list_command(as_json: bool) -> None:
    """List the shipped pipelines."""
    from nemotron.pipelines.file import read_pipeline, shipped

    found = [read_pipeline(path) for path in shipped().values()]
    if as_json:
        _print_json(
            [
                {
                    "name": one.name,
                    "title": one.title,
                    "description": one.description,
                    "nodes": {name: node.step for name, node in one.nodes.items()},
                    "file": str(one.path),
                }
                for one in found
            ]
        )
        return
    rows = [(one.name, str(len(one.nodes)), one.title) for one in found]
    print_columns(rows, header=("PIPELINE", "NODES", "WHAT IT DOES"))


@app.command("show")
@pipeline_name
@overrides
@as_svg
@as_json
@runs_dir
@click.pass_obj
def show_command(
    said: Invocation, pipeline: str, overrides: tuple[str, ...], as_svg: bool, as_json: bool, runs_dir: Path
) -> None:
    """Explain a pipeline: its nodes, who takes what from whom, and what is inserted."""
    if as_svg and as_json:
        raise UsageError("`--svg` and `--json` are two forms of one answer", hint="give one of them")
    chain = _compiled(said, pipeline, overrides, runs_dir, None, rehearsal=True, as_json=as_json)[0]
    if as_svg:
        from nemotron.pipelines.draw import svg
        from nemotron.pipelines.start import planned

        print(svg(planned(chain)), end="")
    elif as_json:
        _print_json({**_graph(chain), **_verdict(())})
    else:
        _print_graph(chain)


@app.command("run")
@pipeline_name
@overrides
@dry_run
@plans_as_json
@force
@begin_with
@until
@batch
@side_by_side
@runs_dir
@click.pass_obj
def run_command(
    said: Invocation,
    pipeline: str,
    overrides: tuple[str, ...],
    dry_run: bool,
    as_json: bool,
    force: tuple[str, ...],
    begin_with: str | None,
    until: str | None,
    batch: str | None,
    side_by_side: int | None,
    runs_dir: Path,
) -> int:
    """Compile a pipeline and run its nodes; what was done already is taken from the run that did it."""
    if as_json and not dry_run:
        raise UsageError("`--json` prints the plans, so it needs `--dry-run`")
    chain, parsed = _compiled(said, pipeline, overrides, runs_dir, batch, rehearsal=dry_run, as_json=as_json)
    from nemotron.pipelines.start import asked_for, begin

    if dry_run:
        asked_for(chain, force=force, begin_with=begin_with, until=until)
        _print_plans(chain, as_json=as_json)
        return 0
    folder = begin(
        chain,
        overrides=parsed,
        profile=batch,
        force=force,
        begin_with=begin_with,
        until=until,
        side_by_side=side_by_side,
    )
    at_once = folder.read().side_by_side
    print(f"{folder.id}: {len(chain.nodes)} nodes" + (f", {at_once} at once" if at_once > 1 else ""), file=sys.stderr)
    return _work(said, chain, folder)


@app.command("resume")
@started_name
@runs_dir
@click.pass_obj
def resume_command(said: Invocation, pipeline: str, runs_dir: Path) -> int:
    """Go on with a pipeline at the node where it was cut off."""
    from nemotron.pipelines.start import reopen
    from nemotron.pipelines.state import find
    from nemotron.pipelines.status import overall

    folder = find(runs_dir, pipeline)
    if overall(folder) == "finished":
        print(f"pipeline {folder.id} is finished already", file=sys.stderr)
        return 0
    return _work(said, reopen(folder), folder)


@app.command("status")
@started_or_all
@as_json
@runs_dir
def status_command(pipeline: str | None, as_json: bool, runs_dir: Path) -> None:
    """Show how the nodes of a pipeline stand, or all pipelines that were started."""
    from nemotron.pipelines.page import write_page
    from nemotron.pipelines.state import find, started
    from nemotron.pipelines.status import node_rows, overall

    if pipeline is None:
        found = [_summary(one) for one in started(runs_dir)]
        if as_json:
            _print_json(found)
        elif found:
            rows = [
                (one["id"], one["state"], f"{one['done']}/{one['nodes']}" if "done" in one else "") for one in found
            ]
            print_columns(rows, header=("PIPELINE", "STATE", "DONE"))
        else:
            print("no pipelines were started", file=sys.stderr)
        return
    folder = find(runs_dir, pipeline)
    rows_of = node_rows(folder)
    if not folder.is_held:
        write_page(folder, runs_dir)
    if as_json:
        said = {"id": folder.id, "state": overall(folder, rows_of), "report": str(folder.report)}
        _print_json({**said, "nodes": rows_of})
        return
    print(f"{folder.id}: {overall(folder, rows_of)}")
    cells = [(row["name"], row["state"], row["run"] or "", row["reason"] or "") for row in rows_of]
    print_columns(cells, header=("NODE", "STATE", "RUN", "REASON"))


@app.command("cancel")
@started_name
@runs_dir
def cancel_command(pipeline: str, runs_dir: Path) -> None:
    """End a pipeline; the node that is at work saves its state."""
    from nemotron.pipelines.state import find
    from nemotron.pipelines.status import cancel

    cancel(find(runs_dir, pipeline))


def _compiled(
    said: Invocation,
    pipeline: str,
    overrides: Sequence[str],
    runs_dir: Path,
    profile: str | None,
    *,
    rehearsal: bool,
    as_json: bool,
) -> tuple[Chain, list[Override]]:
    """Compile a pipeline; with ``as_json`` what is wrong with it is printed for machines, too, before it is raised."""
    from nemotron.config.overrides import is_override, parse_overrides
    from nemotron.pipelines.file import find_pipeline
    from nemotron.pipelines.start import compile_file

    words, tokens, start = said.words, [], 0
    for word in overrides:
        start = words.index(word, start) + 1
        if not is_override(word):
            origin = Origin("command line", argument=start)
            raise UsageError(f"`{word}` is not an override", hint="write `NODE.KEY=VALUE`", origin=origin)
        tokens.append((start, word))
    parsed = parse_overrides(tokens)
    try:
        chain = compile_file(find_pipeline(pipeline), parsed, runs_dir, profile=profile, rehearsal=rehearsal)
    except CompileError as error:
        if as_json:
            _print_json(_verdict(error.findings, error.finding_exit_code))
        raise
    return chain, parsed


def _verdict(findings: Iterable[Finding], exit_code: int = 0) -> dict[str, Any]:
    """What was found, and whether the pipeline holds: as `steps run --dry-run --json` says it of one step."""
    from nemotron.compile.plan import finding_json

    return {"ok": exit_code == 0, "exit_code": exit_code, "findings": [finding_json(one) for one in findings]}


def _work(said: Invocation, chain: Chain, folder: PipelineFolder) -> int:
    from nemotron.pipelines.drive import work

    return work(chain, folder, command=said.words)


def _print_graph(chain: Chain) -> None:
    print(chain.spec.title)
    if chain.spec.description:
        print(chain.spec.description)
    print()
    rows = []
    for node in chain.nodes:
        takes = [f"{one.key} <- {one.node} ({one.type})" for one in node.bindings]
        takes += [f"after {name}" for name, _ in node.spec.after]
        name = f"{node.name} (inserted)" if node.inserted else node.name
        rows.append((name, f"{node.step.id} -c {node.plan.config_name}", "; ".join(takes)))
    print_columns(rows, header=("NODE", "STEP", "TAKES"))


def _print_plans(chain: Chain, *, as_json: bool) -> None:
    from nemotron.compile.plan import render_plan
    from nemotron.pipelines.chain import of_node

    found = [of_node(node.spec, one) for node in chain.nodes for one in node.plan.findings if one.severity == "warning"]
    # Of the same words in the same place once: several nodes may have one profile.
    warnings = {(one.message, one.origin): one for one in found}.values()
    if as_json:
        plans = {node.name: node.plan.to_json() for node in chain.nodes}
        _print_json({**_graph(chain), **_verdict(warnings), "plans": plans})
        return
    _print_graph(chain)
    for node in chain.nodes:
        print_title(f"--- {node.name}")
        print_rendered(render_plan(node.plan))
    sys.stdout.flush()
    print_findings(warnings)


def _graph(chain: Chain) -> dict[str, Any]:
    return {
        "name": chain.spec.name,
        "title": chain.spec.title,
        "description": chain.spec.description,
        "result": [name for name, _ in chain.spec.result],
        "nodes": [_node_json(node) for node in chain.nodes],
    }


def _node_json(node: Node) -> dict[str, Any]:
    return {
        "name": node.name,
        "step": node.step.id,
        "config": node.spec.config,
        "inserted": node.inserted,
        "profile": node.profile.name if node.profile else None,
        "takes": [{"key": one.key, "type": one.type, "node": one.node} for one in node.bindings],
        "after": [name for name, _ in node.spec.after],
        "makes": [one.type for one in node.plan.promises],
    }


def _summary(folder: PipelineFolder) -> dict[str, Any]:
    """A row of the list; one that cannot be read is none the less there, and hides no other."""
    from nemotron.pipelines.state import WELL
    from nemotron.pipelines.status import overall

    try:
        state = folder.read()
        done = sum(node.state in WELL for node in state.nodes)
        return {"id": folder.id, "state": overall(folder), "name": state.name, "done": done, "nodes": len(state.nodes)}
    except ArtifactError as error:
        print_error(error, label="warning")
        return {"id": folder.id, "state": "unreadable", "error": error.message}


def _print_json(value: Any) -> None:
    import json

    print(json.dumps(value, indent=2, ensure_ascii=False))
