"""The short answer to "how did it go": one dictionary, and the same for a person.

Average reward alone is not sufficient (a policy can buy reward with drift, length or collapse), so a summary leads
with KL drift, reward variance, response length and the held-out metric.
"""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nemotron.runs import metrics as m
from nemotron.runs.folder import RunFolder
from nemotron.runs.status import Status

if TYPE_CHECKING:
    from rich.console import Console

SMOOTHED_STEPS = 5
"""Per-step means are noisy: values "before" and "after" are means over the first and last this many steps."""
HEADLINE = "fully_right"


def summarise(run: RunFolder) -> dict[str, Any]:
    """What ``runs show --json`` prints; a value that is not known is None.

    ``heldout.*`` are shares (0 to 1) of fully right held-out answers, ``kl`` the mean per-token KL to the reference
    in nats at the last step and ``kl_max`` its largest value. Rewards, ``response_length`` (tokens) and
    ``truncation_rate`` are means over the last five steps, those with ``_before`` over the first five.
    ``missing_share`` is the mean over all steps. Paths are absolute, None where there is no such file.

    Raises:
        ArtifactError: the folder is damaged.
        DataError: ``metrics.jsonl`` is damaged.
    """
    status, job = run.status(), run.job()
    state = run.state()
    rows = m.by_step(run.read_metrics())
    # A held-out evaluation has a row of its own (step 0, before training): not a step to average over.
    trained = [row for row in rows if "train/reward" in row]
    ends = {"": trained[-SMOOTHED_STEPS:], "_before": trained[:SMOOTHED_STEPS]}
    kl = m.column(rows, "train/kl_penalty")
    averages = {
        f"{name}{suffix}": m.mean(m.column(part, metric))
        for name, metric in _AVERAGED.items()
        for suffix, part in ends.items()
    }
    return {
        "id": run.id,
        "step": job.get("step"),
        "config": job.get("config_name"),
        "engine": job.get("engine"),
        "status": state,
        "error": status.error,
        "started_at": status.started_at,
        "wall_s": _wall_s(status, rows, live=run.is_live()),
        "steps": max(status.steps_done, int(m.number(rows[-1].get("step")) or 0) if rows else 0),
        "steps_total": status.steps_total,
        "heldout": _heldout(status),
        "kl": m.last(kl),
        "kl_max": m.largest(kl),
        "kl_limit": m.number(_nested(job, "config", "limits", "max_kl")),
        **averages,
        "missing_share": m.mean(m.column(rows, "train/missing_share")),
        "checkpoint": _checkpoint(run, status),
        "metrics": _existing(run.metrics),
        "samples": _existing(run.samples),
        "report": _existing(run.report),
        "run_dir": str(run.path),
    }


_AVERAGED = {
    "reward": "train/reward",
    "reward_std": "train/reward_std",
    "response_length": "train/mean_gen_tokens_per_sample",
    "truncation_rate": "train/truncation_rate",
}


def print_summary(run: RunFolder, console: Console | None = None) -> None:
    """Print the summary for a person, to stderr unless a console is given."""
    from rich.console import Console
    from rich.text import Text

    console = console or Console(stderr=True, highlight=False)
    summary = summarise(run)
    console.print(
        Text.assemble((summary["id"], "bold"), "  ", state_text(summary["status"]), "  ", _progress(summary)),
        soft_wrap=True,
    )
    if summary["error"]:
        console.print(Text(summary["error"], style="red"), soft_wrap=True)
    paths = [
        (name, relative(summary[name])) for name in ("checkpoint", "metrics", "samples", "report") if summary[name]
    ]
    trained = summary["engine"] != "local"
    for lines in (summary_lines(summary) if trained else [], paths):
        width = max((len(label) for label, _ in lines), default=0)
        for label, value in lines:
            # Soft wrapping leaves a long path in one piece, to be copied.
            console.print(Text.assemble((label.ljust(width), "dim"), "  ", value), soft_wrap=True)


def summary_lines(summary: dict[str, Any]) -> list[tuple[str, str]]:
    """The leading numbers as (label, text), in the order in which they should be read."""
    heldout = summary["heldout"]
    return [
        ("KL to reference", _kl_text(summary)),
        ("reward spread", f"{change(summary['reward_std_before'], summary['reward_std'], 3)} (std of a step)"),
        ("response length", f"{change(summary['response_length_before'], summary['response_length'], 1)} tokens"),
        ("held-out fully right", _heldout_text(heldout["before"], heldout["after"])),
        ("reward", change(summary["reward_before"], summary["reward"], 3)),
        ("truncated", percent(summary["truncation_rate"])),
        ("missing verdicts", percent(summary["missing_share"])),
    ]


def state_text(state: str) -> tuple[str, str]:
    """A state with the rich style it is shown in."""
    styles = {"finished": "green", "running": "cyan", "starting": "cyan", "stopped": "yellow", "interrupted": "yellow"}
    return state, styles.get(state, "red")


def percent(share: float | None) -> str:
    """A share as a percentage; a dash if unknown."""
    return "–" if share is None else f"{100 * share:.1f}%"


def change(before: float | None, after: float | None, digits: int) -> str:
    """``before → after``, a dash for what is unknown."""
    shown = ["–" if value is None else f"{value:.{digits}f}" for value in (before, after)]
    return f"{shown[0]} → {shown[1]}"


def duration(seconds: float | None) -> str:
    """``38.2 s``, ``4 min 05 s`` or ``3 h 12 min``."""
    if seconds is None:
        return "–"
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest:02d} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60:02d} min"


def relative(path: str) -> str:
    """The path relative to the working directory when it lies below it."""
    try:
        return str(Path(path).relative_to(Path.cwd()))
    except ValueError:
        return path


def _progress(summary: dict[str, Any]) -> str:
    if summary["engine"] == "local":
        return f"in {duration(summary['wall_s'])}"
    total = f" of {summary['steps_total']}" if summary["steps_total"] else ""
    return f"{summary['steps']}{total} steps in {duration(summary['wall_s'])}"


def _kl_text(summary: dict[str, Any]) -> str:
    if summary["kl"] is None:
        return "–"
    limit = f", limit {summary['kl_limit']:g}" if summary["kl_limit"] is not None else ""
    return f"{summary['kl']:.4f} nats per token (largest {summary['kl_max']:.4f}{limit})"


def _heldout_text(before: float | None, after: float | None) -> str:
    text = f"{percent(before)} → {percent(after)}"
    return text if before is None or after is None else f"{text} ({100 * (after - before):+.1f} points)"


def _heldout(status: Status) -> dict[str, Any]:
    before = m.number((status.heldout_before or {}).get(HEADLINE))
    after = m.number((status.heldout_after or {}).get(HEADLINE))
    delta = None if before is None or after is None else after - before
    return {
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
