"""The page of a pipeline: its graph, and how every node went, with links to the reports of the runs."""

from __future__ import annotations

import os
from pathlib import Path

from nemotron.disk.atomic import write_atomic
from nemotron.errors import ArtifactError, DataError, NemotronError
from nemotron.outcome import print_error
from nemotron.pipelines.draw import svg
from nemotron.pipelines.state import PipelineFolder
from nemotron.reports.page import plain_page
from nemotron.runs.folder import RunFolder
from nemotron.runs.summary import summarise, summary_lines
from nemotron.runs.views import view_of
from nemotron.runs.words import duration


def write_page(folder: PipelineFolder, runs_dir: Path) -> None:
    """Write ``report.html`` anew; a page that cannot be written is a warning."""
    try:
        write_atomic(folder.report, render(folder, runs_dir).encode())
    except NemotronError as error:
        print_error(error, label="warning")


def render(folder: PipelineFolder, runs_dir: Path) -> str:
    """The HTML.

    Raises:
        NotAvailableError: jinja2 is not installed.
    """
    state = folder.read()
    rows = []
    for node in state.nodes:
        run = RunFolder(runs_dir / node.run) if node.run is not None else None
        report = os.path.relpath(run.report, folder.path) if run is not None and run.report.is_file() else None
        rows.append({"node": node, "report": report, "facts": _facts(run)})
    return plain_page("pipeline.html.j2", state=state, rows=rows, graph=svg(state), trusted=("graph",))


def _facts(run: RunFolder | None) -> list[tuple[str, str]]:
    """What a run says first."""
    if run is None:
        return []
    try:
        summary, view = summarise(run), view_of(run.job())
    except (ArtifactError, DataError):
        return []  # it was never made, or cannot be read
    facts = [("took", duration(summary["wall_s"]))] if summary["wall_s"] is not None else []
    return facts + (summary_lines(summary, view) if view is not None else [])
