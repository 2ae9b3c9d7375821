"""Reward functions as a resources server: the scores of the embedded engine, and what is missing is no score."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from nemotron.config.schema.rewards import RewardConfig
from nemotron.gym.functions import RewardsServer
from nemotron.gym.protocol import MARK, response_object
from nemotron.rewards import build_rewards
from tests.unit.gym.serving import Post, serving

CONFIG = RewardConfig.model_validate(
    {
        "functions": [
            {"name": "math", "extract": "boxed", "weight": 2.0},
            {"name": "format", "tags": ["think"], "weight": 0.5},
            {"name": "regex", "pattern_field": "pattern", "weight": -1.0},
        ],
        "workers": 1,
    }
)
ROW = {"expected_answer": "4", "pattern": "sorry"}
TEXTS = [
    *(
        r"\boxed{4}",
        "4",
        r"<think>two and two</think>\boxed{4}",
        r"sorry, \boxed{4}",
        r"<think>hm</think>\boxed{5}",
        "",
    ),
    r"<think>sorry</think>\boxed{4}",
]


def body(text: str, number: int = 1, *, ended: bool = True, **row: Any) -> dict[str, Any]:
    mark = {MARK: {"id": "train/a:1", "group": number}}
    params = {"input": [{"role": "user", "content": "2+2?"}]}
    response = response_object(text, ended=ended, response_id="1")
    return {"responses_create_params": params, "response": response, **ROW, **mark, **row}


def run(test: Callable[[Post], Awaitable[None]], config: RewardConfig = CONFIG) -> None:
    async def main() -> None:
        server = RewardsServer(config)
        try:
            async with serving(server.application()) as post:
                await asyncio.wait_for(test(post), 60)
        finally:
            server.close()

    asyncio.run(main())


def test_rewards_are_those_of_the_embedded_engine() -> None:
    with build_rewards(CONFIG) as scorer:
        wanted = scorer.score_many([(ROW, text, True) for text in TEXTS])

    async def test(post: Post) -> None:
        for text, score in zip(TEXTS, wanted, strict=True):
            status, said = await post("/verify", body(text))
            assert (status, said["reward"], said["mask_sample"]) == (200, score.reward, False), text
            assert said["component_math"] == score.components["math"]
            assert said["missing_share"] == 0.0

    run(test)
    assert len({score.reward for score in wanted}) > 3


def test_a_missing_reward_is_the_mean_of_the_others() -> None:
    """A pattern that is none cannot be asked for: no reward, and no advantage."""

    async def test(post: Post) -> None:
        texts = [r"\boxed{4}", r"\boxed{5}", r"\boxed{4}"]
        asked = [post("/verify", body(text, 4)) for text in texts]
        asked.append(post("/verify", body(r"\boxed{4}", 4, pattern="(")))
        found = [said for _, said in await asyncio.gather(*asked)]
        assert [said["reward"] for said in found] == [2.0, 0.0, 2.0, pytest.approx(4 / 3)]
        assert [said["mask_sample"] for said in found] == [False, False, False, True]
        assert found[3]["missing_share"] == 1.0
        assert "regex" in found[3]["failure_reason"]
        # Alone, as in validation, nobody is waited for.
        _, alone = await post("/verify", body(r"\boxed{4}", 1, pattern="("))
        assert (alone["reward"], alone["mask_sample"]) == (0.0, True)

    run(test)


def test_a_row_that_does_not_say_which_it_is_is_refused() -> None:
    async def test(post: Post) -> None:
        status, said = await post("/verify", {**body("4"), MARK: None})
        assert (status, "does not say which row it is" in said["detail"]) == (422, True)

    run(test)
