"""report.html: whole, self-contained, and deaf to what a model writes into its responses."""

from __future__ import annotations

import json
import re
from html.parser import HTMLParser
from typing import Any

import pytest

from nemotron.errors import DataError, OutputError
from nemotron.reports.figures import MAX_POINTS, figures, thinned
from nemotron.reports.pairs import select
from nemotron.reports.report import render, write_report
from nemotron.runs.folder import RunFolder
from nemotron.runs.views import VIEWS, View
from tests.unit.runs.run_records import MakeRun, fill

HOSTILE = "</script></style><script>steal()</script><img src=x onerror=steal()> {{ 7*7 }} \u2028 <!--"


class Page(HTMLParser):
    """Tags, attributes and text of a page; the scripts' text apart."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.scripts: list[str] = []
        self._inside = ""
        self.feed(html)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        self._inside = tag
        self.text += " "
        if tag == "script":
            self.scripts.append("")

    def handle_endtag(self, tag: str) -> None:
        self._inside = ""

    def handle_data(self, data: str) -> None:
        if self._inside == "script":
            self.scripts[-1] += data
        elif self._inside != "style":
            self.text += data

    def figures(self) -> list[dict[str, Any]]:
        return json.loads(self.scripts[1])  # type: ignore[no-any-return]


def test_report_of_a_finished_run(make_run: MakeRun) -> None:
    run = fill(make_run(run_id="r1"), steps=6)
    assert write_report(run) == run.report
    page = Page(run.report.read_text(encoding="utf-8"))
    words = re.sub(r"\s+", " ", page.text)
    for expected in (
        "r1 finished",
        "KL to the reference 0.0600 nats per token, largest 0.0600, limit 0.5",
        "Held-out fully right 75.0% from 25.0%, +50.0 points",
        "question 0 before training heldout_before answer 0",
        "Judged best in the last steps train question 3 step 2 reward 3.00 advantage +1.50 truncated step 2 answer 3",
        "checkpoint: checkpoints/step_6",
        "Not recorded in this run: Validation during training",
    ):
        assert expected in words
    assert [figure["id"] for figure in page.figures()] == [
        "kl", "reward", "heldout", "length", "clipping", "optimizer", "missing", "position", "time",
    ]  # fmt: skip
    plots = [attrs["id"] for tag, attrs in page.tags if tag == "div" and str(attrs.get("id")).startswith("plot-")]
    assert plots == [f"plot-{figure['id']}" for figure in page.figures()]


def test_what_went_wrong_stands_there_with_what_to_do(make_run: MakeRun) -> None:
    run = fill(make_run())
    assert "What to look at" not in render(run)
    run.append_metrics({"step": 7, "train/grad_norm": 45.0, "train/token_mult_prob_error": 1.4})
    words = re.sub(r"\s+", " ", Page(render(run)).text)
    assert "What to look at" in words
    assert "gradient spike: the gradient's norm is 45, 30 times the median of the 6 steps before (step 7)" in words
    assert "What to do: lower the learning rate or `policy.max_grad_norm`" in words
    assert "sampler drift" in words


def test_nothing_is_loaded_from_anywhere(make_run: MakeRun) -> None:
    html = render(fill(make_run()))
    page = Page(html)
    for tag, attrs in page.tags:
        assert "src" not in attrs, tag
        assert tag != "link"
        assert not str(attrs.get("href", "")).startswith(("http", "//")), attrs
    assert "default-src &#39;none&#39;" in html or "default-src 'none'" in html


def test_hostile_text_stays_text(make_run: MakeRun) -> None:
    run = make_run(
        config={"policy": {"model_name": HOSTILE}},
        inputs=[{"key": HOSTILE, "type": HOSTILE, "path": HOSTILE, "fingerprint": HOSTILE}],
        engine_reason=HOSTILE,
    )
    harmless = Page(render(fill(make_run())))
    fill(run)
    aspects = {HOSTILE: 0.5, "fully_right": 0.1}
    run.write_status(state="failed", error=HOSTILE, heldout_before=aspects, heldout_after=aspects)
    sample = {"prompt": HOSTILE, "response": HOSTILE, "reward": 99.0, "verdict": {HOSTILE: True}, "row_id": HOSTILE}
    run.append_samples({**sample, "step": 6, "phase": phase} for phase in ("heldout_before", "heldout_after", "train"))
    page = Page(render(run))
    assert page.text.count("<script>steal()</script><img src=x onerror=steal()>") >= 8
    assert [tag for tag, _ in page.tags if tag in ("script", "img", "style")] == ["style", "script", "script", "script"]
    nonces = {attrs["nonce"] for tag, attrs in page.tags if tag == "script" and "nonce" in attrs}
    assert len(nonces) == 1
    assert page.scripts[2] == harmless.scripts[2]
    assert not [attrs for _, attrs in page.tags if any(name.startswith("on") for name in attrs)]
    labels = next(figure for figure in page.figures() if figure["id"] == "heldout")["data"][0]["x"]
    assert HOSTILE.replace("_", " ") in labels


def test_runs_with_few_or_no_steps(make_run: MakeRun) -> None:
    empty = Page(render(make_run()))
    assert empty.figures() == []
    assert "no step is done" in empty.text
    run = make_run()
    run.append_metrics({"step": 1, "train/reward": float("nan"), "train/kl_penalty": 0.1})
    one = Page(render(run))
    assert [(figure["id"], figure["data"][0]["y"]) for figure in one.figures()] == [("kl", [0.1])]


def test_numbers_that_json_does_not_have_never_reach_the_page(make_run: MakeRun) -> None:
    run = make_run()
    run.metrics.write_text(
        '{"step": 1, "train/reward": NaN, "train/kl_penalty": Infinity}\n{"step": 2, "train/reward": 1}\n'
    )
    (figure,) = Page(render(run)).figures()
    assert (figure["id"], figure["data"][-1]["x"], figure["data"][-1]["y"]) == ("reward", [2.0], [1.0])


def test_an_old_report_survives_a_damaged_run(make_run: MakeRun) -> None:
    run = fill(make_run())
    write_report(run)
    before = run.report.read_bytes()
    run.metrics.write_text("damaged\n" + run.metrics.read_text())
    with pytest.raises(DataError):
        write_report(run)
    assert run.report.read_bytes() == before


def test_report_that_cannot_be_written(make_run: MakeRun) -> None:
    run = fill(make_run())
    run.report.mkdir()
    with pytest.raises(OutputError):
        write_report(run)
    assert not list(run.path.glob(".report*"))


def draw(rows: list[dict[str, Any]], kl_limit: float | None = None) -> dict[str, Any]:
    drawn = figures(rows, kl_limit=kl_limit, heldout_before=None, heldout_after=None)
    return {figure.id: figure for figure in drawn if figure.data}


def test_reward_band_is_one_standard_deviation() -> None:
    rows = [{"step": 1, "train/reward": 3.0, "train/reward_std": 0.5}]
    rows += [{"step": step, "train/reward": 4.0} for step in (2, 3)]
    low, high, mean = draw(rows)["reward"].data
    assert (low["y"], high["y"], mean["y"]) == ([2.5, 4.0, 4.0], [3.5, 4.0, 4.0], [3.0, 4.0, 4.0])


def test_no_line_is_drawn_between_two_points() -> None:
    """What lies between them was not measured; a validation at the start and at the end is two points."""
    rows = [{"step": step, "validation/accuracy": 0.1 * step, "train/grad_norm": 1.0} for step in (1, 9)]
    rows.append({"step": 5, "train/grad_norm": 2.0})
    (accuracy,) = draw(rows)["validation"].data
    assert (accuracy["x"], accuracy["mode"]) == ([1, 9], "markers")
    (norm,) = draw(rows)["optimizer"].data
    assert norm["mode"] == "lines+markers"
    (reward,) = draw([{"step": 1, "train/reward": 3.0, "train/reward_std": 0.5}])["reward"].data
    assert (reward["mode"], reward["error_y"]["array"]) == ("markers", [0.5])


@pytest.mark.parametrize("view", VIEWS.values(), ids=VIEWS)
def test_what_is_measured_before_and_after_is_no_curve(view: View) -> None:
    """The held-out metric has two values, which its bars, cards and table tell."""
    metrics = [line.metric for chart in view.charts for panel in chart.panels for line in panel.lines]
    assert not [name for name in metrics if name.startswith("heldout/")]


def test_kl_limit_is_a_line() -> None:
    rows = [{"step": 1, "train/kl_penalty": 0.1}]
    (shape,) = draw(rows, kl_limit=0.5)["kl"].layout["shapes"]
    assert (shape["y0"], shape["y1"]) == (0.5, 0.5)
    assert draw(rows)["kl"].layout["shapes"] == []


def test_time_that_no_phase_accounts_for_is_other() -> None:
    rows = [
        {"step": 1, "timing/train/generation": 1.0, "timing/train/total_step_time": 1.5},
        {"step": 2, "timing/train/generation": 2.0, "timing/train/total_step_time": 1.5},
    ]
    assert {trace["name"]: trace["y"] for trace in draw(rows)["time"].data} == {
        "generation": [1.0, 2.0],
        "other": [0.5, 0.0],
    }


def test_long_runs_are_thinned_and_keep_their_ends() -> None:
    rows = [{"step": step, "train/reward": 1.0} for step in range(10_000)]
    kept = thinned(rows)
    assert len(kept) <= MAX_POINTS + 1
    assert (kept[0]["step"], kept[-1]["step"]) == (0, 9999)
    assert thinned(rows[:100]) == rows[:100]
    assert thinned([]) == []


def test_pairs_are_matched_by_row_and_moved_most_comes_first() -> None:
    def answer(phase: str, row_id: int, right: int) -> dict[str, Any]:
        verdict = {f"aspect_{index}": index < right for index in range(4)}
        return {"step": 0, "phase": phase, "row_id": row_id, "prompt": str(row_id), "response": "", "verdict": verdict}

    before = [answer("heldout_before", row_id, right) for row_id, right in enumerate([1, 2, 4, 0, 3])]
    after = [answer("heldout_after", row_id, right) for row_id, right in reversed(list(enumerate([1, 3, 1, 4])))]
    chosen = select([*before, *after])
    assert [pair.prompt for pair in chosen.pairs] == ["0", "1", "2", "3"]
    assert [(pair.prompt, pair.moved) for pair in chosen.improved] == [("3", 4), ("1", 1)]
    assert [(pair.prompt, pair.moved) for pair in chosen.worsened] == [("2", -3)]
    assert chosen.heldout_count == 4


def test_properties_may_stand_in_the_row_itself() -> None:
    row = {"row_id": "a", "prompt": "p", "response": "r", "truncated": True, "polite": True, "fully_right": False}
    (pair,) = select({**row, "step": 0, "phase": phase} for phase in ("heldout_before", "heldout_after")).pairs
    assert pair.before.aspects == [("polite", True), ("fully right", False)]
    assert pair.before.truncated


def test_best_and_worst_are_of_the_last_steps_and_judged() -> None:
    rows = [
        {"step": step, "phase": "train", "prompt": str(step), "response": "", "reward": reward}
        for step, reward in [(1, 100.0), (2, 1.0), (3, None), (4, 5.0), (5, 3.0), (6, -2.0)]
    ]
    chosen = select(rows)
    assert [item.answer.reward for item in chosen.best] == [5.0, 3.0, 1.0, -2.0]
    assert [item.answer.reward for item in chosen.worst] == [-2.0, 1.0, 3.0, 5.0]


def test_render_needs_only_the_folder(make_run: MakeRun) -> None:
    run = fill(make_run())
    assert Page(render(RunFolder.open(run.path))).figures() == Page(render(run)).figures()
