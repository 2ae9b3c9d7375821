"""The page of an audit: in every state of a run, and with text that tries to break out of it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from nemotron.disk import lock
from nemotron.errors import ArtifactError
from nemotron.reports.audit_report import leading, other, remarks, render_audit
from nemotron.reports.report import write_report
from nemotron.runs.folder import LOCK, RunFolder
from tests.compiled_jobs import compiled

HOSTILE = "</script><img src=x onerror=\"document.title='owned'\">"
FAIR: dict[str, float | None] = {
    "pairs": 200.0, "pairs_in_data": 1000.0, "agreement": 0.9, "agreement_low": 0.85, "agreement_high": 0.93,
    "position_bias": 0.01, "position_bias_low": -0.03, "position_bias_high": 0.05, "flip_share": 0.05,
    "length_bias": -0.02, "length_bias_low": -0.1, "length_bias_high": 0.07, "missing_share": 0.0,
    "self_consistency": 0.95, "commonest_score_share": 0.3, "expected_calibration_error": None,
}  # fmt: skip


def audit_run(folder: Path, results: dict[str, Any] | None) -> RunFolder:
    """The folder of an audit with these results."""
    config = {"output_dir": str(folder / "results")}
    run = RunFolder.create(folder, compiled(step="eval/reward_audit", config=config, engine="plain", view="audit"))
    if results is not None:
        (folder / "results").mkdir()
        (folder / "results" / "eval_results.json").write_text(json.dumps(results))
    lock.release(run.path / LOCK)
    return run


def made(kind: str = "judge", **metrics: float | None) -> dict[str, Any]:
    """Results with something in every part."""
    pair = {
        "row_id": "pairs.jsonl:1", "prompt": [{"role": "user", "content": HOSTILE}], "principle": HOSTILE,
        "chosen": HOSTILE, "rejected": "", "reward_chosen": -1.0, "reward_rejected": 2.5,
        "verdicts": [{"chosen_first": True, "score_1": 1.0, "score_2": 4.0, "ranking": 6.0}],
    }  # fmt: skip
    share = {"value": 0.8, "low": 0.7, "high": 0.9, "n": 40}
    return {
        "kind": kind,
        "metrics": {**FAIR, **metrics},
        "details": {
            "position": {
                "chosen_first": {"chosen": 9, "tie": 0, "rejected": 1},
                "rejected_first": {"chosen": 7, "tie": 1, "rejected": 2},
            },
            "length_bins": [{"low": 1, "high": 4, "n": 10, "longer_preferred": 0.5, "longer_chosen": 0.4}],
            "length_points": [[3, 1.5], [-2, -0.5]],
            "failures": {HOSTILE: 3},
            "histogram": [[1.0, 3], [5.0, 2]],
            "calibration": {"kind": "margin", "bins": [{"confidence": 0.7, "agreement": share, "n": 40}]},
            "worst": [pair],
        },
    }


@pytest.mark.parametrize("kind", ["judge", "reward_model"])
def test_every_section_is_there_and_text_stays_text(tmp_path: Path, kind: str) -> None:
    page = render_audit(audit_run(tmp_path, made(kind)))
    for section in ("remarks", "plots", "disagreements", "figures-table", "failures", "lineage"):
        assert page.count(f'<section id="{section}">') == 1, section
    assert page.count('class="plot"') == 6
    assert HOSTILE not in page
    assert page.count("&lt;/script&gt;&lt;img") >= 4
    assert "rejected by the label" in page
    assert "(empty)" in page
    assert "chosen first: 1 to 4, ranking 6" in page


def test_a_run_without_results_has_a_page(tmp_path: Path) -> None:
    run = audit_run(tmp_path, None)
    assert "has not reached its end" in write_report(run).read_text()


@pytest.mark.parametrize("text", ["{", "[]", '{"metrics": {}}'])
def test_damaged_results_are_named(tmp_path: Path, text: str) -> None:
    run = audit_run(tmp_path, {})
    (tmp_path / "results" / "eval_results.json").write_text(text)
    with pytest.raises(ArtifactError, match=r"eval_results\.json"):
        write_report(run)


def test_a_fair_judge_gets_no_remark_and_green_cards() -> None:
    assert list(remarks(FAIR)) == []
    assert [card.tone for card in leading(FAIR)] == ["good"] * 4
    assert [card.detail for card in leading(FAIR)][1] == "95% interval -0.03 to +0.05; 5.0% of pairs flip"
    assert [card.label for card in other(FAIR, {"wall_s": 3.0})] == ["Self-consistency", "Pairs", "Time"]


def bounds(name: str, value: float, low: float, high: float) -> dict[str, float | None]:
    return {name: value, f"{name}_low": low, f"{name}_high": high}


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (bounds("agreement", 0.52, 0.45, 0.6), "cannot be told from a coin's"),
        (bounds("agreement", 0.2, 0.1, 0.3), "upside down"),
        (bounds("position_bias", 0.4, 0.3, 0.5), "The first answer is preferred for its place"),
        (bounds("position_bias", -0.4, -0.5, -0.3), "The second answer is preferred for its place"),
        ({"flip_share": 0.4}, "The order decides 40.0% of the pairs"),
        (bounds("length_bias", 0.4, 0.3, 0.5), "Longer answers are preferred"),
        (bounds("length_bias", -0.4, -0.5, -0.3), "Shorter answers are preferred"),
        ({"self_consistency": 0.6}, "the same winner in 60.0%"),
        ({"missing_share": 0.2}, "20.0% are missing"),
        ({"commonest_score_share": 0.9}, "One score is given in 90.0%"),
        ({"expected_calibration_error": 0.2}, "off by 20.0%"),
    ],
)
def test_what_stands_out_is_said(change: dict[str, float | None], said: str) -> None:
    [remark] = remarks({**FAIR, **change})
    assert said in remark


def test_a_bias_that_may_be_chance_is_not_called_one() -> None:
    assert list(remarks({**FAIR, **bounds("position_bias", 0.3, -0.1, 0.7)})) == []
    assert leading({**FAIR, **bounds("position_bias", 0.3, -0.1, 0.7)})[1].tone == ""


def test_unknown_figures_are_dashes() -> None:
    cards: Callable[..., Any] = leading
    nothing: dict[str, float | None] = dict.fromkeys(FAIR)
    assert [card.value for card in cards(nothing)] == ["–"] * 4
    assert cards(nothing)[1].detail == "does not apply"
