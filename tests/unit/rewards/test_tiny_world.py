"""The held-out metric of the tiny world reads answers as a person would."""

from __future__ import annotations

import pytest

from nemotron.errors import DataError
from nemotron.rewards import VERIFIERS
from nemotron.rewards.tiny_world import ASPECTS, INTENT_CUES, SLOT_WORDS, score

ORDER = {"world": {"intent": "order", "slots": {"item": "lamp", "city": "Rome"}, "tone": "curt"}}
ROUTE = {"world": {"intent": "route", "slots": {"shop": "bakery", "city": "Oslo"}, "tone": "angry"}}

CASES = [
    # row, answer, ended, aspects that fail
    (ORDER, "Your lamp order for Rome is placed. Thank you.", True, set()),
    (ORDER, "Gladly, a lamp was bought for Rome.", True, set()),
    (ORDER, "  Your lamp order for Rome is placed.\nHave a nice day!  ", True, set()),
    (ROUTE, "Sure, turn left for the bakery in Oslo. Happy to help.", True, set()),
    (ORDER, "Your lamp is on the way to Rome. Thank you.", True, {"right_intent"}),
    (ORDER, "Your lamp order for Rome is on the way. Thank you.", True, {"right_intent"}),
    (ORDER, "Your lamp order for Paris is placed. Thank you.", True, {"right_slot"}),
    (ORDER, "Your order for Rome is placed. Thank you.", True, {"right_slot"}),
    (ORDER, "Your lamp order for Rome or Paris is placed. Thank you.", True, {"right_slot"}),
    (ORDER, "Your lamp, the lamp order for Rome is placed. Thank you.", True, {"right_slot"}),
    (ORDER, "Your lampshade order for Rome is placed. Thank you.", True, {"right_slot"}),
    (ORDER, "Your lamp order for Rome is placed. That is all.", True, {"polite"}),
    (ORDER, "Ugh, your lamp order for Rome is placed. Thank you.", True, {"not_rude"}),
    (ORDER, "Your lamp order for Rome is placed. How boring.", True, {"polite", "not_rude"}),
    (ORDER, "Your lamp order for Rome is placed. Thank you", True, {"ends"}),
    (ORDER, "Your lamp order for Rome is placed. Thank you.", False, {"ends"}),
    (ORDER, "Your lamp order for Rome is is placed. Thank you.", True, {"ends"}),
    (ORDER, "Your lamp order for Rome is placed. Thank you. Thank you.", True, set()),
    (ORDER, "", True, set(ASPECTS)),
    (ORDER, " \n", False, set(ASPECTS)),
    (ORDER, "Thank you.", True, {"right_intent", "right_slot"}),
]


@pytest.mark.parametrize(("row", "answer", "ended", "failed"), CASES)
def test_aspects(row: dict, answer: str, ended: bool, failed: set[str]) -> None:
    got = score(row, answer, ended=ended)
    assert {aspect for aspect in ASPECTS if not got[aspect]} == failed
    assert got["fully_right"] == (not failed)
    assert set(got) == {*ASPECTS, "fully_right"}


def test_no_word_stands_in_two_slots() -> None:
    words = [word.lower() for words in SLOT_WORDS.values() for word in words]
    assert len(words) == len(set(words))


def test_no_cue_belongs_to_two_intents() -> None:
    cues = [cue for cues in INTENT_CUES.values() for cue in cues]
    assert len(cues) == len(set(cues))


@pytest.mark.parametrize("row", [{}, {"world": "order"}, {"world": {"intent": "order"}}, {"world": {"slots": {}}}])
def test_a_row_of_another_data_set_is_an_error(row: dict) -> None:
    with pytest.raises(DataError, match="world"):
        score(row, "Thank you.", ended=True)


def test_registered_by_name() -> None:
    assert VERIFIERS["tiny_world"](ORDER, "Your lamp order for Rome is placed. Thank you.", ended=True)["fully_right"]
