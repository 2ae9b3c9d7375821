"""What is held in memory at once has a bound, however large the input is."""

from __future__ import annotations

import pytest

from nemotron.data.prep.prepare import LARGEST_BLOCK, SMALLEST_BLOCK, block_size, grid_of
from nemotron.data.prep.shards import group_bytes

MIB, GIB, TIB = 2**20, 2**30, 2**40


@pytest.mark.parametrize("total", [0, MIB, GIB, 8 * GIB, 100 * GIB, TIB, 10 * TIB, 1000 * TIB])
def test_blocks_have_a_bound(total: int) -> None:
    assert SMALLEST_BLOCK <= block_size(total) <= LARGEST_BLOCK <= 32 * MIB


@pytest.mark.parametrize("splits", [1, 3])
@pytest.mark.parametrize("total", [MIB, GIB, 100 * GIB, TIB, 4 * TIB])
def test_so_have_cells_their_tables_and_what_is_merged_at_once(total: int, splits: int) -> None:
    grid = grid_of(total, splits)
    assert total / grid.cells <= 32 * MIB
    # Every piece has a table of all cells.
    assert 4 * grid.cells * splits <= max(block_size(total) // 16, 4 * splits * 2**14)
    pieces = total // block_size(total)
    assert group_bytes(pieces) <= 32 * MIB
