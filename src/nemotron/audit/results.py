"""All figures of an audit as one JSON document: ``metrics`` (flat, for machines) and ``details`` (for the page)."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, is_dataclass, replace
from typing import Any

from nemotron.audit import measures
from nemotron.audit.intervals import Estimate
from nemotron.audit.records import Audited
from nemotron.config.schema.reward_audit import AuditLimits

Metrics = dict[str, float | None]


def results(
    rows: Sequence[Audited],
    *,
    kind: str,
    pairs_in_data: int,
    worst: int,
    forms: Mapping[str, Sequence[Audited]] | None = None,
) -> dict[str, Any]:
    """What ``eval_results.json`` holds. ``kind``: ``judge`` or ``reward_model``. Equal rows give equal bytes.

    ``forms``: the same pairs by every form of verdict that is compared, the judge's own among them.
    """
    agreement, position, length = measures.agreement(rows), measures.position(rows), measures.length(rows)
    consistency, missing = measures.consistency(rows), measures.missing(rows)
    saturation, calibration = measures.saturation(rows), measures.calibration(rows)
    metrics: Metrics = {
        "pairs": float(len(rows)),
        "pairs_in_data": float(pairs_in_data),
        **_estimate("agreement", agreement.all),
        **_estimate("verdict_agreement", agreement.verdicts),
        "pair_tie_share": agreement.tie_share,
        **_estimate("position_bias", position.bias),
        **_estimate("flip_share", position.flip_share),
        "flips_to_first_share": position.flips_to_first,
        **_estimate("first_score_advantage", position.score_advantage),
        **_estimate("length_bias", length.bias),
        **_estimate("agreement_when_longer", length.when_longer),
        **_estimate("agreement_when_shorter", length.when_shorter),
        **_estimate("longer_preferred_share", length.longer_preferred),
        "longer_chosen_share": length.longer_chosen,
        "reward_length_correlation": length.correlation,
        "label_length_correlation": length.label_correlation,
        **_estimate("self_consistency", consistency.same_winner),
        "score_spread": consistency.score_spread,
        "missing_share": missing.share,
        "unparseable_share": missing.unparseable_share,
        "comparisons": float(missing.comparisons),
        "requests": float(missing.requests),
        "tokens_read": float(missing.tokens_read),
        "tokens_written": float(missing.tokens_written),
        "extreme_score_share": saturation.extreme_share,
        "off_scale_share": saturation.off_scale_share,
        "commonest_score_share": saturation.commonest_share,
        "score_entropy_bits": saturation.entropy_bits,
        "score_tie_share": saturation.tie_share,
        "expected_calibration_error": calibration.expected_error,
        "brier_score": calibration.brier,
        "log_loss": calibration.log_loss,
    }
    return {
        "kind": kind,
        "metrics": metrics,
        "details": {
            "position": position.table,
            "length_bins": _plain(length.bins),
            "length_points": [[row.longer_by, row.margin] for row in rows if row.margin is not None],
            "failures": missing.failures,
            "histogram": [[score, count] for score, count in saturation.histogram],
            "calibration": _plain(calibration),
            "worst": [_shown(row) for row in measures.worst(rows, worst)],
            "forms": {name: form_figures(asked) for name, asked in (forms or {}).items()},
        },
    }


def form_figures(rows: Sequence[Audited]) -> Metrics:
    """What one form of verdict is worth, and what it costs: questions asked again to see how firm it is left out."""
    once = [replace(row, judgements=tuple(j for j in row.judgements if j.purpose == "reward")) for row in rows]
    agreement, position, missing = measures.agreement(once), measures.position(once), measures.missing(once)
    count = max(missing.comparisons, 1)
    return {
        "comparisons": float(missing.comparisons),
        "verdicts_share": None if missing.share is None else 1 - missing.share,
        **_estimate("agreement", agreement.all),
        **_estimate("verdict_agreement", agreement.verdicts),
        **_estimate("position_bias", position.bias),
        **_estimate("length_bias", measures.length(once).bias),
        "score_tie_share": measures.saturation(once).tie_share,
        "requests_each": missing.requests / count,
        "tokens_read_each": missing.tokens_read / count,
        "tokens_written_each": missing.tokens_written / count,
    }


def crossed(metrics: Mapping[str, float | None], limits: AuditLimits) -> list[str]:
    """The limits that the figures cross, as sentences. A bias that is not known crosses nothing, as a reward model has
    no position bias; an agreement that is not known proves nothing."""
    found = []
    agreement = metrics.get("agreement")
    if limits.min_agreement is not None and agreement is None:
        found.append("agreement is not known, as every verdict is missing")
    elif limits.min_agreement is not None and agreement is not None and agreement < limits.min_agreement:
        found.append(f"agreement {agreement:.3f} is below `limits.min_agreement` {limits.min_agreement:g}")
    for name, limit in (
        ("position_bias", limits.max_position_bias),
        ("length_bias", limits.max_length_bias),
        ("missing_share", limits.max_missing_share),
    ):
        value = metrics.get(name)
        if limit is not None and value is not None and abs(value) > limit:
            found.append(f"{name.replace('_', ' ')} {value:.3f} is beyond `limits.max_{name}` {limit:g}")
    return found


def _estimate(name: str, estimate: Estimate | None) -> Metrics:
    if estimate is None:
        return {name: None}
    return {name: estimate.value, f"{name}_low": _finite(estimate.low), f"{name}_high": _finite(estimate.high)}


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


def _plain(value: Any) -> Any:
    if is_dataclass(value) and not isinstance(value, type):
        return asdict(value)
    return [_plain(one) for one in value]


def _shown(row: Audited) -> dict[str, Any]:
    pair = row.pair
    return {
        "row_id": pair.row_id,
        "prompt": pair.messages,
        "principle": pair.principle,
        "chosen": pair.chosen,
        "rejected": pair.rejected,
        "reward_chosen": row.reward_chosen,
        "reward_rejected": row.reward_rejected,
        "verdicts": [
            {"chosen_first": j.chosen_first, **asdict(j.verdict)}
            for j in row.judgements
            if j.verdict is not None and j.purpose == "reward"
        ],
    }
