"""The plots of an audit, from its ``eval_results.json``. Colours as in :mod:`nemotron.reports.figures`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from nemotron.reports.figures import MAX_POINTS, Figure
from nemotron.runs.metrics import number

Results = Mapping[str, Any]

_SHARE_AXIS = {"range": [0, 1.05], "tickformat": ".0%", "tickvals": [0, 0.25, 0.5, 0.75, 1]}
_EVEN = {
    "type": "line",
    "xref": "paper",
    "x0": 0,
    "x1": 1,
    "yref": "y",
    "y0": 0.5,
    "y1": 0.5,
    "line": {"color": "@muted-ink", "width": 1.5, "dash": "dash"},
}


def audit_figures(results: Results) -> list[Figure]:
    """All plots in reading order; ``data`` is empty where the audit has nothing to draw."""
    details = results["details"]
    judge = results["kind"] == "judge"
    return [
        _agreement(results["metrics"]),
        _position(details["position"]),
        _length(details["length_bins"]),
        _points(details["length_points"]),
        _calibration(details["calibration"], judge=judge),
        _histogram(details["histogram"], judge=judge),
    ]


def _agreement(metrics: Mapping[str, Any]) -> Figure:
    named = {
        "all pairs": "agreement",
        "chosen is longer": "agreement_when_longer",
        "chosen is shorter": "agreement_when_shorter",
        "with itself": "self_consistency",
    }
    shown = {label: name for label, name in named.items() if number(metrics.get(name)) is not None}
    values = [float(metrics[name]) for name in shown.values()]
    bounds = [(metrics.get(f"{name}_low"), metrics.get(f"{name}_high")) for name in shown.values()]
    bar = {
        "type": "bar",
        "x": list(shown),
        "y": values,
        "marker": {"color": "@blue"},
        "error_y": _error(values, bounds),
        "hovertemplate": "%{y:.1%}",
    }
    return Figure(
        "agreement",
        "Agreement",
        "With the labels, and with itself when asked again; ticks are 95% intervals, dashes a coin's.",
        [bar] if values else [],
        {
            "yaxis": _SHARE_AXIS,
            "xaxis": {"type": "category", "showgrid": False},
            "shapes": [_EVEN],
            "hovermode": "closest",
        },
    )


def _position(table: Mapping[str, Mapping[str, int]]) -> Figure:
    orders = {"chosen shown first": table["chosen_first"], "rejected shown first": table["rejected_first"]}
    orders = {label: counts for label, counts in orders.items() if sum(counts.values())}
    data = [
        {
            "type": "bar",
            "name": label,
            "x": list(orders),
            "y": [counts[key] / sum(counts.values()) for counts in orders.values()],
            "marker": {"color": color},
            "hovertemplate": "%{y:.1%}",
        }
        for key, label, color in (
            ("chosen", "chosen preferred", "@green"),
            ("tie", "tie", "@muted"),
            ("rejected", "rejected preferred", "@orange"),
        )
    ]
    return Figure(
        "position",
        "Verdicts by order",
        "The two bars of an unbiased judge are equal: it does not matter which answer is shown first.",
        data if orders else [],
        {
            "barmode": "stack",
            "yaxis": _SHARE_AXIS,
            "xaxis": {"type": "category", "showgrid": False},
            "showlegend": True,
        },
    )


def _length(bins: list[dict[str, Any]]) -> Figure:
    names = [str(one["low"]) if one["low"] == one["high"] else f"{one['low']} to {one['high']}" for one in bins]
    data = [
        {
            "type": "bar",
            "name": label,
            "x": names,
            "y": [one[key] for one in bins],
            "customdata": [one["n"] for one in bins],
            "marker": {"color": color},
            "hovertemplate": "%{y:.1%} of %{customdata} pairs",
        }
        for key, label, color in (
            ("longer_preferred", "reward prefers the longer", "@blue"),
            ("longer_chosen", "label prefers the longer", "@muted"),
        )
    ]
    return Figure(
        "length",
        "How often the longer answer wins",
        "By how much longer it is. Blue above grey: the reward likes length more than the labels do.",
        data if bins else [],
        {
            "barmode": "group",
            "yaxis": _SHARE_AXIS,
            "xaxis": {"type": "category", "title": _small("characters longer"), "showgrid": False},
            "shapes": [_EVEN],
            "showlegend": True,
        },
    )


def _points(points: list[list[float]]) -> Figure:
    stride = -(-len(points) // MAX_POINTS) or 1
    shown = points[::stride]
    dots = {
        "type": "scatter",
        "mode": "markers",
        "x": [x for x, _ in shown],
        "y": [y for _, y in shown],
        "marker": {"size": 5, "color": "@blue", "opacity": 0.6},
        "hovertemplate": "%{x} characters, reward %{y:.3~g}",
    }
    return Figure(
        "length-points",
        "Reward and length",
        "One dot per pair, chosen minus rejected. Dots below zero contradict the label.",
        [dots] if shown else [],
        {
            "xaxis": {"title": _small("characters longer")},
            "yaxis": {"title": _small("reward difference")},
            "hovermode": "closest",
            "showlegend": False,
        },
    )


def _calibration(calibration: Mapping[str, Any], *, judge: bool) -> Figure:
    bins = calibration["bins"]
    values = [one["agreement"]["value"] for one in bins]
    line = {
        "type": "scatter",
        "mode": "lines+markers",
        "name": "agreement",
        "x": [one["confidence"] for one in bins],
        "y": values,
        "customdata": [one["n"] for one in bins],
        "error_y": _error(values, [(one["agreement"]["low"], one["agreement"]["high"]) for one in bins]),
        "line": {"color": "@blue", "width": 2},
        "hovertemplate": "%{y:.1%} of %{customdata} pairs",
    }
    exact = {
        "type": "scatter",
        "mode": "lines",
        "name": "exact",
        "x": [0.5, 1],
        "y": [0.5, 1],
        "line": {"color": "@muted-ink", "width": 1.5, "dash": "dash"},
        "hoverinfo": "skip",
    }
    title, note, axis = (
        (
            "Agreement by reward difference",
            "A judge worth trusting is right more often where it is surer.",
            "difference",
        )
        if judge
        else ("Calibration", "Sure of 80% should mean right in 80%: below the dashes it is too sure.", "confidence")
    )
    return Figure(
        "calibration",
        title,
        note,
        [line, *([] if judge else [exact])] if bins else [],
        {"yaxis": _SHARE_AXIS, "xaxis": {"title": _small(axis)}, "showlegend": not judge, "hovermode": "closest"},
    )


def _histogram(histogram: list[list[float]], *, judge: bool) -> Figure:
    bar = {
        "type": "bar",
        "x": [score for score, _ in histogram],
        "y": [count for _, count in histogram],
        "marker": {"color": "@violet", "line": {"width": 0}},
        "hovertemplate": "%{y}",
    }
    note = "One bar alone, or all at the ends: the scores tell answers no longer apart."
    return Figure(
        "scores",
        "Scores of the judge" if judge else "Rewards",
        note,
        [bar] if histogram else [],
        {"bargap": 0.08, "xaxis": {"title": _small("score" if judge else "reward")}, "yaxis": {"rangemode": "tozero"}},
    )


def _error(values: list[float], bounds: list[tuple[float | None, float | None]]) -> dict[str, Any]:
    """Ticks of the intervals, as plotly wants them: distances from the values."""
    return {
        "type": "data",
        "symmetric": False,
        "array": [(v if high is None else high) - v for v, (_, high) in zip(values, bounds, strict=True)],
        "arrayminus": [v - (v if low is None else low) for v, (low, _) in zip(values, bounds, strict=True)],
        "color": "@muted-ink",
        "thickness": 1.5,
    }


def _small(text: str) -> dict[str, Any]:
    return {"text": text, "font": {"size": 11}}
