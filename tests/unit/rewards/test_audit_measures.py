"""Every figure of an audit against values worked out by hand, and judges with one fault each."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest

from nemotron.audit import measures as m
from nemotron.audit.intervals import wilson
from nemotron.audit.records import Audited, Judgement, from_row, to_row
from nemotron.judge.types import Verdict
from tests.unit.rewards.audit_pairs import judged, pair, scored

PAIRS = [pair(k, chosen="good" + "!" * (3 * (k % 2)), rejected="bad" + "?" * (2 * (k % 3))) for k in range(60)]


def right(first: str, second: str) -> tuple[float, float, float]:
    return (5, 2, 1) if first.startswith("good") else (2, 5, 6)


def likes_the_first(first: str, second: str) -> tuple[float, float, float]:
    return (4, 2, 2)


def likes_length(first: str, second: str) -> tuple[float, float, float]:
    return (3, 3, 3.5) if len(first) == len(second) else (4, 2, 2) if len(first) > len(second) else (2, 4, 5)


def test_a_good_judge() -> None:
    rows = judged(PAIRS, right)
    agreement, position, length = m.agreement(rows), m.position(rows), m.length(rows)
    assert agreement.all is not None
    assert (agreement.all.value, agreement.all.n, agreement.tie_share) == (1, 60, 0)
    assert agreement.all.low == pytest.approx(wilson(1.0, 60)[0])
    assert agreement.verdicts is not None
    assert agreement.verdicts.n == 120
    assert agreement.verdicts.low == pytest.approx(wilson(1.0, 60)[0]), "both verdicts of a pair count once"
    assert position.bias is not None
    assert position.flip_share is not None
    assert (position.bias.value, position.flip_share.value, position.flips_to_first) == (0, 0, None)
    assert position.table["rejected_first"] == {"chosen": 60, "tie": 0, "rejected": 0}
    assert length.bias is not None
    assert length.bias.value == 0
    assert length.longer_preferred is not None
    assert length.longer_preferred.value == length.longer_chosen


def test_a_judge_that_likes_the_first_answer() -> None:
    position = m.position(judged(PAIRS, likes_the_first))
    assert position.bias is not None
    assert position.flip_share is not None
    assert position.score_advantage is not None
    assert (position.bias.value, position.flip_share.value, position.flips_to_first) == (1, 1, 1)
    assert position.bias.low > 0.85
    assert (position.score_advantage.value, position.score_advantage.low) == (2, 2)
    agreement = m.agreement(judged(PAIRS, likes_the_first)).all
    assert agreement is not None
    assert agreement.value == 0.5, "verdicts that cancel are ties, and ties count half"
    one_order = m.position(judged(PAIRS, likes_the_first, both=False))
    assert one_order.bias is not None
    assert (one_order.bias.value, one_order.flip_share) == (1, None)
    fair = m.position(judged(PAIRS, right, both=False)).bias
    assert fair is not None
    assert fair.low < 0 < fair.high


def test_position_of_a_round_with_a_missing_verdict_is_not_counted() -> None:
    [row] = judged(PAIRS[:1], likes_the_first)
    lost = replace(row, judgements=(row.judgements[0], replace(row.judgements[1], verdict=None, failure="gone")))
    assert m.position([lost]).bias is None
    assert m.position([lost]).table["chosen_first"]["chosen"] == 1


def test_a_judge_that_likes_length() -> None:
    length = m.length(judged(PAIRS, likes_length))
    assert length.bias is not None
    assert length.longer_preferred is not None
    assert length.when_longer is not None
    assert length.when_shorter is not None
    assert (length.bias.value, length.longer_preferred.value) == (1, 1)
    assert (length.when_longer.value, length.when_shorter.value) == (1, 0)
    assert length.bias.low > 0.6
    assert length.correlation is not None
    assert length.label_correlation is not None
    assert length.correlation > 0.8 > length.label_correlation
    assert sum(b.n for b in length.bins) == length.longer_preferred.n
    assert [b.low for b in length.bins] == sorted(b.low for b in length.bins)
    assert all(b.longer_preferred == 1 for b in length.bins)


def test_length_by_hand() -> None:
    pairs = [pair(0, "aaaa", "b"), pair(1, "a", "bb"), pair(2, "aa", "b"), pair(3, " a ", "b")]
    length = m.length(scored(pairs, [1.0, -1.0, -2.0, 5.0]))
    # Signed differences 3, -1, 1, 0: the pair of equal length says nothing about preference.
    assert length.when_longer is not None
    assert length.when_shorter is not None
    assert length.bias is not None
    assert (length.when_longer.value, length.when_longer.n) == (0.5, 2)
    assert (length.when_shorter.value, length.when_shorter.n) == (0, 1)
    assert length.bias.value == 0.5
    assert length.longer_preferred is not None
    assert length.longer_preferred.value == pytest.approx(2 / 3)
    assert length.longer_chosen == pytest.approx(2 / 3)
    assert length.correlation == pytest.approx((3 + 1 - 2) / math.sqrt((1 + 1 + 4 + 25) * (9 + 1 + 1)))
    assert length.label_correlation == pytest.approx(3 / math.sqrt(4 * 11))


def test_agreement_of_pairs_that_share_a_prompt() -> None:
    pairs = [pair(k, prompt=f"prompt {k // 10}") for k in range(60)]
    margins = [1.0 if k // 10 % 2 else -1.0 for k in range(60)]
    found = m.agreement(scored(pairs, margins)).all
    assert found is not None
    assert (found.value, found.n) == (0.5, 60)
    # Six prompts, each right or wrong throughout: n_eff = 60 / (6/5 * 6 * 25 / 3600 / (0.25 / 60)) = 5.
    assert (found.low, found.high) == tuple(pytest.approx(x) for x in wilson(0.5, 5))


def test_consistency() -> None:
    def repeat(chosen_first: bool, *preferences: float) -> tuple[Judgement, ...]:
        return tuple(Judgement(chosen_first, "repeat", k, Verdict(3 + p, 3, 3.5)) for k, p in enumerate(preferences))

    rows = [
        Audited(pair(0), 1.0, 0.0, (*repeat(True, 1, 1, -1), *repeat(False, 2, 2))),
        Audited(pair(1), 1.0, 0.0, repeat(True, 1)),
    ]
    found = m.consistency(rows)
    assert found.same_winner is not None
    # One of three pairs of answers agrees on the first question, the only one on the second.
    assert found.same_winner.value == pytest.approx((1 / 3 + 1) / 2)
    assert found.score_spread == pytest.approx((math.sqrt(8 / 9) + 0) / 2)
    assert found.questions == 2
    assert m.consistency(judged(PAIRS, right)).same_winner is None


def test_missing() -> None:
    ok = Judgement(True, "reward", 0, Verdict(1, 2, 3), requests=3, unparseable=2)
    lost = Judgement(False, "reward", 0, None, requests=4, unparseable=4, failure="no verdict in 'hm'")
    found = m.missing([Audited(pair(0), None, None, (ok, lost)), Audited(pair(1), 1.0, 0.0, (ok, ok))])
    assert (found.share, found.comparisons, found.requests) == (0.25, 4, 13)
    assert found.unparseable_share == pytest.approx(10 / 13)
    assert found.failures == {"no verdict in 'hm'": 1}
    assert m.missing(scored([pair(0), pair(1)], [None, 1.0])).share == 0.5


def test_saturation_of_a_judge() -> None:
    rows = judged([pair(0), pair(1)], right, both=False)
    rows.append(Audited(pair(2), 0.0, 0.0, (Judgement(True, "reward", 0, Verdict(3, 3, 3.5)),)))
    rows.append(Audited(pair(3), 0.0, 0.0, (Judgement(True, "reward", 0, Verdict(9, 2, 1)),)))
    found = m.saturation(rows)
    # Scores 5 2 | 2 5 | 3 3 | 9 2
    assert found.extreme_share == 3 / 8
    assert found.off_scale_share == 1 / 8
    assert found.commonest_share == 3 / 8
    assert found.tie_share == 1 / 4
    assert found.histogram == [(2, 3), (3, 2), (5, 2), (9, 1)]
    assert found.entropy_bits == pytest.approx(-(3 * math.log2(3 / 8) + 4 * math.log2(1 / 4) + math.log2(1 / 8)) / 8)


def test_saturation_of_a_reward_model() -> None:
    found = m.saturation(scored([pair(k) for k in range(4)], [20.0, -10.0, 0.0, 1.0]))
    assert (found.extreme_share, found.tie_share, found.off_scale_share) == (0.5, 0.25, None)
    assert sum(count for _, count in found.histogram) == 8
    assert len(found.histogram) == 20
    assert m.saturation([]).histogram == []


def test_calibration_of_a_reward_model() -> None:
    # sigmoid(ln 3) = 0.75: right three times in four is exactly calibrated, always right is not.
    margin = math.log(3)
    pairs = [pair(k) for k in range(8)]
    exact = m.calibration(scored(pairs, [margin, margin, margin, -margin] * 2))
    assert exact.kind == "probability"
    [only] = exact.bins
    assert (only.confidence, only.agreement.value, only.n) == (pytest.approx(0.75), 0.75, 8)
    assert exact.expected_error == pytest.approx(0, abs=1e-12)
    assert exact.brier == pytest.approx((3 * 0.25**2 + 0.75**2) / 4)
    assert exact.log_loss == pytest.approx(-(3 * math.log(0.75) + math.log(0.25)) / 4)
    timid = m.calibration(scored(pairs, [margin] * 8))
    assert timid.expected_error == pytest.approx(0.25)
    sure = m.calibration(scored(pairs, [800.0] * 8))
    assert (sure.bins[-1].confidence, sure.expected_error, sure.log_loss) == (1, 0, 0)
    assert m.calibration(scored(pairs, [-800.0] * 8)).log_loss == 800
    assert m.calibration([]).bins == []


def test_calibration_of_a_judge_is_agreement_by_margin() -> None:
    def timid(first: str, second: str) -> tuple[float, float, float]:
        return (3, 3, 3) if len(first) % 2 == len(second) % 2 else right(first, second)

    found = m.calibration(judged(PAIRS, timid))
    assert (found.kind, found.expected_error) == ("margin", None)
    assert sum(b.n for b in found.bins) == 60
    sizes = [b.confidence for b in found.bins]
    assert sizes == sorted(sizes)
    assert [b.agreement.value for b in found.bins] == [0.5, 1.0], "equal margins are never parted"


def test_worst_disagreements() -> None:
    rows = scored([pair(k) for k in range(6)], [1.0, -3.0, None, -5.0, -3.0, 0.0])
    assert [row.pair.index for row in m.worst(rows, 3)] == [3, 1, 4]
    assert m.worst(rows, 0) == []


def test_nothing_to_measure() -> None:
    assert m.agreement([]).all is None
    assert m.position([]).bias is None
    assert m.length([]).bias is None
    assert m.length([]).bins == []
    assert m.missing([]).share == 0


def test_rows_survive_the_file() -> None:
    for row in (*judged(PAIRS[:2], right, repeats=1), *scored(PAIRS[:1], [0.5])):
        assert from_row(to_row(row, "key")) == row
