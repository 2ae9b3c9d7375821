"""The plots of a report, as plotly.js figures written down in plain data.

A colour is a name with an ``@`` (``@blue``, ``@blue-soft``): the page puts in the value of its light or dark theme.
Quantities of different units get panels of their own above one another with a common step axis, never two y axes in
one panel, whose crossings mean nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from nemotron.runs import metrics as m
from nemotron.runs.jsonl import Row
from nemotron.runs.metrics import Column

MAX_POINTS = 1500
"""Longer runs are drawn with every k-th step, to keep the file and the browser fast."""

_FEW_POINTS = 60
_PANEL_GAP = 0.12


@dataclass(frozen=True, slots=True)
class Figure:
    """One plot; ``data`` is empty when the run recorded nothing to draw."""

    id: str
    title: str
    note: str
    """One line under the title: what to look for."""
    data: list[dict[str, Any]]
    layout: dict[str, Any]


@dataclass(frozen=True, slots=True)
class _Line:
    metric: str
    name: str
    color: str
    share: bool = False
    """A share from 0 to 1, drawn as a percentage."""
    spread: str | None = None
    """Metric of the standard deviation around it, drawn as a band."""


@dataclass(frozen=True, slots=True)
class _Panel:
    label: str
    lines: tuple[_Line, ...]
    mark: tuple[str, float, str] | None = None
    """(name, value, colour) of a bound or a neutral value, drawn as a dashed line."""
    from_zero: bool = False


@dataclass(frozen=True, slots=True)
class _Chart:
    id: str
    title: str
    note: str
    panels: tuple[_Panel, ...] = field(default_factory=tuple)


def figures(
    rows: Sequence[Row],
    *,
    kl_limit: float | None,
    heldout_before: dict[str, float] | None,
    heldout_after: dict[str, float] | None,
) -> list[Figure]:
    """All plots of a report in reading order, from metric rows with one row per step."""
    rows = thinned(rows)
    charts = {chart.id: _line_figure(chart, rows) for chart in _charts(kl_limit)}
    heldout = _heldout_figure(heldout_before, heldout_after)
    return [charts.pop("kl"), charts.pop("reward"), heldout, *charts.values(), _time_figure(rows)]


def thinned(rows: Sequence[Row]) -> list[Row]:
    """At most about ``MAX_POINTS`` rows, evenly spread, the last one included."""
    stride = -(-len(rows) // MAX_POINTS) or 1
    kept = list(rows[::stride])
    if rows and kept[-1] is not rows[-1]:
        kept.append(rows[-1])
    return kept


def _charts(kl_limit: float | None) -> list[_Chart]:
    limit = None if kl_limit is None else ("limit", kl_limit, "@red")
    return [
        _Chart(
            "kl",
            "KL to the reference",
            "How far the policy has drifted, in nats per token. A steady climb means reward is bought with drift.",
            (_Panel("nats per token", (_Line("train/kl_penalty", "KL", "@blue"),), mark=limit, from_zero=True),),
        ),
        _Chart(
            "reward",
            "Reward",
            "Mean of a step with one standard deviation of its responses around it.",
            (_Panel("reward", (_Line("train/reward", "mean", "@blue", spread="train/reward_std"),)),),
        ),
        _Chart(
            "validation",
            "Held-out and validation during training",
            "Share of fully right held-out answers; mean reward (NeMo-RL calls it accuracy) and length on validation.",
            (
                _Panel("fully right", (_Line("heldout/fully_right", "held-out fully right", "@violet", share=True),)),
                _Panel("mean reward", (_Line("validation/accuracy", "accuracy", "@green"),)),
                _Panel("tokens", (_Line("validation/avg_length", "length", "@blue"),)),
            ),
        ),
        _Chart(
            "length",
            "Response length and truncation",
            "Length that grows together with reward is the classic way to please a judge.",
            (
                _Panel("tokens", (_Line("train/mean_gen_tokens_per_sample", "length", "@blue"),)),
                _Panel(
                    "truncated", (_Line("train/truncation_rate", "truncated", "@orange", share=True),), from_zero=True
                ),
            ),
        ),
        _Chart(
            "reward-length",
            "Correlation of reward and length",
            "Near 0 is healthy; towards 1 the judge rewards length, towards −1 brevity.",
            (_Panel("correlation", (_Line("train/reward_length_correlation", "correlation", "@violet"),)),),
        ),
        _Chart(
            "clipping",
            "Policy update",
            "Share of clipped tokens, and the mean ratio of new to old token probability (1 means no change).",
            (
                _Panel("clipped", (_Line("train/clip_fraction", "clipped", "@orange", share=True),), from_zero=True),
                _Panel("ratio", (_Line("train/probs_ratio", "ratio", "@blue"),)),
            ),
        ),
        _Chart(
            "entropy",
            "Entropy",
            "Of the next-token distribution. A fall towards 0 means responses become all alike.",
            (_Panel("nats", (_Line("train/approx_entropy", "entropy", "@violet"),)),),
        ),
        _Chart(
            "optimizer",
            "Gradient norm and learning rate",
            "Spikes of the gradient norm go before unstable runs.",
            (
                _Panel("gradient norm", (_Line("train/grad_norm", "gradient norm", "@blue"),), from_zero=True),
                _Panel("learning rate", (_Line("train/lr", "learning rate", "@green"),), from_zero=True),
            ),
        ),
        _Chart(
            "missing",
            "Judge: missing and unparseable",
            "Missing comparisons are left out of the reward, not scored; retries are counted below.",
            (
                _Panel("share missing", (_Line("train/missing_share", "missing", "@red", share=True),), from_zero=True),
                _Panel(
                    "per step",
                    (
                        _Line("judge/unparseable", "unparseable", "@orange"),
                        _Line("judge/retries", "retries", "@blue"),
                    ),
                    from_zero=True,
                ),
            ),
        ),
        _Chart(
            "position",
            "Judge: ties and position bias",
            "An unbiased judge prefers the first of two responses in half of the comparisons that are not ties.",
            (
                _Panel("ties", (_Line("judge/tie_share", "ties", "@violet", share=True),), from_zero=True),
                _Panel(
                    "first preferred",
                    (_Line("judge/first_position_share", "first preferred", "@blue", share=True),),
                    mark=("unbiased", 0.5, "@muted-ink"),
                ),
            ),
        ),
        _Chart(
            "exactness",
            "Sampler against trainer",
            "Both compute the same probabilities, so the error multiplier stays at 1 and the KL between them at 0.",
            (
                _Panel("multiplier", (_Line("train/token_mult_prob_error", "multiplier", "@blue"),)),
                _Panel("nats", (_Line("train/gen_kl_error", "KL", "@violet"),)),
            ),
        ),
    ]


def _line_figure(chart: _Chart, rows: Sequence[Row]) -> Figure:
    panels = [p for p in chart.panels if any(m.known(m.column(rows, line.metric)) for line in p.lines)]
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


def _y_axis(panel: _Panel, domain: tuple[float, float]) -> dict[str, Any]:
    axis: dict[str, Any] = {"title": {"text": panel.label, "font": {"size": 11}}, "domain": list(domain)}
    if panel.from_zero:
        axis["rangemode"] = "tozero"
    if any(line.share for line in panel.lines):
        axis["tickformat"] = ".2~%"
    return axis


def _traces(line: _Line, steps: Column, rows: Sequence[Row], *, axis: str) -> list[dict[str, Any]]:
    values = m.column(rows, line.metric)
    # Metrics of some steps only (validation) are joined across the gaps, so the points in between are left out.
    points = [(x, y, row) for x, y, row in zip(steps, values, rows, strict=True) if y is not None]
    if not points:
        return []
    base = {"type": "scatter", "x": [x for x, _, _ in points], "yaxis": axis, "name": line.name}
    main = {
        **base,
        "y": [_rounded(y) for _, y, _ in points],
        "mode": "lines+markers" if len(points) <= _FEW_POINTS else "lines",
        "line": {"color": line.color, "width": 2},
        "marker": {"size": 4, "color": line.color},
        "hovertemplate": f"%{{y:{'.1%' if line.share else '.4~g'}}}",
    }
    if line.spread is None:
        return [main]
    spreads = [m.number(row.get(line.spread)) or 0.0 for _, _, row in points]
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
            "text": f"{name} {value:g}",
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


def _heldout_figure(before: dict[str, float] | None, after: dict[str, float] | None) -> Figure:
    names = list(dict.fromkeys([*(before or {}), *(after or {})]))
    data: list[dict[str, Any]] = []
    for label, shares, color in (("before", before, "@muted"), ("after", after, "@green")):
        if shares:
            values = [m.number(shares.get(name)) for name in names]
            data.append(
                {
                    "type": "bar",
                    "name": label,
                    "x": [aspect_label(name) for name in names],
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
    note = "Share of answers to unseen prompts, in percent, by a program that neither the judge nor the loss sees."
    return Figure("heldout", "Held-out answers before and after", note, data, layout)


def aspect_label(name: str) -> str:
    """``fully_right`` as ``fully right``."""
    return name.replace("_", " ")


_PHASES = (
    ("generation", "generation", "@blue"),
    ("reward_calculation", "reward", "@orange"),
    ("policy_and_reference_logprobs", "log-probs", "@green"),
    ("policy_training", "training", "@violet"),
    ("checkpointing", "checkpoint", "@yellow"),
)


def _time_figure(rows: Sequence[Row]) -> Figure:
    steps = m.column(rows, "step")
    data: list[dict[str, Any]] = []
    spent = [0.0] * len(rows)
    for name, label, color in _PHASES:
        values = m.column(rows, f"timing/train/{name}")
        if m.known(values):
            spent = [total + (value or 0.0) for total, value in zip(spent, values, strict=True)]
            data.append(_bars(steps, values, label, color))
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


def _bars(steps: Column, values: Column, label: str, color: str) -> dict[str, Any]:
    return {
        "type": "bar",
        "name": label,
        "x": steps,
        "y": [_rounded(value) for value in values],
        "marker": {"color": color, "line": {"width": 0}},
        "hovertemplate": "%{y:.3~g} s",
    }


def _rounded(value: float | None) -> float | None:
    return None if value is None else float(f"{value:.6g}")
