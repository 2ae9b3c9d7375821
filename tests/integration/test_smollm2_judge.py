"""SmolLM2 as judge: an instruct model of 135M parameters that was never trained to compare answers."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import nemotron
from nemotron.audit.records import Pair
from nemotron.audit.sample import draw
from nemotron.config.schema.judge import (
    GenrmCompareConfig,
    GenrmModelConfig,
    GenrmResponsesCreateParams,
    JudgeConfig,
)
from nemotron.config.schema.reward_audit import LabelledPairs
from nemotron.judge.form import VerdictForm, form_of
from nemotron.judge.groups import JudgeSettings
from nemotron.judge.local import LocalJudge
from nemotron.judge.pool import JudgePool
from nemotron.judge.types import GroupRequest, GroupResult, JudgedResponse, Message

pytestmark = [pytest.mark.integration, pytest.mark.timeout(1200)]

TINY = Path(nemotron.__file__).parent / "assets" / "tiny_world"
PAIRS = 10


@pytest.fixture(scope="module")
def pairs() -> list[Pair]:
    return draw(LabelledPairs(data_path=str(TINY / "data" / "pairs_heldout.jsonl")), PAIRS, seed=42).pairs


def judged(model: Path, pairs: list[Pair], verdict: VerdictForm) -> list[GroupResult]:
    config = JudgeConfig(verdict=verdict, request_timeout_s=600)
    form = form_of(GenrmModelConfig(model=str(model)), config)
    assert form.prompt == "instruct", "its chat template knows no `response_1`"
    compare = GenrmCompareConfig(
        use_principle=True, genrm_responses_create_params=GenrmResponsesCreateParams(max_output_tokens=64)
    )
    requests = [
        GroupRequest(
            [Message(role=m["role"], content=m["content"]) for m in pair.messages],
            [JudgedResponse("", text) for text in (pair.chosen, pair.rejected)],
            pair.principle,
        )
        for pair in pairs
    ]
    with (
        LocalJudge(model, config) as judge,
        JudgePool(judge.endpoint, JudgeSettings(compare, config, form=form)) as pool,
    ):
        futures = [pool.submit(request, seed=seed) for seed, request in enumerate(requests)]
        return [future.result(1200) for future in futures]


@pytest.mark.parametrize("verdict", ["logits", "schema"])
def test_every_comparison_has_a_verdict(smollm2: Path, pairs: list[Pair], verdict: VerdictForm) -> None:
    results = judged(smollm2, pairs, verdict)
    comparisons = [comparison for result in results for comparison in result.comparisons]
    assert len(comparisons) == 2 * PAIRS
    assert [c.failure for c in comparisons if c.verdict is None] == []
    assert sum(c.unparseable for c in comparisons) == 0


def test_expected_scores_have_the_same_bits_whatever_is_asked_beside_them(smollm2: Path, pairs: list[Pair]) -> None:
    """Float32 weights and a continuous score: nothing but the order of sums could hide a difference."""
    together = judged(smollm2, pairs[:4], "logits")
    alone = judged(smollm2, pairs[:1], "logits")
    assert [c.verdict for c in together[0].comparisons] == [c.verdict for c in alone[0].comparisons]
    assert len({json.dumps([r for r in result.rewards]) for result in together}) > 1
