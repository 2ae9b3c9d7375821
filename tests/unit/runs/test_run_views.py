"""Each family of steps shows its own numbers, and leaves out what a run did not report."""

from __future__ import annotations

import io
import random
import re
from pathlib import Path
from typing import Any, get_args

import pytest
from rich.console import Console

from nemotron.disk import lock
from nemotron.engines.recorder import recording
from nemotron.manifest import ViewName, load_catalog
from nemotron.reports.report import render
from nemotron.runs.folder import LOCK
from nemotron.runs.live import LiveView
from nemotron.runs.summary import print_summary, summarise, summary_lines
from nemotron.runs.views import DPO, JUDGED_GRPO, VIEWS, View, view_of
from tests.compiled_jobs import compiled
from tests.unit.runs.run_records import MakeRun


def metrics_of(view: View) -> set[str]:
    """Every metric that the view mentions, a star replaced by a name."""
    lines = [line for chart in view.charts for panel in chart.panels for line in panel.lines]
    names = {line.metric for line in lines} | {number.metric for number in view.numbers}
    names |= {column.metric for column in view.columns} | {view.step_metric}
    return {name.replace("*", "default") for name in names}


def text_of(run: Any) -> str:
    out = io.StringIO()
    print_summary(run, Console(file=out, width=120, highlight=False))
    return out.getvalue()


def test_every_name_of_a_manifest_has_a_view() -> None:
    assert set(VIEWS) == set(get_args(ViewName))


def test_a_step_that_trains_or_measures_names_its_view() -> None:
    for step in load_catalog().steps:
        assert (step.view is not None) == (step.category in ("rl", "sft", "eval")), step.id


@pytest.mark.parametrize("name", VIEWS)
@pytest.mark.parametrize("share", [0.0, 0.5, 1.0])
def test_any_subset_of_the_metrics_can_be_shown(make_run: MakeRun, name: ViewName, share: float) -> None:
    view, chosen = VIEWS[name], random.Random(f"{name} {share}")
    run = make_run(view=name)
    out = io.StringIO()
    with LiveView(3, Console(file=out, width=200), view=view) as live:
        for step in range(1, 4):
            row = {"step": step, **{m: 0.1 * step for m in sorted(metrics_of(view)) if chosen.random() < share}}
            run.append_metrics(row)
            live.step(row)
    html, text = render(run), text_of(run)
    summary = summarise(run)
    for label, line in summary_lines(summary, view):
        assert label in text
        assert line in text
    for headline in (*view.leading, *view.other):
        if headline.shown(summary):
            assert headline.card(summary).label in html
    if share == 1.0:
        assert all(headline.shown(summary) for headline in (*view.leading, *view.other))
        for column in view.columns:
            assert column.title in out.getvalue()
        missing = re.search(r"Not recorded in this run: (.*)\.</p>", html)
        assert missing is None or set(missing[1].split(", ")) <= {
            "Held-out answers before and after", "Held-out pairs before and after", "Time per step",
        }  # fmt: skip


def test_a_run_of_dpo(make_run: MakeRun) -> None:
    run = make_run(view="dpo", run_id="r1")
    with recording(run, total=10, done=0) as recorder:
        for step in range(1, 11):
            rows = [{"prompt": "p", "response": "yes", "reward": 0.5, "side": "rejected"}]
            recorder.samples(step, rows)
            extra = {"validation-default_accuracy": 0.4 + 0.04 * step} if step % 5 == 0 else {}
            row = {"train/loss": 0.7 - 0.02 * step, "train/accuracy": 0.5, "train/margin": 0.1 * step, **extra}
            recorder.step(step, {**row, "train/rewards_chosen_mean": -0.1 * step})
    run.write_status(state="finished", wall_s=5.0)
    lock.release(run.path / LOCK)
    summary = summarise(run)
    assert summary["validation_accuracy_before"] == pytest.approx(0.6)
    assert summary["validation_accuracy"] == pytest.approx(0.8)
    assert summary["reward"] is None
    lines = [re.split(r"  +", line.rstrip()) for line in text_of(run).splitlines()]
    assert lines[1:7] == [
        ["validation accuracy", "80.0%"],
        ["held-out fully right", "– → –"],
        ["reward of chosen", "-0.300 → -0.800 (falling means that chosen answers get less likely)"],
        ["margin", "0.300 → 0.800 (chosen minus rejected)"],
        ["training accuracy", "50.0% → 50.0% (+0.0 points)"],
        ["loss", "0.6400 → 0.5400"],
    ]
    assert next(iter(run.read_samples())) == {
        "step": 1, "phase": "train", "prompt": "p", "response": "yes", "reward": 0.5, "side": "rejected",
    }  # fmt: skip
    page = render(run)
    assert "Preference accuracy" in page
    assert "<span>rejected</span>" in page


def test_what_goes_wrong_is_said_while_the_run_works_and_once_for_all_attempts(
    make_run: MakeRun, capsys: pytest.CaptureFixture[str]
) -> None:
    run = make_run(view="verified_grpo")
    with recording(run, total=9, done=0) as recorder:
        for step in range(1, 6):
            recorder.step(step, {"train/reward": 0.5, "train/token_mult_prob_error": 1.3 if step > 3 else 1.0})
    said = capsys.readouterr().err
    assert said.count("step 4: sampler and trainer disagree") == said.count("sampler and trainer disagree") == 1
    assert "set `policy.precision=float32`" in said
    with recording(run, total=9, done=5) as recorder:
        recorder.step(6, {"train/reward": 0.5, "train/token_mult_prob_error": 1.3})
    assert "disagree" not in capsys.readouterr().err


def test_heldout_pairs_lead_a_reward_model(make_run: MakeRun) -> None:
    run = make_run(view="reward_model")
    run.write_status(heldout_before={"margin_right": 0.1, "accuracy": 0.5}, heldout_after={"accuracy": 0.9})
    assert summarise(run)["heldout"]["delta"] == pytest.approx(0.4)
    assert "held-out accuracy" in text_of(run)
    run.write_status(heldout_before={"other": 0.5}, heldout_after={"other": 0.75})
    assert "held-out other" in text_of(run)


def test_several_sets_of_one_star_are_lines_of_their_own(make_run: MakeRun) -> None:
    run = make_run(view="verified_grpo")
    run.append_metrics({"step": 1, "train/reward": 1.0, "reward/math/mean": 0.5, "reward/format/mean": 1.0})
    html = render(run)
    assert '"name": "math"' in html
    assert '"name": "format"' in html


def test_which_view_a_run_has(make_run: MakeRun) -> None:
    assert view_of(compiled(view="judged_grpo")) is JUDGED_GRPO
    assert view_of(compiled(view="dpo")) is DPO
    plain = make_run(engine="plain", view=None)
    assert view_of(plain.job()) is None
    assert "KL" not in text_of(plain)


def test_an_attempt_drops_the_rows_after_its_checkpoint(make_run: MakeRun, tmp_path: Path) -> None:
    run = make_run(view="dpo")
    for done, steps in ((0, range(1, 6)), (3, range(4, 6))):
        with recording(run, total=5, done=done) as recorder:
            for step in steps:
                recorder.samples(step, [{"attempt": done}])
                recorder.step(step, {"train/loss": float(done)})
    assert [(row["step"], row["train/loss"]) for row in run.read_metrics()] == [(1, 0), (2, 0), (3, 0), (4, 3), (5, 3)]
    assert [row["attempt"] for row in run.read_samples()] == [0, 0, 0, 3, 3]
