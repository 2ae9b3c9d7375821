"""The live view: redrawn on a terminal, plain lines elsewhere."""

from __future__ import annotations

import io
import re
from typing import Any

import pytest
from rich.console import Console

from nemotron.runs.live import LiveView


def row(step: int, **more: Any) -> dict[str, Any]:
    return {
        "step": step,
        "train/reward": 3.25,
        "train/reward_std": 0.5,
        "train/kl_penalty": 0.0123,
        "train/mean_gen_tokens_per_sample": 31.5,
        "train/truncation_rate": 0.125,
        "timing/train/total_step_time": 0.25,
        **more,
    }


def plain(steps: list[dict[str, Any]], total: int, *, start_step: int = 0) -> list[str]:
    out = io.StringIO()
    with LiveView(total, Console(file=out, width=60, highlight=False), start_step=start_step) as view:
        view.phase("loading policy")
        for metrics in steps:
            view.step(metrics)
    return out.getvalue().splitlines()


def test_plain_lines_name_the_numbers() -> None:
    lines = plain([row(1), row(2, **{"heldout/fully_right": 0.4})], total=2)
    assert [re.sub(r"^\[ *[\d.]+ s\] ", "", line) for line in lines] == [
        "loading policy",
        "step 1/2, reward 3.250 ± 0.500, KL 0.0123, length 31.5, truncated 12.5%, s/step 0.25",
        "step 2/2, reward 3.250 ± 0.500, KL 0.0123, length 31.5, truncated 12.5%, held-out 40.0%, s/step 0.25",
    ]


def test_fast_steps_are_thinned_out_but_not_the_first_the_last_or_a_heldout_one() -> None:
    steps = [row(step, **({"heldout/fully_right": 0.4} if step == 20 else {})) for step in range(11, 41)]
    lines = plain(steps, total=40, start_step=10)
    assert [int(match[1]) for line in lines if (match := re.search(r"step (\d+)/40", line))] == [11, 20, 40]


def test_missing_and_broken_numbers_leave_gaps() -> None:
    lines = plain([{"step": 1, "train/reward": float("nan"), "train/kl_penalty": None}], total=5)
    assert lines[1].endswith("] step 1/5")


def test_a_terminal_gets_a_table_and_a_bar() -> None:
    out = io.StringIO()
    console = Console(file=out, width=100, height=30, force_terminal=True, color_system=None)
    with LiveView(40, console) as view:
        view.phase("held-out before")
        for step in range(1, 13):
            view.step(row(step))
        view.phase("training")
    last = out.getvalue().rsplit("truncated", 1)[1]
    assert "3.250 ± 0.500" in last
    assert "12/40" in last
    assert "ETA" in last
    assert "training" in last
    assert re.findall(r"^ +(\d+) ", last, re.MULTILINE) == [str(step) for step in range(5, 13)]


def test_an_error_inside_passes_and_the_terminal_is_given_back() -> None:
    out = io.StringIO()
    console = Console(file=out, force_terminal=True)
    with pytest.raises(RuntimeError, match="boom"), LiveView(3, console):
        raise RuntimeError("boom")
    assert out.getvalue().count("\x1b[?25h") == 1


def test_the_eta_goes_by_the_pace_of_steps_not_by_what_came_before() -> None:
    clock = [1000.0]
    out = io.StringIO()
    console = Console(file=out, get_time=lambda: clock[0])
    with LiveView(40, console, start_step=10) as view:
        view.phase("loading policy")
        clock[0] += 500
        for step in (11, 12, 13):
            view.step(row(step, **{"heldout/fully_right": 0.4}))
            clock[0] += 60
    lines = out.getvalue().splitlines()
    assert "ETA" not in lines[1]
    assert lines[3].endswith("ETA 27 min 00 s")
