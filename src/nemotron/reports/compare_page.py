"""The page of a comparison: the tables, and the curves of all groups over each other."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from nemotron.reports.figures import MAX_POINTS, Figure
from nemotron.reports.page import page
from nemotron.runs import charts as c
from nemotron.runs import metrics as m
from nemotron.runs.charts import Chart, Line
from nemotron.runs.compare import Comparison, Group, Measure, course
from nemotron.runs.views import view_of
from nemotron.runs.words import fixed

_COLORS = ("@blue", "@orange", "@green", "@violet", "@yellow", "@red")
_DASHES = ("solid", "dash", "dot", "dashdot")
"""A seventh group has the first colour again, in another dash."""
_FIRST = (c.KL, c.REWARD, c.LENGTH)
"""Drawn before the other charts of the runs' views."""
_ALONE = 3
"""Fewer points than these are no course: they stand alone."""


def render_comparison(comparison: Comparison) -> str:
    """The HTML.

    Raises:
        NotAvailableError: jinja2 or plotly is not installed.
    """
    many = comparison.has_seeds
    measures = comparison.measures
    return page(
        "compare.html.j2",
        comparison_figures(comparison),
        comparison=comparison,
        title=f"{len(comparison.runs)} runs",
        about=", ".join(dict.fromkeys(one.job.step for one in comparison.runs)),
        titles=[measure.title for measure in measures],
        groups=[
            (list(group.values.values()), len(group.runs), [_cell(group, measure) for measure in measures])
            for group in comparison.groups
        ]
        if many
        else [],
        group_keys=[key for key in comparison.keys if key not in comparison.seeds],
        runs=[
            (
                one.run.id,
                one.summary["status"],
                list(one.values.values()),
                [measure.text(measure.value(one.summary)) for measure in measures],
            )
            for one in comparison.runs
        ],
    )


def _cell(group: Group, measure: Measure) -> str:
    return measure.text(group.mean(measure), group.spread(measure))


def comparison_figures(comparison: Comparison) -> list[Figure]:
    """Held-out first, then a plot for every metric of the runs' charts that one of them has."""
    drawn = [_heldout(comparison)]
    seen: set[str] = set()
    for chart in _charts(comparison):
        for panel in chart.panels:
            for line in panel.lines:
                for metric, part in _metrics(comparison, line).items():
                    # The spread is a metric of its own here: around the mean of the runs lies what the seeds do.
                    wanted = [(metric, line.name or part)]
                    wanted += [(line.spread, "spread within a step")] if line.spread else []
                    for name, what in wanted:
                        if name not in seen:
                            seen.add(name)
                            drawn.append(_curves(comparison, chart, panel.label, name, what, share=line.share))
    return [figure for figure in drawn if figure.data]


def _charts(comparison: Comparison) -> list[Chart]:
    views = [view for one in comparison.runs if (view := view_of(one.job)) is not None]
    known = list(dict.fromkeys(chart for view in views for chart in view.charts))
    first = [chart for chart in _FIRST if chart in known]
    return [*first, *(chart for chart in known if chart not in first)]


def _metrics(comparison: Comparison, line: Line) -> dict[str, str]:
    return m.matching([row for one in comparison.runs for row in one.rows], line.metric)


def _style(number: int) -> tuple[str, str]:
    return _COLORS[number % len(_COLORS)], _DASHES[number // len(_COLORS) % len(_DASHES)]


def _curves(comparison: Comparison, chart: Chart, unit: str, metric: str, what: str, *, share: bool) -> Figure:
    data: list[dict[str, Any]] = []
    for number, group in enumerate(comparison.groups):
        points = _thinned(course(group, metric))
        if not points:
            continue
        color, dash = _style(number)
        name = _name(comparison, group)
        base = {"type": "scatter", "x": [step for step, _, _ in points], "name": name, "legendgroup": name}
        if len(points) >= _ALONE and any(spread is not None for _, _, spread in points):
            edge = {**base, "mode": "lines", "line": {"width": 0}, "hoverinfo": "skip", "showlegend": False}
            data.append({**edge, "y": [_rounded(mean - (spread or 0.0)) for _, mean, spread in points]})
            over = [_rounded(mean + (spread or 0.0)) for _, mean, spread in points]
            data.append({**edge, "y": over, "fill": "tonexty", "fillcolor": f"{color}-soft"})
        data.append(
            {
                **base,
                "y": [_rounded(mean) for _, mean, _ in points],
                "mode": "lines" if len(points) >= _ALONE else "markers",
                "line": {"color": color, "width": 2, "dash": dash},
                "marker": {"color": color, "size": 8},
                "hovertemplate": f"%{{y:{'.1%' if share else '.4~g'}}}",
            }
        )
    axis: dict[str, Any] = {"title": {"text": unit, "font": {"size": 11}}}
    if share:
        axis["tickformat"] = ".2~%"
    layout = {"yaxis": axis, "xaxis": {"title": {"text": "step", "font": {"size": 11}}}, "showlegend": True}
    title = chart.title if what in ("", chart.title) else f"{chart.title}: {what}"
    return Figure(_id(metric), title, _note(comparison), data, layout)


def _heldout(comparison: Comparison) -> Figure:
    after, before = (next((one for one in comparison.measures if one.key == key), None) for key in _HELDOUT)
    if after is None:
        return Figure("heldout", "Held-out answers", "", [], {})
    data: list[dict[str, Any]] = []
    names = [_name(comparison, group) for group in comparison.groups]
    for measure, when, color in ((before, "before", "@muted"), (after, "after", "@green")):
        if measure is None:
            continue
        data.append(
            {
                "type": "bar",
                "name": when,
                "x": names,
                "y": [_rounded(group.mean(measure)) for group in comparison.groups],
                "error_y": {"type": "data", "array": [group.spread(measure) or 0.0 for group in comparison.groups]},
                "marker": {"color": color},
                "hovertemplate": "%{y:.1%}",
            }
        )
    layout = {
        "barmode": "group",
        "yaxis": {"tickformat": ".0%", "rangemode": "tozero"},
        "xaxis": {"type": "category", "showgrid": False},
        "showlegend": True,
    }
    note = "Share of answers to unseen prompts, by a program that neither the judge nor the loss sees."
    return Figure("heldout", "Held-out answers before and after", note, data, layout)


_HELDOUT = ("heldout.after", "heldout.before")


def _name(comparison: Comparison, group: Group) -> str:
    """A group by what sets it apart; where nothing does, by its runs."""
    if group.name:
        return group.name
    return group.runs[0].run.id if len(comparison.groups) > 1 or len(group.runs) == 1 else f"{len(group.runs)} seeds"


def _note(comparison: Comparison) -> str:
    if not comparison.has_seeds:
        return "One line for each run."
    return "Mean over the seeds of a group, and one standard deviation between them."


def _thinned(points: Sequence[tuple[float, float, float | None]]) -> list[tuple[float, float, float | None]]:
    stride = -(-len(points) // MAX_POINTS) or 1
    kept = list(points[::stride])
    return kept if not points or kept[-1] is points[-1] else [*kept, points[-1]]


def _id(metric: str) -> str:
    return "".join(letter if letter.isalnum() else "-" for letter in metric)


def _rounded(value: float | None) -> float | None:
    return None if value is None else float(f"{value:.6g}")


def table_rows(comparison: Comparison) -> tuple[list[str], list[list[str]]]:
    """Header and rows of the table of runs, for a terminal."""
    header = ["run", "status", *comparison.keys, *(measure.title for measure in comparison.measures)]
    rows = [
        [
            one.run.id,
            str(one.summary["status"]),
            *one.values.values(),
            *(measure.text(measure.value(one.summary)) for measure in comparison.measures),
        ]
        for one in comparison.runs
    ]
    return header, rows


def group_rows(comparison: Comparison) -> tuple[list[str], list[list[str]]]:
    """Header and rows of the table over seeds."""
    keys = [key for key in comparison.keys if key not in comparison.seeds]
    header = [*keys, "runs", *(measure.title for measure in comparison.measures)]
    rows = [
        [
            *group.values.values(),
            fixed(len(group.runs), 0),
            *(_cell(group, measure) for measure in comparison.measures),
        ]
        for group in comparison.groups
    ]
    return header, rows
