"""Asks the judge about pairs whose better answer is known, before hours are spent on what it says."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from statistics import fmean

from nemotron.config.schema.judge import JudgeProbeConfig
from nemotron.data.rows import PairRow
from nemotron.errors import JudgeError
from nemotron.judge.groups import JudgeSettings
from nemotron.judge.pool import JudgePool
from nemotron.judge.source import group_request
from nemotron.judge.types import GroupRequest, GroupResult, derive_seed

_UNLABELLED = "boundary"
"""Value of a row's `kind` whose answers are equally good: that there is a verdict is all that is asked."""
_SEED = 104_729


@dataclass(frozen=True, slots=True)
class Probed:
    """What the judge made of the pairs."""

    pairs: int
    verdicts: float
    """Share of comparisons with a verdict."""
    agreement: float | None
    """Share of labelled pairs whose better answer is preferred over both orders, a tie counting half."""
    consistency: float | None
    """Share of pairs with both verdicts that have no other winner when the order changes."""
    failure: str | None = None
    """Why most of the comparisons without a verdict have none."""

    @property
    def metrics(self) -> dict[str, float]:
        """For the run's row of step 0."""
        known = {"verdicts": self.verdicts, "agreement": self.agreement, "consistency": self.consistency}
        return {f"judge_probe/{name}": value for name, value in known.items() if value is not None}

    @property
    def told(self) -> str:
        """For people."""
        shares = (("agreement", self.agreement), ("the same winner in both orders", self.consistency))
        rest = [f"{name} unknown" if value is None else f"{name} {value:.0%}" for name, value in shares]
        return f"verdicts {self.verdicts:.0%}, {', '.join(rest)} ({self.pairs} pairs)"

    def hold_to(self, limits: JudgeProbeConfig) -> None:
        """Raises JudgeError when the judge is not fit to train with. What is not known proves nothing."""
        checks = (
            ("min_verdicts", self.verdicts, limits.min_verdicts),
            ("min_agreement", self.agreement, limits.min_agreement),
            ("min_consistency", self.consistency, limits.min_consistency),
        )
        crossed = [
            f"{name.removeprefix('min_')} {'unknown' if value is None else f'{value:.2f}'} is below "
            f"`judge.probe.{name}` {limit:g}"
            for name, value, limit in checks
            if limit > 0 and (value is None or value < limit)
        ]
        if crossed:
            why = f"; why there was no verdict: {self.failure}" if self.failure else ""
            raise JudgeError(
                f"the judge is not fit to train with: {'; '.join(crossed)} ({self.told}){why}",
                hint="audit it with `eval/reward_audit`, which compares the forms of `judge.verdict`, or take another "
                "judge; `--no-probe-judge` starts all the same",
            )


def probe_judge(pool: JudgePool, settings: JudgeSettings, pairs: Sequence[PairRow]) -> Probed:
    """Ask about each pair in both orders, once. Raises JudgeError when the judge refuses or does not answer."""
    change = {"comparison_strategy": "circular", "num_judges_per_comparison": 1}
    compare = settings.compare.model_copy(update=change)
    asked = replace(settings, compare=compare, form=settings.form.without_swaps())
    futures = [
        pool.submit(_request(row), seed=derive_seed(_SEED, index), settings=asked) for index, row in enumerate(pairs)
    ]
    results = [future.result() for future in futures]
    labelled = [result for row, result in zip(pairs, results, strict=True) if row.fields.get("kind") != _UNLABELLED]
    comparisons = [comparison for result in results for comparison in result.comparisons]
    agreement = [_right(sum(preferences)) for result in labelled if (preferences := _preferences(result))]
    both = [found for result in results if len(found := _preferences(result)) == 2]
    failures = Counter(c.failure for c in comparisons if c.verdict is None and c.failure)
    return Probed(
        pairs=len(pairs),
        verdicts=sum(c.verdict is not None for c in comparisons) / max(len(comparisons), 1),
        agreement=fmean(agreement) if agreement else None,
        consistency=fmean(one * other >= 0 for one, other in both) if both else None,
        failure=failures.most_common(1)[0][0] if failures else None,
    )


def _request(row: PairRow) -> GroupRequest:
    principle = row.fields.get("principle")
    said = principle if isinstance(principle, str) and principle.strip() else None
    return group_request(row.messages, [row.chosen, row.rejected], said)


def _preferences(result: GroupResult) -> list[float]:
    """For the chosen answer, of each order that has a verdict."""
    return [c.verdict.preference * (1 if c.first == 0 else -1) for c in result.comparisons if c.verdict is not None]


def _right(margin: float) -> float:
    return 1.0 if margin > 0 else 0.5 if margin == 0 else 0.0
