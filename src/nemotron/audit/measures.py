"""The figures of an audit: agreement, position, length, consistency, missing, saturation, calibration.

Every function is pure: audited pairs in, plain values out, None for what these pairs cannot say. A tie between two
answers counts as half right, as a coin would be.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from statistics import fmean, pstdev

from nemotron.audit.intervals import (
    Estimate,
    balance,
    cluster_means,
    cosine,
    difference,
    entropy,
    mean_of,
    share,
)
from nemotron.audit.records import Audited, Judgement

LENGTH_BINS = 5
MARGIN_BINS = 5
CONFIDENCE_BINS = 10
SCORE_BINS = 20
LOWEST_SCORE, HIGHEST_SCORE = 1.0, 5.0
"""The scale that the judge is told to use."""
CERTAIN = 0.99
"""A reward model that is this sure of a pair is called saturated there."""


@dataclass(frozen=True, slots=True)
class Agreement:
    """How often the reward prefers the answer that the label prefers."""

    all: Estimate | None
    """Over pairs with a reward; ties count half. The interval knows that pairs of one prompt belong together."""
    verdicts: Estimate | None
    """Over single verdicts, before aggregation, bonuses and length terms; the interval goes by pair."""
    tie_share: float | None


def agreement(rows: Sequence[Audited]) -> Agreement:
    """Agreement with the labels."""
    margins = [(row.margin, row) for row in rows if row.margin is not None]
    single = [(j.chosen_preferred, row) for row in rows for j in _asked(row) if j.chosen_preferred is not None]
    return Agreement(
        all=share([_right(margin) for margin, _ in margins], [row.pair.prompt_key for _, row in margins]),
        verdicts=share([_right(p) for p, _ in single], [row.pair.index for _, row in single]),
        tie_share=fmean(margin == 0 for margin, _ in margins) if margins else None,
    )


@dataclass(frozen=True, slots=True)
class Position:
    """What the place of an answer does to the verdict."""

    bias: Estimate | None
    """Share of verdicts for the first answer minus share for the second: 0 without bias, 1 when the first always wins,
    -1 when the second does."""
    score_advantage: Estimate | None
    """Mean score of the first answer minus that of the second."""
    flip_share: Estimate | None
    """Pairs whose winner changes with the order, of those judged in both; None where each was asked in one order."""
    flips_to_first: float | None
    """Share of the flips that go to the first place."""
    table: dict[str, dict[str, int]]
    """``chosen_first`` and ``rejected_first`` -> how many verdicts went to ``chosen``, ``tie``, ``rejected``."""


def position(rows: Sequence[Audited]) -> Position:
    """Position bias. Both orders of a pair are averaged first, so what the answers say cancels out."""
    signs, advantages, clusters = [], [], []
    flips: list[float] = []
    flip_clusters, to_first = [], []
    table = {order: {"chosen": 0, "tie": 0, "rejected": 0} for order in ("chosen_first", "rejected_first")}
    for row in rows:
        for judgement in _asked(row):
            first = judgement.first_preferred
            if first is None or judgement.verdict is None:
                continue
            chosen = first if judgement.chosen_first else -first
            order = table["chosen_first" if judgement.chosen_first else "rejected_first"]
            order["chosen" if chosen > 0 else "rejected" if chosen < 0 else "tie"] += 1
        for group in _per_round(row):
            signs.append(fmean(_sign(preference) for _, preference, _ in group))
            advantages.append(fmean(scores for _, _, scores in group))
            clusters.append(row.pair.index)
            if len({order for order, _, _ in group}) == 2:
                (_, one, _), (_, other, _) = group
                flipped = _sign(one) * _sign(other) > 0
                flips.append(float(flipped))
                flip_clusters.append(row.pair.index)
                to_first += [one > 0] if flipped else []
    return Position(
        bias=balance(cluster_means(signs, clusters)),
        score_advantage=mean_of(cluster_means(advantages, clusters)),
        flip_share=share(flips, flip_clusters),
        flips_to_first=fmean(to_first) if to_first else None,
        table=table,
    )


@dataclass(frozen=True, slots=True)
class LengthBin:
    """Pairs of a similar difference in length."""

    low: int
    high: int
    """Characters between the shortest and the longest difference in the bin."""
    n: int
    longer_preferred: float
    """Share of the pairs in which the reward prefers the longer answer; ties count half."""
    longer_chosen: float
    """Share in which the label does."""


@dataclass(frozen=True, slots=True)
class Length:
    """What the length of an answer does to the reward."""

    bias: Estimate | None
    """Agreement where the chosen answer is longer minus agreement where it is shorter: 0 without bias, 1 when the
    longer answer always wins, -1 when the shorter one does."""
    when_longer: Estimate | None
    """Agreement on pairs whose chosen answer is the longer one."""
    when_shorter: Estimate | None
    longer_preferred: Estimate | None
    """Share of pairs in which the reward prefers the longer answer."""
    longer_chosen: float | None
    """Share of the same pairs in which the label does."""
    correlation: float | None
    """Correlation of reward difference and length difference within pairs."""
    label_correlation: float | None
    """The same for the labels (1 for chosen, -1 for rejected)."""
    bins: list[LengthBin]


def length(rows: Sequence[Audited]) -> Length:
    """Length bias. Labels may well prefer longer answers, so it is measured beside them."""
    known = [(row.margin, row.longer_by, row.pair.prompt_key) for row in rows if row.margin is not None]
    unequal = [(margin, delta, key) for margin, delta, key in known if delta]
    longer = [(_right(margin), key) for margin, delta, key in unequal if delta > 0]
    shorter = [(_right(margin), key) for margin, delta, key in unequal if delta < 0]
    wins = [_right(margin if delta > 0 else -margin) for margin, delta, _ in unequal]
    when_longer = share([right for right, _ in longer], [key for _, key in longer])
    when_shorter = share([right for right, _ in shorter], [key for _, key in shorter])
    margins, deltas = [margin for margin, _, _ in known], [float(delta) for _, delta, _ in known]
    return Length(
        bias=difference(when_longer, when_shorter),
        when_longer=when_longer,
        when_shorter=when_shorter,
        longer_preferred=share(wins, [key for _, _, key in unequal]),
        longer_chosen=len(longer) / len(unequal) if unequal else None,
        correlation=cosine(margins, deltas),
        label_correlation=cosine([1.0] * len(deltas), deltas),
        bins=_length_bins(
            sorted((abs(delta), win, delta > 0) for (_, delta, _), win in zip(unequal, wins, strict=True))
        ),
    )


@dataclass(frozen=True, slots=True)
class Consistency:
    """Whether the judge says the same when it is asked the same again."""

    same_winner: Estimate | None
    """Share of two answers to one question that name the same winner (or both a tie); the interval goes by pair."""
    score_spread: float | None
    """Mean standard deviation of the score difference over answers to the same question."""
    questions: int


def consistency(rows: Sequence[Audited]) -> Consistency:
    """Self-consistency over the judgements with purpose ``repeat``."""
    same, clusters, spreads = [], [], []
    for row in rows:
        for order in (True, False):
            told = [
                j
                for j in row.judgements
                if j.purpose == "repeat" and j.chosen_first is order and j.first_preferred is not None
            ]
            if len(told) < 2:
                continue
            signs = [_sign(j.first_preferred or 0.0) for j in told]
            same.append(fmean(one == other for one, other in combinations(signs, 2)))
            clusters.append(row.pair.index)
            spreads.append(pstdev([_score_difference(j) for j in told]))
    return Consistency(share(same, clusters), fmean(spreads) if spreads else None, len(same))


@dataclass(frozen=True, slots=True)
class Missing:
    """What the judge did not say."""

    share: float
    """Comparisons without a verdict after all retries; for a reward model, pairs without a finite reward."""
    unparseable_share: float | None
    """Answers that held no verdict, of all answers and failed requests."""
    comparisons: int
    requests: int
    tokens_read: int
    """Of all questions, as the endpoint counts them; 0 where it does not say."""
    tokens_written: int
    failures: dict[str, int]
    """Why verdicts are missing, the most frequent reasons first."""


def missing(rows: Sequence[Audited]) -> Missing:
    """Parse failures and missing verdicts, repeats included."""
    asked = [judgement for row in rows for judgement in row.judgements]
    if not asked:
        lost = sum(row.margin is None for row in rows)
        return Missing(lost / max(len(rows), 1), None, len(rows), 0, 0, 0, {})
    failures = Counter((j.failure or "no reason given")[:80] for j in asked if j.verdict is None)
    requests = sum(j.requests for j in asked)
    return Missing(
        share=sum(j.verdict is None for j in asked) / len(asked),
        unparseable_share=sum(j.unparseable for j in asked) / requests if requests else None,
        comparisons=len(asked),
        requests=requests,
        tokens_read=sum(j.tokens_read for j in asked),
        tokens_written=sum(j.tokens_written for j in asked),
        failures=dict(failures.most_common(5)),
    )


@dataclass(frozen=True, slots=True)
class Saturation:
    """Whether the scores use their scale."""

    extreme_share: float | None
    """Judge: scores at or beyond 1 or 5. Reward model: pairs of which it is at least 99% sure."""
    off_scale_share: float | None
    """Judge: scores outside of 1 to 5. None for a reward model, whose scale is open."""
    commonest_share: float | None
    """Share of the most frequent score (of 20 equally wide bins for a reward model)."""
    entropy_bits: float | None
    """Entropy of the score distribution; of the same bins for a reward model."""
    tie_share: float | None
    """Judge: verdicts with equal scores. Reward model: pairs with equal rewards."""
    histogram: list[tuple[float, int]]
    """(score or middle of the bin, count)."""


def saturation(rows: Sequence[Audited]) -> Saturation:
    """How the scores are spread."""
    verdicts = [j.verdict for row in rows for j in _asked(row) if j.verdict is not None]
    if verdicts:
        scores = [score for v in verdicts for score in (v.score_1, v.score_2)]
        counts = Counter(scores)
        return Saturation(
            extreme_share=fmean(not LOWEST_SCORE < score < HIGHEST_SCORE for score in scores),
            off_scale_share=fmean(not LOWEST_SCORE <= score <= HIGHEST_SCORE for score in scores),
            commonest_share=max(counts.values()) / len(scores),
            entropy_bits=entropy(list(counts.values())),
            tie_share=fmean(v.score_1 == v.score_2 for v in verdicts),
            histogram=sorted(counts.items()),
        )
    known = [row for row in rows if row.margin is not None and not row.judgements]
    if not known:
        return Saturation(None, None, None, None, None, [])
    rewards = [reward for row in known for reward in (row.reward_chosen, row.reward_rejected) if reward is not None]
    histogram = _histogram(rewards)
    counted = [count for _, count in histogram]
    return Saturation(
        extreme_share=fmean(_confidence(row.margin or 0.0) >= CERTAIN for row in known),
        off_scale_share=None,
        commonest_share=max(counted) / sum(counted),
        entropy_bits=entropy(counted),
        tie_share=fmean(row.margin == 0 for row in known),
        histogram=histogram,
    )


@dataclass(frozen=True, slots=True)
class CalibrationBin:
    """Pairs of which the reward is about equally sure."""

    confidence: float
    """Reward model: mean probability of its own choice. Judge: mean absolute reward difference."""
    agreement: Estimate
    n: int


@dataclass(frozen=True, slots=True)
class Calibration:
    """Whether the reward is right more often where it is surer."""

    kind: str
    """``probability``: the confidence is sigmoid of the reward difference. ``margin``: the difference itself."""
    bins: list[CalibrationBin]
    expected_error: float | None
    """Expected calibration error: mean distance of confidence and agreement, weighted by pairs; None for a judge,
    whose scores are no probabilities."""
    brier: float | None
    log_loss: float | None
    """Mean negative log-likelihood of the labels, ``-log sigmoid(r_chosen - r_rejected)``: the Bradley-Terry loss."""


def calibration(rows: Sequence[Audited]) -> Calibration:
    """Reliability of a reward model's probabilities, or agreement by the size of a judge's reward difference."""
    known = [row for row in rows if row.margin is not None]
    margins = [row.margin or 0.0 for row in known]
    keys = [row.pair.prompt_key for row in known]
    if any(row.judgements for row in rows):
        return Calibration("margin", _margin_bins(margins, keys), None, None, None)
    # A confidence of exactly 1 belongs to the last bin.
    bin_of = [min(int((_confidence(m) - 0.5) * 2 * CONFIDENCE_BINS), CONFIDENCE_BINS - 1) for m in margins]
    bins = []
    for wanted in range(CONFIDENCE_BINS):
        chosen = [i for i, b in enumerate(bin_of) if b == wanted]
        right = share([_right(margins[i]) for i in chosen], [keys[i] for i in chosen])
        if right is not None:
            bins.append(CalibrationBin(fmean(_confidence(margins[i]) for i in chosen), right, len(chosen)))
    total = sum(b.n for b in bins)
    return Calibration(
        kind="probability",
        bins=bins,
        expected_error=sum(b.n * abs(b.agreement.value - b.confidence) for b in bins) / total if total else None,
        brier=fmean((1 - _sigmoid(m)) ** 2 for m in margins) if margins else None,
        log_loss=fmean(_softplus(-m) for m in margins) if margins else None,
    )


def worst(rows: Sequence[Audited], count: int) -> list[Audited]:
    """The pairs that contradict their label most, largest reward difference first."""
    against = [row for row in rows if row.margin is not None and row.margin < 0]
    return sorted(against, key=lambda row: (row.margin or 0.0, row.pair.index))[:count]


def _asked(row: Audited) -> list[Judgement]:
    return [judgement for judgement in row.judgements if judgement.purpose == "reward"]


def _per_round(row: Audited) -> list[list[tuple[bool, float, float]]]:
    """For each round all orders that got a verdict, when none that was asked is missing:
    (chosen first?, preference for the first, score difference)."""
    rounds: dict[int, list[Judgement]] = {}
    for judgement in _asked(row):
        rounds.setdefault(judgement.round, []).append(judgement)
    return [
        [(j.chosen_first, j.first_preferred or 0.0, _score_difference(j)) for j in group]
        for group in rounds.values()
        if all(j.verdict is not None for j in group)
    ]


def _score_difference(judgement: Judgement) -> float:
    verdict = judgement.verdict
    return 0.0 if verdict is None else verdict.score_1 - verdict.score_2


def _sign(value: float) -> int:
    return (value > 0) - (value < 0)


def _right(margin: float) -> float:
    return 0.5 if margin == 0 else float(margin > 0)


def _length_bins(pairs: Sequence[tuple[int, float, bool]]) -> list[LengthBin]:
    """Bins of about equal size over pairs sorted by length difference; equal differences stay together."""
    bins = []
    for group in _cut([delta for delta, _, _ in pairs], LENGTH_BINS):
        part = [pairs[i] for i in group]
        bins.append(
            LengthBin(
                low=part[0][0],
                high=part[-1][0],
                n=len(part),
                longer_preferred=fmean(win for _, win, _ in part),
                longer_chosen=fmean(chosen for _, _, chosen in part),
            )
        )
    return bins


def _margin_bins(margins: Sequence[float], keys: Sequence[str]) -> list[CalibrationBin]:
    order = sorted(range(len(margins)), key=lambda i: abs(margins[i]))
    bins = []
    for group in _cut([abs(margins[i]) for i in order], MARGIN_BINS):
        part = [order[i] for i in group]
        right = share([_right(margins[i]) for i in part], [keys[i] for i in part])
        if right is not None:
            bins.append(CalibrationBin(fmean(abs(margins[i]) for i in part), right, len(part)))
    return bins


def _cut(values: Sequence[float], bins: int) -> list[range]:
    """Index ranges of about equal size over sorted values; equal values are never parted."""
    found: list[range] = []
    start = 0
    while start < len(values):
        size = -(-(len(values) - start) // max(bins - len(found), 1))
        end = min(start + size, len(values))
        while end < len(values) and values[end] == values[end - 1]:
            end += 1
        found.append(range(start, end))
        start = end
    return found


def _histogram(values: Sequence[float]) -> list[tuple[float, int]]:
    low, high = min(values), max(values)
    width = (high - low) / SCORE_BINS or 1.0
    counts = Counter(min(int((value - low) / width), SCORE_BINS - 1) for value in values)
    return [(low + (k + 0.5) * width, counts[k]) for k in range(SCORE_BINS)]


def _confidence(margin: float) -> float:
    return _sigmoid(abs(margin))


def _sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x)) if x >= 0 else 1 - 1 / (1 + math.exp(x))


def _softplus(x: float) -> float:
    return max(x, 0.0) + math.log1p(math.exp(-abs(x)))
