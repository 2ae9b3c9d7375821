"""The short answer to "how did it go": one dictionary, and the same for a person.

Average reward alone is not sufficient (a policy can buy reward with drift, length or collapse), so a summary leads
with KL drift, reward variance, response length and the held-out metric.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nemotron.runs import metrics as m
from nemotron.runs.folder import RunFolder
from nemotron.runs.jsonl import Row
from nemotron.runs.status import ReportedState, Status
from nemotron.runs.views import COMMON, JUDGED_GRPO, View, view_of
from nemotron.runs.words import duration, relative

if TYPE_CHECKING:
    from rich.console import Console

SMOOTHED_STEPS = 5
"""Per-step means are noisy: values "before" and "after" are means over the first and last this many steps."""


def summarise(run: RunFolder, state: ReportedState | None = None) -> dict[str, Any]:
    """What ``runs show --json`` prints; a value that is not known is None.

    ``state`` is what the run's executor says of it; without it, what the worker wrote.

    ``heldout.*`` are shares (0 to 1) of held-out answers with the property ``heldout.headline``, ``kl`` the mean
    per-token KL to the reference in nats at the last step and ``kl_max`` its largest value. Rewards,
    ``response_length`` (tokens) and ``truncation_rate`` are means over the last ``averaged_steps`` steps (five), those
    with ``_before`` over the first; in a run of fewer than ten steps the two would share steps, so there the means are
    over all of them and those of before are None. ``missing_share`` is the mean over all steps. The run's view
    (:mod:`nemotron.runs.views`) adds figures of its own. Paths are absolute, None where there is no such file.

    Raises:
        ArtifactError: the folder is damaged.
        DataError: ``metrics.jsonl`` is damaged.
    """
    status, job = run.status(), run.job()
    state = state or status.state
    rows = m.by_step(run.read_metrics())
    view = view_of(job) or JUDGED_GRPO
    kl = m.column(rows, "train/kl_penalty")
    return {
        "id": run.id,
        "step": job.step,
        "config": job.config_name,
        "engine": job.engine,
        "sweep": job.asked.sweep and {"id": job.asked.sweep.id, "values": dict(job.asked.sweep.values)},
        "status": state,
        "error": status.error,
        "started_at": status.started_at,
        "wall_s": _wall_s(status, rows, live=state in ("starting", "running")),
        "steps": max(status.steps_done, int(m.number(rows[-1].get("step")) or 0) if rows else 0),
        "steps_total": status.steps_total,
        "heldout": _heldout(status, view),
        "kl": m.last(kl),
        "kl_max": m.largest(kl),
        "kl_limit": m.number(_nested(job.config, "limits", "max_kl")),
        **_numbers(view, rows),
        "missing_share": m.mean(m.column(rows, "train/missing_share")),
        "checkpoint": _checkpoint(run, status),
        "metrics": _existing(run.metrics),
        "samples": _existing(run.samples),
        "report": _existing(run.report),
        "run_dir": str(run.path),
    }


def _numbers(view: View, rows: list[dict[str, Any]]) -> dict[str, float | None]:
    """The figures that every summary has, then those of the view."""
    # A held-out evaluation has a row of its own (step 0, before training): not a step to average over.
    trained = [row for row in rows if view.step_metric in row]
    window = averaged_steps(trained)
    apart = 2 * window <= len(trained)
    found: dict[str, float | None] = {"averaged_steps": window}
    for number in (*COMMON, *view.numbers):
        metric = next(iter(m.matching(rows, number.metric)), number.metric)
        values = m.column(rows, metric)
        if number.over == "ends":
            found[number.key] = m.mean(m.column(trained[-window:], metric))
            found[f"{number.key}_before"] = m.mean(m.column(trained[:window], metric)) if apart else None
        elif number.over == "span":
            once = len(m.known(values)) < 2
            found |= {number.key: m.last(values), f"{number.key}_before": None if once else m.first(values)}
        else:
            found[number.key] = m.last(values) if number.over == "last" else m.mean(values)
    return found


def averaged_steps(trained: Sequence[Row]) -> int:
    """Steps that a figure "at the end" is the mean of: a few, or all of a run that is too short for two such means."""
    return SMOOTHED_STEPS if len(trained) >= 2 * SMOOTHED_STEPS else len(trained)


def print_summary(run: RunFolder, console: Console | None = None, state: ReportedState | None = None) -> None:
    """Print the summary for a person, to stderr unless a console is given."""
    from rich.console import Console
    from rich.text import Text

    console = console or Console(stderr=True, highlight=False)
    summary = summarise(run, state)
    console.print(
        Text.assemble((summary["id"], "bold"), "  ", state_text(summary["status"]), "  ", _progress(summary)),
        soft_wrap=True,
    )
    if summary["error"]:
        console.print(Text(summary["error"], style="red"), soft_wrap=True)
    paths = [
        (name, relative(summary[name])) for name in ("checkpoint", "metrics", "samples", "report") if summary[name]
    ]
    view = view_of(run.job())
    for lines in (summary_lines(summary, view) if view else [], paths):
        width = max((len(label) for label, _ in lines), default=0)
        for label, value in lines:
            # Soft wrapping leaves a long path in one piece, to be copied.
            console.print(Text.assemble((label.ljust(width), "dim"), "  ", value), soft_wrap=True)


def summary_lines(summary: dict[str, Any], view: View = JUDGED_GRPO) -> list[tuple[str, str]]:
    """The headline numbers as (label, text), in the order in which they should be read."""
    return [headline.line(summary) for headline in (*view.leading, *view.other) if headline.shown(summary)]


def state_text(state: str) -> tuple[str, str]:
    """A state with the rich style it is shown in."""
    styles = {"finished": "green", "running": "cyan", "starting": "cyan", "stopped": "yellow", "interrupted": "yellow"}
    return state, styles.get(state, "red")


def _progress(summary: dict[str, Any]) -> str:
    if summary["engine"] == "plain":
        return f"in {duration(summary['wall_s'])}" if summary["wall_s"] is not None else ""
    total = f" of {summary['steps_total']}" if summary["steps_total"] else ""
    return f"{summary['steps']}{total} steps in {duration(summary['wall_s'])}"


def _heldout(status: Status, view: View) -> dict[str, Any]:
    shares = {**(status.heldout_before or {}), **(status.heldout_after or {})}
    name = next((name for name in (view.heldout, *shares) if name in shares), view.heldout)
    before = m.number((status.heldout_before or {}).get(name))
    after = m.number((status.heldout_after or {}).get(name))
    delta = None if before is None or after is None else after - before
    return {
        "headline": name,
        "before": before,
        "after": after,
        "delta": delta,
        "aspects_before": status.heldout_before,
        "aspects_after": status.heldout_after,
    }


def _wall_s(status: Status, rows: list[dict[str, Any]], *, live: bool) -> float | None:
    measured = m.largest([m.number(status.wall_s), m.last(m.column(rows, "wall_s"))])
    if measured is None and live:
        return (datetime.now(UTC) - datetime.fromisoformat(status.started_at)).total_seconds()
    return measured


def _checkpoint(run: RunFolder, status: Status) -> str | None:
    if status.checkpoint is None:
        return None
    # An absolute path in the status stays what it is; a relative one lies in the run folder, wherever that moved to.
    return _existing(run.path / status.checkpoint)


def _existing(path: Path) -> str | None:
    return str(path) if path.exists() else None


def _nested(value: Any, *keys: str) -> Any:
    for key in keys:
        value = value.get(key) if isinstance(value, dict) else None
    return value
