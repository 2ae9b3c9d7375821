"""The order of prompts: seeded, complete, resumable."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nemotron.data.rows import PromptRow
from nemotron.data.stream import PromptStream
from nemotron.errors import DataError

ROWS = [PromptRow(str(i), [], None, {}) for i in range(10)]


def stream(batch_size: int = 3, seed: int = 1, shuffle: bool = True) -> PromptStream:
    return PromptStream(ROWS, batch_size, seed, shuffle)


def ids(rows: list[PromptRow]) -> list[str]:
    return [row.id for row in rows]


def test_an_epoch_has_no_row_twice_and_drops_the_rest() -> None:
    s = stream()
    seen = [row for _ in range(3) for row in ids(s.next_batch())]
    assert len(set(seen)) == 9
    assert s.next_epoch == 1
    s.next_batch()
    assert s.epoch == 1


def test_seed_and_epoch_change_the_order() -> None:
    orders = []
    for seed in (1, 2):
        s = stream(batch_size=10, seed=seed)
        orders += [ids(s.next_batch()), ids(s.next_batch())]
    assert len({tuple(order) for order in orders}) == 4


def test_without_shuffle_the_file_order_stays() -> None:
    assert ids(stream(shuffle=False).next_batch()) == ["0", "1", "2"]


def test_upcoming_looks_without_moving() -> None:
    s = stream()
    ahead = ids(s.upcoming(3))
    assert ids(s.next_batch()) == ahead


def test_too_few_rows_for_a_batch() -> None:
    with pytest.raises(DataError, match="10 prompts are fewer than one batch of 11"):
        stream(batch_size=11)


@given(st.integers(1, 5), st.integers(0, 12), st.integers(0, 2**31))
def test_a_restored_stream_goes_on_as_the_old_one(batch_size: int, taken: int, seed: int) -> None:
    original = stream(batch_size, seed)
    for _ in range(taken):
        original.next_batch()
    restored = stream(batch_size, seed)
    restored.load_state_dict(original.state_dict())
    for _ in range(5):
        assert ids(restored.next_batch()) == ids(original.next_batch())
