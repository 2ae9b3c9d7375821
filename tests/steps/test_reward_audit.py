"""The audit as a user runs it: what it writes, whether it finds a bad reward out, killed and resumed."""

from __future__ import annotations

import asyncio
import json
import signal
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web

from nemotron.artifacts.verify import verify
from nemotron.judge.types import derive_seed
from tests.steps.audit_commands import (
    SHORT,
    answers,
    audit,
    command,
    judging,
    knows_the_labels,
    likes_length,
    likes_the_first,
    remote,
    result_file,
    results,
    samples,
)
from tests.steps.commands import kill_when, only_run, run_here
from tests.unit.judge.scripted_judge import Scripted, says, verdict

COMMAND = [sys.executable, "-m", "nemotron"]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of runs with one audit of the shipped judge in it."""
    runs = tmp_path_factory.mktemp("whole")
    done = audit(runs, *SHORT)
    assert (done.code, done.stdout) == (0, ""), done.stderr
    return runs


def test_the_shipped_judge_is_good(whole: Path) -> None:
    metrics = results(whole)["metrics"]
    assert metrics["pairs"] == 60
    assert metrics["agreement_low"] > 0.75
    assert abs(metrics["position_bias"]) < 0.2
    assert metrics["flip_share"] < 0.3
    assert metrics["missing_share"] == metrics["unparseable_share"] == 0
    assert metrics["comparisons"] == 60 * 2 + 10 * 2 * 3
    assert metrics["self_consistency"] > 0.7


def test_every_verdict_is_kept(whole: Path) -> None:
    rows = [json.loads(line) for line in samples(whole)]
    assert sorted(row["index"] for row in rows) == list(range(60))
    for row in rows:
        kinds = Counter((j["purpose"], j["chosen_first"]) for j in row["judgements"])
        again = 3 if row["index"] < 10 else 0
        assert (
            kinds
            == Counter({("reward", True): 1, ("reward", False): 1, ("repeat", True): again, ("repeat", False): again})
            + Counter()
        )
        assert all(j["verdict"] for j in row["judgements"])
        assert row["reward_chosen"] is not None


def test_results_are_an_artifact_with_a_record(whole: Path) -> None:
    found = verify(result_file(whole))
    assert (found.type, found.recorded) == ("eval_results", True)
    record = json.loads((result_file(whole).parent / "nemotron_artifact.json").read_bytes())
    assert record["step"] == "eval/reward_audit"
    keys = [source["key"] for source in record["inputs"]]
    assert keys == ["env.nemo_gym.genrm_model.responses_api_models.vllm_model.model", "data.data_path"]
    assert all(source["fingerprint"].startswith("sha256:") for source in record["inputs"])


def test_the_page_has_every_section(whole: Path) -> None:
    page = (only_run(whole) / "report.html").read_text(encoding="utf-8")
    for section in ("remarks", "plots", "disagreements", "figures-table", "lineage"):
        assert f'<section id="{section}">' in page
    for plot in ("agreement", "position", "length", "length-points", "calibration", "scores"):
        assert f'id="plot-{plot}"' in page


def test_runs_show_leads_with_what_matters(whole: Path) -> None:
    shown = run_here([*COMMAND, "runs", "show", "last", "--runs-dir", str(whole)])
    agreement = results(whole)["metrics"]["agreement"]
    first = shown.stdout.splitlines()[1]
    assert first.startswith(f"agreement with labels  {100 * agreement:.1f}% (95% interval ")
    assert "KL" not in shown.stdout
    rebuilt = run_here([*COMMAND, "runs", "report", "last", "--runs-dir", str(whole)])
    assert rebuilt.code == 0
    assert "Worst disagreements" in (only_run(whole) / "report.html").read_text()


@pytest.mark.full
def test_a_killed_audit_ends_with_the_same_figures(whole: Path, tmp_path: Path) -> None:
    argv = command(tmp_path, *SHORT)
    assert kill_when(argv, lambda: len(samples(tmp_path)) >= 10) == -signal.SIGKILL
    before = samples(tmp_path)
    assert 10 <= len(before) < 60
    resumed = run_here([*argv, "--resume"])
    assert resumed.code == 0, resumed.stderr
    assert samples(tmp_path)[: len(before)] == before
    assert result_file(tmp_path).read_bytes() == result_file(whole).read_bytes()
    again = run_here([*argv, "--resume"])
    assert "finished already" in again.stderr


def test_a_resumed_audit_asks_nothing_twice(tmp_path: Path) -> None:
    async def slow(k: int, body: dict[str, Any]) -> web.Response:
        await asyncio.sleep(0.02)
        return verdict(*knows_the_labels(*answers(body)))

    words = (*SHORT, "judge.max_concurrent_requests=4")
    with Scripted(slow) as judge:
        argv = command(tmp_path, *words, *remote(judge))
        kill_when(argv, lambda: len(samples(tmp_path)) >= 20)
        done = [json.loads(line) for line in samples(tmp_path)]
        # A line that was being written is asked for again.
        with next(tmp_path.glob("2*/samples.jsonl")).open("ab") as file:
            file.write(b'{"step": 0, "phase": "audit", "key": "torn')
        asked_before = len(judge.bodies)
        resumed = run_here([*argv, "--resume"])
        assert resumed.code == 0, resumed.stderr
        later = [frozenset(answers(body)) for body in judge.bodies[asked_before:]]
    assert f"{len(done)} of 60 pairs were done before" in resumed.stderr
    assert not {frozenset((row["chosen"], row["rejected"])) for row in done} & set(later)
    assert results(tmp_path)["metrics"]["agreement"] == 1


def test_a_judge_that_likes_the_first_answer_is_found_out(tmp_path: Path) -> None:
    with Scripted(judging(likes_the_first)) as judge:
        done = audit(tmp_path, *SHORT, *remote(judge), "limits.max_position_bias=0.2", "limits.min_agreement=0.7")
    assert done.code == 9, done.stderr
    message = "the judge is not good enough: agreement 0.500 is below `limits.min_agreement` 0.7; position bias 1.000"
    assert message in done.stderr
    found = results(tmp_path)
    metrics = found["metrics"]
    assert (metrics["position_bias"], metrics["flip_share"], metrics["first_score_advantage"]) == (1, 1, 1)
    assert metrics["position_bias_low"] > 0.85
    assert abs(metrics["length_bias"]) < 0.01
    page = (only_run(tmp_path) / "report.html").read_text()
    assert "The first answer is preferred for its place" in page
    assert "Agreement cannot be told from a coin&#39;s" in page
    status = json.loads((only_run(tmp_path) / "status.json").read_text())
    assert (status["state"], status["exit_code"]) == ("stopped", 9)


def test_a_judge_that_likes_length_is_found_out(tmp_path: Path) -> None:
    with Scripted(judging(likes_length)) as judge:
        done = audit(tmp_path, *SHORT, *remote(judge), "limits.max_length_bias=0.3")
    assert done.code == 9, done.stderr
    assert "length bias 1.000 is beyond `limits.max_length_bias` 0.3" in done.stderr
    metrics = results(tmp_path)["metrics"]
    assert (metrics["length_bias"], metrics["longer_preferred_share"]) == (1, 1)
    assert metrics["reward_length_correlation"] > 0.6 > metrics["label_length_correlation"]
    assert (metrics["position_bias"], metrics["flip_share"]) == (0, 0)
    page = (only_run(tmp_path) / "report.html").read_text()
    assert "Longer answers are preferred beyond what the labels say" in page
    worst = results(tmp_path)["details"]["worst"]
    assert page.count('<article class="sample">') == len(worst) == 20
    assert all(len(pair["rejected"]) > len(pair["chosen"]) for pair in worst)
    assert all(pair["row_id"] in page for pair in worst)


def test_a_judge_that_knows_the_labels_passes_every_limit(tmp_path: Path) -> None:
    limits = ("min_agreement=0.95", "max_position_bias=0.05", "max_length_bias=0.05", "max_missing_share=0")
    with Scripted(judging(knows_the_labels)) as judge:
        done = audit(tmp_path, *SHORT, *remote(judge), *(f"limits.{limit}" for limit in limits))
    assert done.code == 0, done.stderr
    metrics = results(tmp_path)["metrics"]
    assert (metrics["agreement"], metrics["position_bias"], metrics["length_bias"], metrics["self_consistency"]) == (
        *(1, 0, 0, 1),
    )
    page = (only_run(tmp_path) / "report.html").read_text()
    assert "no figure is out of the ordinary" in page
    assert "No pair of the sample contradicts its label" in page


def test_one_order_is_drawn_by_the_pair(tmp_path: Path) -> None:
    with Scripted(judging(likes_the_first)) as judge:
        done = audit(tmp_path, "audit.pairs=40", "audit.repeats=0", "audit.both_orders=false", *remote(judge))
        assert len(judge.bodies) == 40
    assert done.code == 0, done.stderr
    found = results(tmp_path)
    assert (found["metrics"]["position_bias"], found["metrics"]["flip_share"]) == (1, None)
    assert found["metrics"]["self_consistency"] is None
    assert 8 < found["details"]["position"]["chosen_first"]["chosen"] < 32
    assert 0.2 < found["metrics"]["agreement"] < 0.8


def test_a_judge_that_rambles_is_missing_not_scored(tmp_path: Path) -> None:
    async def rambles(k: int, body: dict[str, Any]) -> web.Response:
        first, second = answers(body)
        mute = derive_seed(len(first), len(second)) % 2
        return says("I like both.") if mute else verdict(*knows_the_labels(first, second))

    with Scripted(rambles) as judge:
        done = audit(tmp_path, *SHORT, *remote(judge), "audit.repeats=0")
    assert done.code == 9, done.stderr
    assert "is beyond `limits.max_missing_share` 0.05" in done.stderr
    found = results(tmp_path)
    metrics = found["metrics"]
    assert 0.2 < metrics["missing_share"] < 0.8
    # Each rambling answer is asked for four times, each good one once.
    lost = metrics["missing_share"]
    assert metrics["unparseable_share"] == pytest.approx(4 * lost / (4 * lost + 1 - lost))
    assert metrics["agreement"] == 1, "what is missing is no disagreement"
    assert list(found["details"]["failures"]) == ["no verdict in 'I like both.'"]
    assert "Why verdicts are missing" in (only_run(tmp_path) / "report.html").read_text()


@pytest.mark.full
def test_forms_of_verdict_are_compared_on_the_same_pairs(tmp_path: Path) -> None:
    """The shipped GenRM writes its verdict in the schema's form by itself, so holding it to that changes nothing."""
    done = audit(tmp_path, "audit.pairs=12", "audit.repeats=0", "audit.compare_verdicts=[text,schema]")
    assert done.code == 0, done.stderr
    run = only_run(tmp_path)
    forms = json.loads((run / "results" / "eval_results.json").read_text())["details"]["forms"]
    assert list(forms) == ["text", "schema"]
    assert forms["text"] == forms["schema"] | {
        name: forms["text"][name] for name in ("tokens_written_each", "tokens_read_each")
    }
    assert forms["text"]["comparisons"] == 24
    assert forms["text"]["verdicts_share"] == 1.0
    assert forms["text"]["tokens_read_each"] > forms["text"]["tokens_written_each"] >= 8
    assert "Forms of verdict" in (run / "report.html").read_text()
    rows = (run / "samples.jsonl").read_text().splitlines()
    assert len(rows) == len({json.loads(row)["key"] for row in rows}) == 24


def test_a_genrm_gives_no_single_scores(tmp_path: Path) -> None:
    done = audit(tmp_path, "audit.compare_verdicts=[logits]")
    assert done.code == 3
    assert "command line, argument" in done.stderr
    assert "leave `logits` out" in done.stderr
