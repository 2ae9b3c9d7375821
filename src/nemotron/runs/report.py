"""``report.html``: one file with everything in it, readable without a network and safe to open.

Responses are text from a model and may hold anything. Jinja2 escapes every value, figures travel as JSON with
``<``, ``>`` and ``&`` escaped, and the page's own content security policy runs only the scripts this module wrote and
loads nothing from anywhere.
"""

from __future__ import annotations

import secrets
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from nemotron.errors import NotAvailableError
from nemotron.runs import metrics as m
from nemotron.runs.atomic import write_atomic
from nemotron.runs.figures import aspect_label, figures
from nemotron.runs.folder import RunFolder
from nemotron.runs.lineage import lineage
from nemotron.runs.pairs import select
from nemotron.runs.summary import HEADLINE, change, duration, percent, summarise


@dataclass(frozen=True, slots=True)
class Card:
    """One number at the top of the report."""

    label: str
    value: str
    detail: str
    tone: Literal["", "good", "bad"] = ""


def write_report(run: RunFolder) -> Path:
    """Write ``report.html`` of a run in any state, from one without steps to a finished one; returns its path.

    Raises:
        NotAvailableError: jinja2 or plotly is not installed.
        OutputError: the file cannot be written; an older report stays.
        DataError, ArtifactError: the run folder is damaged.
    """
    write_atomic(run.report, render(run).encode())
    return run.report


def render(run: RunFolder) -> str:
    """The HTML of the report."""
    try:
        from jinja2 import Environment, PackageLoader, StrictUndefined
        from markupsafe import Markup
        from plotly.offline import get_plotlyjs
    except ModuleNotFoundError as error:
        raise NotAvailableError(
            f"reports need the package `{error.name}`", hint="install it with `pip install 'nemotron[local]'`"
        ) from error
    summary = summarise(run)
    rows = m.by_step(run.read_metrics())
    heldout = summary["heldout"]
    drawn = figures(
        rows,
        kl_limit=summary["kl_limit"],
        heldout_before=heldout["aspects_before"],
        heldout_after=heldout["aspects_after"],
    )
    loader = PackageLoader("nemotron.runs", "templates")
    environment = Environment(
        loader=loader,
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    own = {name: Markup(loader.get_source(environment, name)[0]) for name in ("report.css", "report.js")}
    return environment.get_template("report.html.j2").render(
        summary=summary,
        progress=_progress(summary),
        leading=leading_cards(summary),
        other=other_cards(summary),
        aspects=_aspects(heldout),
        figures=[figure for figure in drawn if figure.data],
        not_drawn=[figure.title for figure in drawn if not figure.data],
        figure_data=[{"id": f.id, "data": f.data, "layout": f.layout} for f in drawn if f.data],
        samples=select(run.read_samples()),
        lineage=lineage(run.job()),
        files=_files(run, summary),
        css=own["report.css"],
        script=own["report.js"],
        plotly=Markup(get_plotlyjs()),
        nonce=secrets.token_urlsafe(16),
    )


def leading_cards(summary: dict[str, Any]) -> list[Card]:
    """The four numbers to read before the reward."""
    kl, largest, limit = summary["kl"], summary["kl_max"], summary["kl_limit"]
    over = limit is not None and largest is not None and largest > limit
    bound = "" if limit is None else f", limit {limit:g}"
    heldout = summary["heldout"]
    delta = heldout["delta"]
    return [
        Card(
            "KL to the reference",
            "–" if kl is None else f"{kl:.4f}",
            "nats per token" if largest is None else f"nats per token, largest {largest:.4f}{bound}",
            "" if limit is None or largest is None else "bad" if over else "good",
        ),
        Card(
            "Reward spread",
            _number(summary["reward_std"], 3),
            f"std of a step, {change(summary['reward_std_before'], summary['reward_std'], 3)}",
        ),
        Card(
            "Response length",
            _number(summary["response_length"], 1),
            f"tokens, {change(summary['response_length_before'], summary['response_length'], 1)}",
        ),
        Card(
            "Held-out fully right",
            percent(heldout["after"] if heldout["after"] is not None else heldout["before"]),
            "before training" if delta is None else f"from {percent(heldout['before'])}, {100 * delta:+.1f} points",
            "" if delta is None else "good" if delta > 0 else "bad",
        ),
    ]


def other_cards(summary: dict[str, Any]) -> list[Card]:
    """The numbers of the second row."""
    total = summary["steps_total"]
    return [
        Card("Reward", _number(summary["reward"], 3), change(summary["reward_before"], summary["reward"], 3)),
        Card("Truncated responses", percent(summary["truncation_rate"]), "last steps"),
        Card("Missing verdicts", percent(summary["missing_share"]), "all steps"),
        Card("Steps", str(summary["steps"]), f"of {total}" if total else ""),
        Card("Time", duration(summary["wall_s"]), ""),
    ]


def _progress(summary: dict[str, Any]) -> str:
    words = [summary["step"], summary["config"] and f"-c {summary['config']}", summary["engine"]]
    started = str(summary["started_at"])[:16].replace("T", " ")
    return " · ".join([*(str(word) for word in words if word), f"{started} UTC"])


def _aspects(heldout: dict[str, Any]) -> list[dict[str, str]]:
    before, after = heldout["aspects_before"] or {}, heldout["aspects_after"] or {}
    names = sorted({*before, *after}, key=lambda name: (name != HEADLINE, [*before, *after].index(name)))
    rows = []
    for name in names:
        old, new = m.number(before.get(name)), m.number(after.get(name))
        delta = "–" if old is None or new is None else f"{100 * (new - old):+.1f}"
        rows.append({"name": aspect_label(name), "before": percent(old), "after": percent(new), "delta": delta})
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


def _number(value: float | None, digits: int) -> str:
    return "–" if value is None else f"{value:.{digits}f}"
