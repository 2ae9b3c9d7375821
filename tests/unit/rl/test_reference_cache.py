"""Reference log-probs on disk: computed once, never of other weights or data, whole or made again."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from nemotron.data.rows import PairRow
from nemotron.rl import reference_cache
from nemotron.rl.pairs import TokenPair, tokenise
from nemotron.rl.policy import Policy
from nemotron.rl.reference_cache import ReferenceCache
from tests.unit.rl.tiny_policy import tiny_chat, tiny_policy

WORDS = ("abc", "hello", "it is", "no", "yes sir", "zebra", "q")


def pairs(count: int = 5) -> list[TokenPair]:
    rows = [
        PairRow(f"f:{i}", [{"role": "user", "content": WORDS[i]}], WORDS[i - 1], WORDS[i - 2], {}) for i in range(count)
    ]
    return tokenise(rows, tiny_chat(), limit=64)[0]


class Loader:
    """Counts how often the reference is loaded."""

    def __init__(self) -> None:
        self.calls = 0

    def __call__(self) -> Policy:
        self.calls += 1
        return tiny_policy(scale=2.0)


def cache(folder: Path, load: Callable[[], Policy], weights: str = "w") -> ReferenceCache:
    return ReferenceCache(folder, weights, load, batch_size=2, report=lambda text: None)


def values(filled: list[TokenPair]) -> list[torch.Tensor]:
    return [side for pair in filled for side in (pair.reference or ())]


def test_values_are_the_policys_and_are_read_back_bit_by_bit(tmp_path: Path) -> None:
    load = Loader()
    first = cache(tmp_path, load).fill("train", pairs())
    [chosen, rejected] = tiny_policy(scale=2.0).response_logprobs([pairs()[0].group]).detach()
    assert first[0].reference is not None
    torch.testing.assert_close(first[0].reference[0], chosen[: len(first[0].reference[0])])
    torch.testing.assert_close(first[0].reference[1], rejected[: len(first[0].reference[1])])
    again = cache(tmp_path, load).fill("train", pairs())
    assert load.calls == 1
    assert all(torch.equal(a, b) for a, b in zip(values(first), values(again), strict=True))


@pytest.mark.parametrize("change", ["weights", "data", "damage"])
def test_what_does_not_fit_is_computed_again(tmp_path: Path, change: str) -> None:
    load = Loader()
    cache(tmp_path, load).fill("train", pairs())
    file = tmp_path / "train-00000.safetensors"
    if change == "damage":
        file.write_bytes(file.read_bytes()[:-7])
    rows = pairs(6)[1:] if change == "data" else pairs()
    cache(tmp_path, load, "other" if change == "weights" else "w").fill("train", rows)
    assert load.calls == 2


def test_a_run_cut_off_in_between_keeps_finished_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reference_cache, "CHUNK", 2)
    load = Loader()
    cache(tmp_path, load).fill("train", pairs(4))
    (tmp_path / "train-00001.safetensors").unlink()
    before = (tmp_path / "train-00000.safetensors").stat().st_mtime_ns
    again = cache(tmp_path, load).fill("train", pairs(5))
    assert (tmp_path / "train-00000.safetensors").stat().st_mtime_ns == before
    assert len(list(tmp_path.iterdir())) == 3
    assert all(pair.reference is not None for pair in again)


def test_a_longer_run_shares_the_batches_of_a_shorter_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reference_cache, "CHUNK", 10)
    of_four = replace(cache(tmp_path, Loader()), batch_size=4)
    assert [of_four.in_whole_batches(count) for count in (0, 1, 4, 5, 9, 10, 11)] == [0, 4, 4, 8, 10, 10, 14]
