"""``report.html``: what one run did, on a page (:mod:`nemotron.reports.page`)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from nemotron.artifacts.lineage import origins
from nemotron.disk.atomic import write_atomic
from nemotron.errors import NemotronError, NotFoundError
from nemotron.outcome import print_error
from nemotron.reports.asked import asked_of
from nemotron.reports.audit_report import write_audit_report
from nemotron.reports.figures import figures
from nemotron.reports.lineage import lineage
from nemotron.reports.page import page
from nemotron.reports.pairs import select
from nemotron.runs import metrics as m
from nemotron.runs.folder import RunFolder
from nemotron.runs.headlines import Card
from nemotron.runs.health import troubles
from nemotron.runs.status import ReportedState
from nemotron.runs.summary import summarise
from nemotron.runs.views import JUDGED_GRPO, View, view_of
from nemotron.runs.words import duration, label, percent


def write_report(run: RunFolder, state: ReportedState | None = None) -> Path:
    """Write ``report.html`` of a run in any state, from one without steps to a finished one; returns its path.

    ``state`` as in :func:`nemotron.runs.summary.summarise`.

    Raises:
        NotFoundError: a run of this step has none.
        NotAvailableError: jinja2 or plotly is not installed.
        OutputError: the file cannot be written; an older report stays.
        DataError, ArtifactError: the run folder is damaged.
    """
    job = run.job()
    if view_of(job) is None:
        raise NotFoundError(
            f"`{run.id}` has no report: {job.step} measures nothing while it works",
            hint="`nemotron runs show` has what is known of it; `last:STEP` names the last run of a step",
        )
    if job.view == "audit":
        return write_audit_report(run, state)
    write_atomic(run.report, render(run, state).encode())
    return run.report


def report_or_warn(run: RunFolder) -> None:
    """:func:`write_report` at the end of a job: what was done stays done, whatever keeps the page from being drawn."""
    try:
        write_report(run)
    except Exception as error:  # noqa: BLE001 - hours of work must not fail on a figure
        known = error if isinstance(error, NemotronError) else None
        reason = known.message if known else f"{type(error).__name__}: {error}"
        again = f"`nemotron runs report {run.path}` draws it later"
        hint = f"{known.hint}; {again}" if known and known.hint else again
        print_error(NemotronError(f"the report was not drawn: {reason}", hint=hint), label="warning")


def render(run: RunFolder, state: ReportedState | None = None) -> str:
    """The HTML of the report."""
    summary = summarise(run, state)
    view = view_of(run.job()) or JUDGED_GRPO
    rows = m.by_step(run.read_metrics())
    heldout = summary["heldout"]
    drawn = figures(
        rows,
        kl_limit=summary["kl_limit"],
        heldout_before=heldout["aspects_before"],
        heldout_after=heldout["aspects_after"],
        view=view,
    )
    return page(
        "report.html.j2",
        drawn,
        summary=summary,
        progress=_progress(summary),
        leading=leading_cards(summary, view),
        other=other_cards(summary, view),
        aspects=_aspects(heldout),
        troubles=troubles(rows),
        not_drawn=[figure.title for figure in drawn if not figure.data],
        samples=select(run.read_samples()),
        best=view.best,
        worst=view.worst,
        asked=asked_of(run.job()),
        lineage=lineage(run.job()),
        origins=origins(run.job()),
        files=_files(run, summary),
    )


def leading_cards(summary: dict[str, Any], view: View) -> list[Card]:
    """The numbers to read first."""
    return [headline.card(summary) for headline in view.leading if headline.shown(summary)]


def other_cards(summary: dict[str, Any], view: View) -> list[Card]:
    """The numbers of the second row."""
    total = summary["steps_total"]
    return [
        *(headline.card(summary) for headline in view.other if headline.shown(summary)),
        Card("Steps", str(summary["steps"]), f"of {total}" if total else ""),
        Card("Time", duration(summary["wall_s"]), ""),
    ]


def _progress(summary: dict[str, Any]) -> str:
    words = [summary["step"], summary["config"] and f"-c {summary['config']}", summary["engine"]]
    started = str(summary["started_at"])[:16].replace("T", " ")
    return " · ".join([*(str(word) for word in words if word), f"{started} UTC"])


def _aspects(heldout: dict[str, Any]) -> list[dict[str, str]]:
    before, after = heldout["aspects_before"] or {}, heldout["aspects_after"] or {}
    names = sorted({*before, *after}, key=lambda name: (name != heldout["headline"], [*before, *after].index(name)))
    rows = []
    for name in names:
        old, new = m.number(before.get(name)), m.number(after.get(name))
        delta = "–" if old is None or new is None else f"{100 * (new - old):+.1f}"
        rows.append({"name": label(name), "before": percent(old), "after": percent(new), "delta": delta})
    return rows


def _files(run: RunFolder, summary: dict[str, Any]) -> list[dict[str, str]]:
    names = {"checkpoint": summary["checkpoint"], "metrics": summary["metrics"], "samples": summary["samples"]}
    names["compiled job"] = str(run.path / "job.json")
    return [
        {"name": name, "path": _within(run, Path(path)), "inside": str(Path(path).is_relative_to(run.path))}
        for name, path in names.items()
        if path
    ]


def _within(run: RunFolder, path: Path) -> str:
    return path.relative_to(run.path).as_posix() if path.is_relative_to(run.path) else str(path)
