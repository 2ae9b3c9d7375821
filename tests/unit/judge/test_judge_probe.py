"""A judge that is not fit to train with is found out before the run starts."""

from __future__ import annotations

import json
from typing import Any

import pytest

from nemotron.config.schema.judge import GenrmCompareConfig, JudgeConfig, JudgeProbeConfig
from nemotron.errors import JudgeError
from nemotron.judge.endpoint import Endpoint
from nemotron.judge.groups import JudgeSettings
from nemotron.judge.pool import JudgePool
from nemotron.judge.probe import Probed, probe_judge
from nemotron.judge.probe_pairs import SHIPPED, probe_pairs
from tests.unit.judge.scripted_judge import Play, Scripted, says, verdict

ROWS = [json.loads(line) for line in SHIPPED.read_text().splitlines()]
LABEL = {row["chosen"]: row["kind"] for row in ROWS}


def shown(body: dict[str, Any]) -> tuple[str, str]:
    said = {message["role"]: message["content"] for message in body["messages"]}
    return said["response_1"], said["response_2"]


async def knows(_: int, body: dict[str, Any]) -> Any:
    return verdict(5, 1, 1) if shown(body)[0] in LABEL else verdict(1, 5, 6)


async def likes_the_first(_: int, body: dict[str, Any]) -> Any:
    return verdict(4, 2, 1)


async def likes_length(_: int, body: dict[str, Any]) -> Any:
    first, second = shown(body)
    return verdict(5, 1, 1) if len(first) > len(second) else verdict(1, 5, 6)


async def is_even(_: int, body: dict[str, Any]) -> Any:
    return verdict(3, 3, 3.5)


async def rambles(_: int, body: dict[str, Any]) -> Any:
    return says("Both have their merits.")


def probed(play: Play) -> Probed:
    compare = GenrmCompareConfig(genrm_parse_retry_sleep_s=0, genrm_parse_retries=1, num_judges_per_comparison=3)
    settings = JudgeSettings(compare, JudgeConfig(max_retries=0))
    with Scripted(play) as judge, JudgePool(Endpoint(judge.base_url, "judge"), settings) as pool:
        return probe_judge(pool, settings, probe_pairs(JudgeProbeConfig()))


def test_the_shipped_pairs_are_of_every_kind() -> None:
    assert {row["kind"] for row in ROWS} == {"good", "boundary", "adversarial"}
    assert len(LABEL) == len(ROWS)


@pytest.mark.parametrize(
    ("play", "crossed"),
    [
        (knows, []),
        (likes_the_first, ["min_agreement", "min_consistency"]),
        (likes_length, ["min_agreement"]),
        (is_even, ["min_agreement"]),
        (rambles, ["min_verdicts", "min_agreement", "min_consistency"]),
    ],
)
def test_what_a_judge_lacks_is_named(play: Play, crossed: list[str]) -> None:
    limits = JudgeProbeConfig(min_agreement=0.9)
    found = probed(play)
    if not crossed:
        found.hold_to(limits)
        assert (found.verdicts, found.agreement, found.consistency) == (1.0, 1.0, 1.0)
        return
    with pytest.raises(JudgeError) as refused:
        found.hold_to(limits)
    assert [
        name for name in ("min_verdicts", "min_agreement", "min_consistency") if name in refused.value.message
    ] == crossed
    assert "--no-probe-judge" in (refused.value.hint or "")
    assert ("no verdict in 'Both have their merits.'" in refused.value.message) is (play is rambles)
    found.hold_to(JudgeProbeConfig(min_verdicts=0, min_agreement=0, min_consistency=0))


def test_figures_that_are_not_known_are_not_kept() -> None:
    assert probed(rambles).metrics == {"judge_probe/verdicts": 0.0}
