"""The summary: the same numbers for a program and for a person."""

from __future__ import annotations

import io
import json
from pathlib import Path

import pytest
from rich.console import Console

from nemotron.disk import lock
from nemotron.executors import state_of
from nemotron.reports.report import leading_cards, other_cards
from nemotron.runs.folder import LOCK
from nemotron.runs.jsonl import to_json
from nemotron.runs.metrics import by_step, column
from nemotron.runs.summary import print_summary, summarise, summary_lines
from nemotron.runs.views import JUDGED_GRPO, VIEWS, View
from nemotron.runs.words import duration
from tests.unit.runs.run_records import MakeRun, fill


def test_finished_run(make_run: MakeRun) -> None:
    run = fill(make_run(run_id="r1"), steps=10)
    lock.release(run.path / LOCK)
    summary = summarise(run)
    assert json.loads(to_json(summary)) == summary
    assert (summary["id"], summary["step"], summary["config"]) == ("r1", "rl/nemo_rl/rlhf", "tiny")
    assert (summary["status"], summary["wall_s"]) == ("finished", 5.0)
    assert (summary["steps"], summary["steps_total"]) == (10, 10)
    assert {key: summary["heldout"][key] for key in ("before", "after", "delta")} == {
        "before": 0.25,
        "after": 0.75,
        "delta": 0.5,
    }
    assert (summary["kl"], summary["kl_max"], summary["kl_limit"]) == (0.1, 0.1, 0.5)
    # Means of steps 6 to 10 and 1 to 5 of 3 + step / 10.
    assert summary["reward"] == pytest.approx(3.8)
    assert summary["reward_before"] == pytest.approx(3.3)
    assert summary["response_length"] == pytest.approx(22)
    assert summary["missing_share"] == 0
    assert summary["checkpoint"] == str(run.checkpoints / "step_10")
    assert summary["metrics"] == str(run.metrics)
    assert summary["report"] is None


def test_a_run_without_steps_has_nulls(make_run: MakeRun) -> None:
    summary = summarise(make_run(config={}))
    assert summary["status"] == "starting"
    for key in ("kl", "kl_max", "kl_limit", "reward", "reward_std", "response_length", "missing_share", "checkpoint"):
        assert summary[key] is None, key
    assert summary["heldout"]["before"] is None
    assert summary["steps"] == 0
    assert summary["wall_s"] >= 0


def test_gaps_are_left_out_and_repeated_steps_count_once(make_run: MakeRun) -> None:
    run = make_run()
    run.append_metrics({"step": 1, "train/reward": 1.0, "train/kl_penalty": float("nan")})
    run.append_metrics({"step": 2, "train/reward": float("nan"), "train/kl_penalty": 0.3})
    run.append_metrics({"step": 2, "heldout/fully_right": 0.5})
    run.append_metrics({"step": 2, "train/kl_penalty": 0.2})
    summary = summarise(run)
    assert (summary["steps"], summary["reward"], summary["kl"], summary["kl_max"]) == (2, 1.0, 0.2, 0.2)
    assert column(by_step(run.read_metrics()), "heldout/fully_right") == [None, 0.5]


def test_a_heldout_row_is_not_a_step_to_average_over(make_run: MakeRun) -> None:
    run = make_run()
    run.append_metrics({"step": 0, "heldout/fully_right": 0.1})
    for step in range(1, 11):
        run.append_metrics({"step": step, "train/reward": float(step)})
    assert summarise(run)["reward_before"] == 3.0


@pytest.mark.parametrize("steps", [1, 4, 9])
def test_a_short_run_has_one_figure_and_pretends_no_change(make_run: MakeRun, steps: int) -> None:
    """Means over the same steps would be equal whatever happened: `3.004 → 3.004`."""
    run = fill(make_run(run_id="r1"), steps=steps)
    summary = summarise(run)
    assert summary["averaged_steps"] == steps
    assert summary["reward"] == pytest.approx(3 + 0.1 * (steps + 1) / 2)
    assert {summary[f"{key}_before"] for key in ("reward", "reward_std", "response_length")} == {None}
    lines = dict(summary_lines(summary))
    count = "1 step" if steps == 1 else f"{steps} steps"
    assert lines["reward"] == f"{summary['reward']:.3f} ({count})"
    assert lines["reward spread"] == f"1.000 (std of a step, {count})"
    assert lines["response length"] == f"{summary['response_length']:.1f} tokens ({count})"
    assert "→" not in lines["reward"] + lines["reward spread"] + lines["response length"]
    (card,) = [card for card in other_cards(summary, JUDGED_GRPO) if card.label == "Reward"]
    assert (card.value, card.detail) == (f"{summary['reward']:.3f}", count)


@pytest.mark.parametrize("view", VIEWS.values(), ids=VIEWS)
def test_no_view_shows_a_change_where_there_is_one_measurement(make_run: MakeRun, view: View) -> None:
    row = {number.metric.replace("*", "default"): 0.5 for number in view.numbers} | {"train/reward": 0.5}
    run = make_run(view=next(name for name, one in VIEWS.items() if one is view))
    run.append_metrics({"step": 1, view.step_metric: 0.5, **row})
    summary = summarise(run)
    texts = {label: text for label, text in summary_lines(summary, view) if not label.startswith("held-out")}
    assert not [label for label, text in texts.items() if "→" in text]
    cards = [*leading_cards(summary, view), *other_cards(summary, view)]
    assert not [card for card in cards if "→" in card.detail or "from" in card.detail]
    if "validation loss" in texts:
        assert texts["validation loss"] == "0.5000 (measured once)"


def test_killed_run_is_timed_by_its_last_step(make_run: MakeRun) -> None:
    run = make_run()
    run.write_status(state="running")
    run.append_metrics({"step": 3, "wall_s": 7.5})
    lock.release(run.path / LOCK)
    summary = summarise(run, state_of(run))
    assert (summary["status"], summary["wall_s"], summary["steps"]) == ("killed", 7.5, 3)


def test_text_leads_with_drift_spread_length_heldout(make_run: MakeRun, monkeypatch: pytest.MonkeyPatch) -> None:
    run = fill(make_run(run_id="r1"), steps=10)
    lock.release(run.path / LOCK)
    monkeypatch.chdir(run.path.parent)
    out = io.StringIO()
    print_summary(run, Console(file=out, width=100, highlight=False))
    lines = [line.rstrip() for line in out.getvalue().splitlines()]
    assert lines == [
        "r1  finished  10 of 10 steps in 5.0 s",
        "KL to reference       0.1000 nats per token (largest 0.1000, limit 0.5)",
        "reward spread         1.000 → 1.000 (std of a step)",
        "response length       27.0 → 22.0 tokens",
        "held-out fully right  25.0% → 75.0% (+50.0 points)",
        "reward                3.300 → 3.800",
        "truncated             10.0%",
        "missing verdicts      0.0%",
        "checkpoint  r1/checkpoints/step_10",
        "metrics     r1/metrics.jsonl",
        "samples     r1/samples.jsonl",
    ]


def test_long_paths_are_never_cut_off_outside_a_terminal(make_run: MakeRun, capsys: pytest.CaptureFixture[str]) -> None:
    run = fill(make_run(run_id="r" * 90))
    print_summary(run)
    captured = capsys.readouterr()
    assert captured.out == ""
    assert str(run.metrics) in captured.err


def test_markup_in_an_error_is_shown_as_it_is(make_run: MakeRun) -> None:
    run = make_run()
    run.write_status(state="failed", error="key [bold]x[/bold] is wrong [/]")
    out = io.StringIO()
    print_summary(run, Console(file=out, width=100))
    assert "key [bold]x[/bold] is wrong [/]" in out.getvalue()


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (None, "–"),
        (0.04, "0.0 s"),
        (59.94, "59.9 s"),
        (60, "1 min 00 s"),
        (3599.7, "1 h 00 min"),
        (11_400, "3 h 10 min"),
    ],
)
def test_durations(seconds: float | None, text: str) -> None:
    assert duration(seconds) == text


def test_a_checkpoint_that_was_deleted_is_not_named(make_run: MakeRun) -> None:
    run = fill(make_run())
    (Path(run.checkpoints) / "step_6").rmdir()
    assert summarise(run)["checkpoint"] is None
