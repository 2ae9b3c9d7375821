"""Answers that arrive apart are judged once, together, and everybody hears of it."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import pytest

from nemotron.gym.gathering import Gathering, IncompleteGroup, Place, SlotTaken


class Judge:
    """Remembers what it was given; takes its time."""

    def __init__(self, *, fails: bool = False) -> None:
        self.given: list[list[str]] = []
        self.fails = fails

    async def __call__(self, members: Sequence[str]) -> str:
        self.given.append(list(members))
        await asyncio.sleep(0.01)
        if self.fails:
            raise RuntimeError("no verdict")
        return "+".join(members)


def gathering(judge: Judge, size: int = 3, patience_s: float = 30.0) -> Gathering[str, str]:
    return Gathering(size, judge, patience_s=patience_s)


def test_nothing_is_judged_before_a_group_is_whole() -> None:
    judge = Judge()

    async def run() -> list[tuple[int, str]]:
        groups = gathering(judge)
        tasks = [asyncio.create_task(groups.join(Place("p"), text)) for text in "ab"]
        await asyncio.sleep(0.05)
        assert (judge.given, groups.waiting) == ([], 2)
        tasks.append(asyncio.create_task(groups.join(Place("p"), "c")))
        return await asyncio.gather(*tasks)

    assert asyncio.run(run()) == [(0, "a+b+c"), (1, "a+b+c"), (2, "a+b+c")]
    assert judge.given == [["a", "b", "c"]]


def test_equal_prompts_make_one_group_after_the_other() -> None:
    """Two rows of one text in a step: neither is a member too many, nor do they wait for a third."""
    judge = Judge()

    async def run() -> list[tuple[int, str]]:
        groups = gathering(judge)
        return await asyncio.gather(*(groups.join(Place("p"), text) for text in "abcdef"))

    found = asyncio.run(run())
    assert [position for position, _ in found] == [0, 1, 2, 0, 1, 2]
    assert judge.given == [["a", "b", "c"], ["d", "e", "f"]]


def test_numbers_decide_the_order_and_not_the_arrival() -> None:
    judge = Judge()

    async def run() -> list[tuple[int, str]]:
        groups = gathering(judge)
        return await asyncio.gather(
            *(groups.join(Place("p", number), text) for number, text in ((2, "c"), (0, "a"), (1, "b")))
        )

    assert asyncio.run(run()) == [(2, "a+b+c"), (0, "a+b+c"), (1, "a+b+c")]


def test_who_hangs_up_leaves_no_answer_behind() -> None:
    """In NeMo-Gym 0.4.0 it stays, and the group has a member too many."""
    judge = Judge()

    async def run() -> list[tuple[int, str]]:
        groups = gathering(judge)
        gone = asyncio.create_task(groups.join(Place("p"), "gone"))
        await asyncio.sleep(0)
        gone.cancel()
        await asyncio.gather(gone, return_exceptions=True)
        assert groups.waiting == 0
        return await asyncio.gather(*(groups.join(Place("p"), text) for text in "abc"))

    assert asyncio.run(run())[0] == (0, "a+b+c")


def test_a_group_that_is_never_whole_ends() -> None:
    async def run() -> list[BaseException | tuple[int, str]]:
        groups = gathering(Judge(), patience_s=0.05)
        found = await asyncio.gather(*(groups.join(Place("p"), text) for text in "ab"), return_exceptions=True)
        assert groups.waiting == 0
        return found

    found = asyncio.run(run())
    assert [type(error) for error in found] == [IncompleteGroup] * 2
    assert str(found[0]) == "2 of 3 answers came within 0.05 s"


def test_a_named_place_is_one_answers_alone() -> None:
    judge = Judge()

    async def run() -> None:
        groups = gathering(judge)
        places = [Place("g", number, named=True) for number in range(3)]
        waiting = [asyncio.create_task(groups.join(places[0], "a")) for _ in range(2)]
        await asyncio.sleep(0)
        with pytest.raises(SlotTaken):
            await groups.join(places[0], "another")
        rest = [groups.join(place, text) for place, text in zip(places[1:], "bc", strict=True)]
        found = await asyncio.gather(*waiting, *rest)
        assert [position for position, _ in found] == [0, 0, 1, 2]
        # An answer that got lost on its way is asked for again.
        assert await groups.join(places[1], "b") == (1, "a+b+c")
        with pytest.raises(ValueError, match="no answer 3 in a group of 3"):
            await groups.join(Place("g", 3, named=True), "d")

    asyncio.run(run())
    assert judge.given == [["a", "b", "c"]]


def test_what_fails_is_told_to_all_and_may_be_tried_again() -> None:
    judge = Judge(fails=True)

    async def run() -> None:
        groups = gathering(judge)
        places = [Place("g", number, named=True) for number in range(3)]
        found = await asyncio.gather(
            *(groups.join(place, text) for place, text in zip(places, "abc", strict=True)), return_exceptions=True
        )
        assert [str(error) for error in found] == ["no verdict"] * 3
        judge.fails = False
        assert await asyncio.gather(*(groups.join(place, text) for place, text in zip(places, "abc", strict=True)))

    asyncio.run(run())
    assert judge.given == [["a", "b", "c"]] * 2
