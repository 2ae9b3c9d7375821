"""Rewards that arrive in the background, and what the judge's adapter makes of its results."""

from __future__ import annotations

from concurrent.futures import CancelledError, Future

import pytest

from nemotron.contracts.rewards import GroupRewards, first_failure, missing_share
from nemotron.data.rows import PromptRow
from nemotron.errors import JudgeError
from nemotron.judge.source import JudgeSource, judged_response
from nemotron.judge.types import Comparison, GroupRequest, GroupResult, Verdict
from nemotron.processes.futures import gather, then

ROW = PromptRow("r:1", [{"role": "user", "content": "Hi"}], "Be kind.", {})


def test_then_converts_and_passes_errors_on() -> None:
    good: Future[int] = Future()
    doubled = then(good, lambda value: value * 2)
    good.set_result(4)
    assert doubled.result(1) == 8
    bad: Future[int] = Future()
    failed = then(bad, lambda value: value * 2)
    bad.set_exception(JudgeError("down"))
    with pytest.raises(JudgeError, match="down"):
        failed.result(1)
    dropped: Future[int] = Future()
    ended = then(dropped, lambda value: value * 2)
    dropped.cancel()
    with pytest.raises(CancelledError):
        ended.result(1)


def test_shares_and_reasons() -> None:
    results = [GroupRewards([1.0], [{}], 3, 0), GroupRewards([None], [{}], 1, 1, failure="late")]
    assert missing_share(results) == 0.25
    assert missing_share([]) == 0.0
    assert first_failure(results) == "late"
    assert first_failure(results[:1]) == "no answer"


def test_the_judge_sees_answers_without_reasoning() -> None:
    assert judged_response("<think>well</think> yes") == judged_response("well</think>yes")
    assert judged_response("yes").reasoning == ""


def test_the_judges_result_as_rewards() -> None:
    seen: list[tuple[GroupRequest, int]] = []

    class Scripted:
        def submit(self, request: GroupRequest, *, seed: int) -> Future[GroupResult]:
            seen.append((request, seed))
            future: Future[GroupResult] = Future()
            comparisons = [Comparison(0, 1, 0, Verdict(4, 2, 1), 1), Comparison(1, 0, 0, None, 2, failure="garbage")]
            future.set_result(GroupResult([4.0, None], comparisons))
            return future

    source = JudgeSource(Scripted())
    result = source.submit(ROW, ["a", "b"], [], seed=7).result(1)
    assert (result.rewards, result.asked, result.missing, result.failure) == ([4.0, None], 2, 1, "garbage")
    assert [[v["first"] for v in detail["verdicts"]] for detail in result.details] == [[0], [1]]
    [(request, seed)] = seen
    assert (request.principle, [r.answer for r in request.responses], seed) == ("Be kind.", ["a", "b"], 7)
    assert source.metrics([result])["judge/missing_share"] == 0.5
    assert "50% of the judge's verdicts in step 3" in source.too_many_missing([result], 3, 0.1).message


def test_gather_keeps_order_and_passes_errors_on() -> None:
    parts: list[Future[int]] = [Future(), Future()]
    whole = gather(parts)
    parts[1].set_result(2)
    assert not whole.done()
    parts[0].set_result(1)
    assert whole.result(1) == [1, 2]
    assert gather([]).result(1) == []
    broken: list[Future[int]] = [Future(), Future()]
    failed = gather(broken)
    broken[0].set_exception(JudgeError("down"))
    broken[1].cancel()
    with pytest.raises(JudgeError, match="down"):
        failed.result(1)
