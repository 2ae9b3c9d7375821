"""Which node comes before which: names that exist, no circles, and no node that nobody needs."""

from __future__ import annotations

from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter

from nemotron.errors import ConfigError, Finding, Origin
from nemotron.pipelines.file import NodeSpec, PipelineSpec
from nemotron.suggest import closest, listed


def in_order(pipeline: PipelineSpec) -> tuple[list[NodeSpec], list[Finding]]:
    """The nodes, each behind those that it needs and else as they are written, and what is wrong with the graph.

    There are none where something is wrong.
    """
    findings = list(_unknown(pipeline))
    if not findings:
        findings += _circles(pipeline)
    if not findings:
        findings += _useless(pipeline)
    if findings:
        return [], findings
    sorter = TopologicalSorter(_graph(pipeline))
    sorter.prepare()
    found: list[NodeSpec] = []
    place = {name: number for number, name in enumerate(pipeline.nodes)}
    while sorter.is_active():
        ready = sorted(sorter.get_ready(), key=lambda name: place[name])
        found += [pipeline.nodes[name] for name in ready]
        sorter.done(*ready)
    return found, []


def finding(name: str, message: str, origin: Origin | None, hint: str | None = None) -> Finding:
    """An error of a pipeline."""
    return Finding("error", name, message, None, origin, hint, exit_code=ConfigError.exit_code)


def _graph(pipeline: PipelineSpec) -> dict[str, list[str]]:
    return {name: [needed for needed, _ in node.needs()] for name, node in pipeline.nodes.items()}


def _unknown(pipeline: PipelineSpec) -> Iterator[Finding]:
    """Nodes that are named and not there."""
    named = [entry for node in pipeline.nodes.values() for entry in node.needs()]
    for name, origin in (*named, *pipeline.result):
        if name not in pipeline.nodes:
            guess = closest(name, pipeline.nodes)
            hint = f"did you mean `{guess}`?" if guess else f"there are {listed(pipeline.nodes)}"
            yield finding("unknown-node", f"there is no node `{name}`", origin, hint)


def _circles(pipeline: PipelineSpec) -> Iterator[Finding]:
    try:
        TopologicalSorter(_graph(pipeline)).prepare()
    except CycleError as error:
        circle = [str(name) for name in error.args[1]]
        names = " -> ".join(f"`{name}`" for name in circle)
        # The place that closes the circle: where the one takes the other.
        taker = pipeline.nodes[circle[1]]
        origin = next(origin for name, origin in taker.needs() if name == circle[0])
        yield finding(
            "circle", f"the nodes {names} need one another in a circle", origin, "take one of the arrows away"
        )


def _useless(pipeline: PipelineSpec) -> Iterator[Finding]:
    """Nodes that nobody takes anything from or waits for, and that are not what the pipeline is for."""
    needed = {name for node in pipeline.nodes.values() for name, _ in node.needs()}
    wanted = {name for name, _ in pipeline.result}
    for name, node in pipeline.nodes.items():
        if name not in needed and name not in wanted:
            hint = f"take it, wait for it with `after: {name}`, or name it in `result`"
            yield finding("unused-node", f"nobody takes what `{name}` makes", node.origin, hint)
