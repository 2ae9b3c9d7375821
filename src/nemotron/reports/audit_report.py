"""``report.html`` of a reward audit: the look and the safety of :mod:`nemotron.reports.report`, figures of its own."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from nemotron.artifacts.lineage import origins
from nemotron.disk.atomic import write_atomic
from nemotron.disk.documents import read_json
from nemotron.disk.home import expanded
from nemotron.errors import ArtifactError
from nemotron.job import CompiledJob
from nemotron.reports.asked import asked_of
from nemotron.reports.audit_figures import audit_figures
from nemotron.reports.lineage import lineage
from nemotron.reports.page import page
from nemotron.runs.folder import RunFolder
from nemotron.runs.headlines import Card
from nemotron.runs.metrics import number
from nemotron.runs.status import ReportedState
from nemotron.runs.summary import summarise
from nemotron.runs.words import UNKNOWN, duration, fixed, label, percent

RESULTS = "eval_results.json"
NOTICEABLE = 0.1
"""A bias that is surely there and larger than this is shown in red."""
FEW_LOST = 0.05
"""More missing verdicts than this are shown in red."""
MANY_FLIPS, STEADY, MOSTLY = 0.25, 0.8, 0.6
"""Share of flips, self-consistency and share of the commonest score from which on the page remarks on them."""

Metrics = Mapping[str, float | None]
Tone = Literal["", "good", "bad"]


@dataclass(frozen=True, slots=True)
class Figures:
    """One row of the table of all figures."""

    name: str
    value: str
    interval: str


def write_audit_report(run: RunFolder, state: ReportedState | None = None) -> Path:
    """Write ``report.html`` of an audit in any state; returns its path.

    Raises:
        NotAvailableError: jinja2 or plotly is not installed. OutputError: the file cannot be written.
        ArtifactError: the results are damaged.
    """
    write_atomic(run.report, render_audit(run, state).encode())
    return run.report


def render_audit(run: RunFolder, state: ReportedState | None = None) -> str:
    """The HTML of the page."""
    job, summary = run.job(), summarise(run, state)
    path = results_path(job)
    results = read_results(path)
    drawn = audit_figures(results) if results else []
    metrics: Metrics = results["metrics"] if results else {}
    return page(
        "audit.html.j2",
        drawn,
        summary=summary,
        about=_about(summary, results),
        leading=leading(metrics) if results else [],
        other=other(metrics, summary) if results else [],
        remarks=list(remarks(metrics)) if results else [],
        table=list(table(metrics)),
        form_columns=FORM_COLUMNS,
        forms=list(forms_table(results)) if results else [],
        failures=results["details"]["failures"] if results else {},
        worst=results["details"]["worst"] if results else [],
        asked=asked_of(job),
        lineage=lineage(job),
        origins=origins(job),
        files=_files(run, path),
    )


def results_path(job: CompiledJob) -> Path:
    """Where the results of an audit are, whether they are there yet or not."""
    return expanded(str(job.config.get("output_dir") or ".")) / RESULTS


def read_results(path: Path) -> dict[str, Any] | None:
    """``eval_results.json``; None before it is written.

    Raises:
        ArtifactError: it is not what an audit writes.
    """
    try:
        found = read_json(path)
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise ArtifactError(f"cannot read `{path}`: {error}", hint="run the audit again") from error
    if not (isinstance(found, dict) and {"kind", "metrics", "details"} <= found.keys()):
        raise ArtifactError(f"`{path}` was not written by an audit", hint="run the audit again")
    return found


def leading(metrics: Metrics) -> list[Card]:
    """The four numbers to read first."""
    agreement, lost = metrics.get("agreement"), metrics.get("missing_share")
    low, high = metrics.get("agreement_low"), metrics.get("agreement_high")
    coin: Tone = "" if low is None or high is None else "good" if low > 0.5 else "bad" if high < 0.6 else ""
    flips = metrics.get("flip_share")
    return [
        Card("Agreement with the labels", percent(agreement), _interval(metrics, "agreement"), coin),
        Card(
            "Position bias",
            _signed(metrics.get("position_bias")),
            "does not apply" if metrics.get("position_bias") is None
            else f"{_interval(metrics, 'position_bias')}; {percent(flips)} of pairs flip",
            _bias_tone(metrics, "position_bias"),
        ),
        Card(
            "Length bias",
            _signed(metrics.get("length_bias")),
            _interval(metrics, "length_bias"),
            _bias_tone(metrics, "length_bias"),
        ),
        Card("Missing", percent(lost), "of all comparisons", _lost_tone(lost)),
    ]  # fmt: skip


def other(metrics: Metrics, summary: Mapping[str, Any]) -> list[Card]:
    """The numbers of the second row."""
    known = [
        ("self_consistency", Card("Self-consistency", percent(metrics.get("self_consistency")), "same winner again")),
        ("score_tie_share", Card("Ties", percent(metrics.get("score_tie_share")), "equal scores")),
        ("extreme_score_share", Card("Saturation", percent(metrics.get("extreme_score_share")), "at the ends")),
        ("score_entropy_bits", Card("Score entropy", fixed(metrics.get("score_entropy_bits"), 2), "bits")),
        (
            "expected_calibration_error",
            Card("Calibration error", percent(metrics.get("expected_calibration_error")), "expected"),
        ),
        ("unparseable_share", Card("Unparseable", percent(metrics.get("unparseable_share")), "of all answers")),
    ]
    cards = [card for name, card in known if metrics.get(name) is not None]
    total = metrics.get("pairs_in_data")
    of_all = "" if total is None else f"of {total:,.0f}"
    return [
        *cards,
        Card("Pairs", fixed(metrics.get("pairs"), 0), of_all),
        Card("Time", duration(summary["wall_s"]), ""),
    ]


def remarks(metrics: Metrics) -> Iterator[str]:
    """What stands out, and what to do about it, in sentences."""
    low, high = metrics.get("agreement_low"), metrics.get("agreement_high")
    if low is not None and high is not None and low <= 0.5 <= high:
        yield "Agreement cannot be told from a coin's: the reward teaches nothing, or the labels are noise."
    if high is not None and high < 0.5:
        yield "The rejected answer is preferred: labels or scores are upside down."
    if _bias_tone(metrics, "position_bias") == "bad":
        place = "first" if (metrics["position_bias"] or 0) > 0 else "second"
        yield f"The {place} answer is preferred for its place: judge both orders (`circular`), or get a better judge."
    flips = metrics.get("flip_share")
    if flips is not None and flips > MANY_FLIPS:
        yield f"The order decides {percent(flips)} of the pairs: a single verdict says little there."
    if _bias_tone(metrics, "length_bias") == "bad":
        if (metrics["length_bias"] or 0) > 0:
            yield (
                "Longer answers are preferred beyond what the labels say: `group_answer_length_penalty_coeff` of the "
                "comparison counters it."
            )
        else:
            yield "Shorter answers are preferred beyond what the labels say: is a length penalty too strong?"
    steady = metrics.get("self_consistency")
    if steady is not None and steady < STEADY:
        yield (
            f"Asked the same again, the judge names the same winner in {percent(steady)}: lower its temperature, or "
            "ask it several times (`num_judges_per_comparison`)."
        )
    lost = metrics.get("missing_share")
    if lost is not None and lost > FEW_LOST:
        yield f"{percent(lost)} are missing: training would learn from the rest only."
    same = metrics.get("commonest_score_share")
    if same is not None and same > MOSTLY:
        yield f"One score is given in {percent(same)} of all cases: the scale is hardly used."
    error = metrics.get("expected_calibration_error")
    if error is not None and error > NOTICEABLE:
        yield f"Its probabilities are off by {percent(error)} on average: it is surer, or less sure, than it may be."


def table(metrics: Metrics) -> Iterator[Figures]:
    """Every figure with its interval."""
    for name, value in metrics.items():
        if name.endswith(("_low", "_high")) or value is None:
            continue
        low, high = metrics.get(f"{name}_low"), metrics.get(f"{name}_high")
        shown = f"{value:,.0f}" if name in _COUNTS else f"{value:.4f}"
        yield Figures(label(name), shown, "" if low is None or high is None else f"{low:.4f} to {high:.4f}")


FORM_COLUMNS = (
    *("verdict", "comparisons with one", "agreement", "single verdicts", "position bias", "length bias", "ties"),
    *("requests", "tokens read", "tokens written"),
)
"""Of the table of forms; what a form costs is per comparison."""


def forms_table(results: Mapping[str, Any]) -> Iterator[tuple[str, ...]]:
    """Each form of verdict that was compared, as a row of :data:`FORM_COLUMNS`."""
    for name, metrics in results["details"].get("forms", {}).items():
        shares = (percent(metrics.get(key)) for key in ("verdicts_share", "agreement", "verdict_agreement"))
        biases = (_signed(metrics.get(key)) for key in ("position_bias", "length_bias"))
        costs = (fixed(metrics.get(f"{key}_each"), 1) for key in ("requests", "tokens_read", "tokens_written"))
        yield (name, *shares, *biases, percent(metrics.get("score_tie_share")), *costs)


_COUNTS = ("pairs", "pairs_in_data", "comparisons", "requests", "tokens_read", "tokens_written")


def _bias_tone(metrics: Metrics, name: str) -> Tone:
    value, low, high = (number(metrics.get(key)) for key in (name, f"{name}_low", f"{name}_high"))
    if value is None or low is None or high is None:
        return ""
    surely_there = low > 0 or high < 0
    return "bad" if surely_there and abs(value) > NOTICEABLE else "" if abs(value) > NOTICEABLE else "good"


def _lost_tone(lost: float | None) -> Tone:
    return "" if lost is None else "bad" if lost > FEW_LOST else "good"


def _interval(metrics: Metrics, name: str) -> str:
    low, high = metrics.get(f"{name}_low"), metrics.get(f"{name}_high")
    if low is None or high is None:
        return "no interval"
    shown = [f"{low:+.2f}", f"{high:+.2f}"] if name.endswith("bias") else [percent(low), percent(high)]
    return f"95% interval {shown[0]} to {shown[1]}"


def _signed(value: float | None) -> str:
    return UNKNOWN if value is None else f"{value:+.2f}"


def _about(summary: Mapping[str, Any], results: Mapping[str, Any] | None) -> str:
    kind = label(results["kind"]) if results else None
    words = [summary["step"], summary["config"] and f"-c {summary['config']}", kind]
    started = str(summary["started_at"])[:16].replace("T", " ")
    return " · ".join([*(str(word) for word in words if word), f"{started} UTC"])


def _files(run: RunFolder, results: Path) -> list[dict[str, Any]]:
    named = {"results": results, "every verdict": run.samples, "compiled job": run.path / "job.json"}
    return [
        {
            "name": name,
            "path": path.relative_to(run.path).as_posix() if path.is_relative_to(run.path) else str(path),
            "inside": path.is_relative_to(run.path),
        }
        for name, path in named.items()
        if path.exists()
    ]
