"""The plots of a report, as plotly.js figures written down in plain data.

A colour is a name with an ``@`` (``@blue``, ``@blue-soft``): the page puts in the value of its light or dark theme.
Quantities of different units get panels of their own above one another with a common step axis, never two y axes in
one panel, whose crossings mean nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from nemotron.runs import metrics as m
from nemotron.runs.charts import HELDOUT, KL, Chart, Line, Panel
from nemotron.runs.jsonl import Row
from nemotron.runs.metrics import Column
from nemotron.runs.views import JUDGED_GRPO, View
from nemotron.runs.words import label

MAX_POINTS = 1500
"""Longer runs are drawn with every k-th step, to keep the file and the browser fast."""

_FEW_POINTS = 60
_LINE = 3
"""Points that make a course: fewer stand alone, for the line between two says nothing of what was in between."""
_PANEL_GAP = 0.12
_COLORS = ("@blue", "@green", "@orange", "@violet", "@yellow", "@red")


@dataclass(frozen=True, slots=True)
class Figure:
    """One plot; ``data`` is empty when the run recorded nothing to draw."""

    id: str
    title: str
    note: str
    """One line under the title: what to look for."""
    data: list[dict[str, Any]]
    layout: dict[str, Any]


def figures(
    rows: Sequence[Row],
    *,
    kl_limit: float | None,
    heldout_before: dict[str, float] | None,
    heldout_after: dict[str, float] | None,
    view: View = JUDGED_GRPO,
) -> list[Figure]:
    """All plots of a report in reading order, from metric rows with one row per step."""
    rows = thinned(rows)
    drawn = []
    for chart in view.charts:
        if chart.id == HELDOUT.id:
            drawn.append(_heldout_figure(chart, heldout_before, heldout_after))
            continue
        figure = _line_figure(chart, rows)
        if chart is KL and kl_limit is not None:
            _add_mark(figure.layout, ("limit", kl_limit, "@red"), axis="y")
        drawn.append(figure)
    return [*drawn, _time_figure(rows)]


def thinned(rows: Sequence[Row]) -> list[Row]:
    """At most about ``MAX_POINTS`` rows, evenly spread, the last one included."""
    stride = -(-len(rows) // MAX_POINTS) or 1
    kept = list(rows[::stride])
    if rows and kept[-1] is not rows[-1]:
        kept.append(rows[-1])
    return kept


def _line_figure(chart: Chart, rows: Sequence[Row]) -> Figure:
    expanded = [replace(panel, lines=_expanded(panel.lines, rows)) for panel in chart.panels]
    panels = [p for p in expanded if any(m.known(m.column(rows, line.metric)) for line in p.lines)]
    data: list[dict[str, Any]] = []
    layout: dict[str, Any] = {"shapes": [], "annotations": []}
    height = (1 - _PANEL_GAP * (len(panels) - 1)) / max(len(panels), 1)
    steps = m.column(rows, "step")
    for index, panel in enumerate(panels):
        suffix = "" if index == 0 else str(index + 1)
        top = 1 - index * (height + _PANEL_GAP)
        layout[f"yaxis{suffix}"] = _y_axis(panel, (max(top - height, 0.0), top))
        for line in panel.lines:
            data += _traces(line, steps, rows, axis=f"y{suffix}")
        if panel.mark is not None:
            _add_mark(layout, panel.mark, axis=f"y{suffix}")
    bottom = "y" if len(panels) < 2 else f"y{len(panels)}"
    layout["xaxis"] = {"title": {"text": "step", "font": {"size": 11}}, "anchor": bottom, "rangemode": "normal"}
    layout["showlegend"] = any(len(panel.lines) > 1 for panel in panels)
    return Figure(chart.id, chart.title, chart.note, data, layout)


def _expanded(lines: Sequence[Line], rows: Sequence[Row]) -> tuple[Line, ...]:
    """The lines with each `*` replaced by what there is."""
    found: list[Line] = []
    for line in lines:
        names = m.matching(rows, line.metric)
        for index, (name, part) in enumerate(names.items()):
            color = _COLORS[(_COLORS.index(line.color) + index) % len(_COLORS)] if index else line.color
            # What the star stands for is only worth saying where it tells lines apart.
            words = [line.name, part if len(names) > 1 or not line.name else ""]
            found.append(replace(line, metric=name, name=" ".join(filter(None, words)), color=color))
    return tuple(found)


def _y_axis(panel: Panel, domain: tuple[float, float]) -> dict[str, Any]:
    axis: dict[str, Any] = {"title": {"text": panel.label, "font": {"size": 11}}, "domain": list(domain)}
    if panel.from_zero:
        axis["rangemode"] = "tozero"
    if any(line.share for line in panel.lines):
        axis["tickformat"] = ".2~%"
    return axis


def _traces(line: Line, steps: Column, rows: Sequence[Row], *, axis: str) -> list[dict[str, Any]]:
    values = m.column(rows, line.metric)
    # Metrics of some steps only (validation) are joined across the gaps, so the points in between are left out.
    points = [(x, y, row) for x, y, row in zip(steps, values, rows, strict=True) if y is not None]
    if not points:
        return []
    alone = len(points) < _LINE
    base = {"type": "scatter", "x": [x for x, _, _ in points], "yaxis": axis, "name": line.name}
    main = {
        **base,
        "y": [_rounded(y) for _, y, _ in points],
        "mode": "markers" if alone else "lines+markers" if len(points) <= _FEW_POINTS else "lines",
        "line": {"color": line.color, "width": 2},
        "marker": {"size": 9 if alone else 4, "color": line.color},
        "hovertemplate": f"%{{y:{'.1%' if line.share else '.4~g'}}}",
    }
    if line.spread is None:
        return [main]
    spreads = [m.number(row.get(line.spread)) or 0.0 for _, _, row in points]
    if alone:
        return [{**main, "error_y": {"type": "data", "array": [_rounded(s) for s in spreads], "color": line.color}}]
    edge = {**base, "mode": "lines", "line": {"width": 0}, "hoverinfo": "skip", "showlegend": False}
    low = {**edge, "y": [_rounded(y - s) for (_, y, _), s in zip(points, spreads, strict=True)]}
    high = {
        **edge,
        "y": [_rounded(y + s) for (_, y, _), s in zip(points, spreads, strict=True)],
        "fill": "tonexty",
        "fillcolor": f"{line.color}-soft",
    }
    return [low, high, main]


def _add_mark(layout: dict[str, Any], mark: tuple[str, float, str], *, axis: str) -> None:
    name, value, color = mark
    layout["shapes"].append(
        {
            "type": "line",
            "xref": "paper",
            "x0": 0,
            "x1": 1,
            "yref": axis,
            "y0": value,
            "y1": value,
            "line": {"color": color, "width": 1.5, "dash": "dash"},
        }
    )
    layout["annotations"].append(
        {
            "text": f"{name} {value:g}".strip(),
            "xref": "paper",
            "x": 1,
            "xanchor": "right",
            "yref": axis,
            "y": value,
            "yanchor": "bottom",
            "showarrow": False,
            "bgcolor": "@card",
            "borderpad": 1,
            "font": {"color": color, "size": 11},
        }
    )


def _heldout_figure(chart: Chart, before: dict[str, float] | None, after: dict[str, float] | None) -> Figure:
    names = list(dict.fromkeys([*(before or {}), *(after or {})]))
    data: list[dict[str, Any]] = []
    for when, shares, color in (("before", before, "@muted"), ("after", after, "@green")):
        if shares:
            values = [m.number(shares.get(name)) for name in names]
            data.append(
                {
                    "type": "bar",
                    "name": when,
                    "x": [label(name) for name in names],
                    "y": values,
                    "text": ["" if value is None else f"{100 * value:.0f}" for value in values],
                    "textposition": "outside",
                    "cliponaxis": False,
                    "marker": {"color": color},
                    "hovertemplate": "%{y:.1%}",
                }
            )
    layout = {
        "barmode": "group",
        "bargap": 0.3,
        "bargroupgap": 0.06,
        "yaxis": {"range": [0, 1.08], "tickformat": ".0%", "tickvals": [0, 0.25, 0.5, 0.75, 1]},
        "xaxis": {"type": "category", "showgrid": False},
        "showlegend": True,
    }
    return Figure(chart.id, chart.title, chart.note, data, layout)


_PHASES = (
    ("generation", "generation", "@blue"),
    ("reward_calculation", "reward", "@orange"),
    ("policy_and_reference_logprobs", "log-probs", "@green"),
    ("policy_training", "training", "@violet"),
    ("value_training", "critic", "@red"),
    ("checkpointing", "checkpoint", "@yellow"),
)


def _time_figure(rows: Sequence[Row]) -> Figure:
    steps = m.column(rows, "step")
    data: list[dict[str, Any]] = []
    spent = [0.0] * len(rows)
    for name, text, color in _PHASES:
        values = m.column(rows, f"timing/train/{name}")
        if m.known(values):
            spent = [total + (value or 0.0) for total, value in zip(spent, values, strict=True)]
            data.append(_bars(steps, values, text, color))
    totals = m.column(rows, "timing/train/total_step_time")
    if m.known(totals):
        rest = [None if t is None else max(t - s, 0.0) for t, s in zip(totals, spent, strict=True)]
        data.append(_bars(steps, rest, "other", "@muted"))
    layout = {
        "barmode": "stack",
        "bargap": 0.1,
        "yaxis": {"title": {"text": "seconds", "font": {"size": 11}}, "rangemode": "tozero"},
        "xaxis": {"title": {"text": "step", "font": {"size": 11}}},
        "showlegend": True,
        "legend": {"traceorder": "normal"},
    }
    note = "Seconds of a step by phase; phases that overlap are counted each."
    return Figure("time", "Time per step", note, data, layout)


def _bars(steps: Column, values: Column, text: str, color: str) -> dict[str, Any]:
    return {
        "type": "bar",
        "name": text,
        "x": steps,
        "y": [_rounded(value) for value in values],
        "marker": {"color": color, "line": {"width": 0}},
        "hovertemplate": "%{y:.3~g} s",
    }


def _rounded(value: float | None) -> float | None:
    return None if value is None else float(f"{value:.6g}")
