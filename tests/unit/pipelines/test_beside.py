"""How many nodes work at once on a machine, and how many cores are left to each."""

from __future__ import annotations

import random
from dataclasses import replace
from itertools import combinations
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from nemotron.compile.plan import Memory
from nemotron.pipelines.beside import _width, cores_of, slots
from nemotron.pipelines.chain import Chain, compile_chain
from nemotron.pipelines.file import read_pipeline, shipped

NAMES = {"pairs", "prompts", "rm", "audit", "ppo", "hf"}


@pytest.fixture(scope="module")
def chain(tmp_path_factory: pytest.TempPathFactory) -> Chain:
    """Two nodes begin it; the others come one after the other, and the second of both is needed by the fifth alone."""
    return changed(compile_chain(read_pipeline(shipped()["ppo"]), tmp_path_factory.mktemp("runs")))


def changed(chain: Chain, *, memory: int | None = None, has_cuda: bool = False) -> Chain:
    """The same on a machine of which all is known."""

    def there(node: Any) -> Any:
        place = replace(node.plan.place, memory_bytes=memory, has_cuda=has_cuda)
        return replace(node, plan=replace(node.plan, place=place))

    return replace(chain, nodes=tuple(map(there, chain.nodes)))


@pytest.mark.parametrize(("cores", "at_once"), [(1, 1), (2, 1), (3, 1), (4, 2), (64, 2)])
def test_another_node_needs_cores_of_its_own_and_something_to_do(chain: Chain, cores: int, at_once: int) -> None:
    assert slots(chain, NAMES, None, cores=cores) == at_once


def test_who_asks_decides_but_for_what_waits(chain: Chain) -> None:
    assert slots(chain, NAMES, 2, cores=1) == 2
    assert slots(chain, NAMES, 9, cores=1) == 2
    assert slots(chain, NAMES, 1, cores=64) == 1
    # Only one of the two that could be beside each other is asked for.
    assert slots(chain, {"pairs", "rm"}, 9, cores=64) == 1


def test_a_gpu_or_a_small_memory_leaves_room_for_one(chain: Chain) -> None:
    assert slots(changed(chain, has_cuda=True), NAMES, None, cores=64) == 1
    known = [node.plan.memory.total for node in chain.nodes if isinstance(node.plan.memory, Memory)]
    assert known
    largest = sum(sorted(known)[-2:])
    assert slots(changed(chain, memory=largest), NAMES, None, cores=64) == 2
    assert slots(changed(chain, memory=largest - 1), NAMES, None, cores=64) == 1


def test_cores_are_shared_where_something_may_be_beside_a_node_and_nowhere_else(chain: Chain) -> None:
    left = {name: cores_of(chain, NAMES, name, 2, cores=8) for name in NAMES}
    assert left == {"pairs": 4, "prompts": 4, "rm": 4, "audit": 4, "ppo": 8, "hf": 8}
    assert cores_of(chain, NAMES - {"prompts"}, "rm", 2, cores=8) == 8
    assert cores_of(chain, NAMES, "rm", 2, cores=1) == 1


@pytest.mark.parametrize("seed", range(40))
def test_the_width_is_that_of_the_largest_set_without_an_arrow(seed: int, tmp_path: Path) -> None:
    draw = random.Random(seed)
    names = [str(number) for number in range(draw.randint(1, 7))]
    nodes = [
        SimpleNamespace(name=name, needs=[other for other in names[:at] if draw.random() < 0.3])
        for at, name in enumerate(names)
    ]
    chain = Chain(spec=cast(Any, None), nodes=cast(Any, tuple(nodes)), runs_dir=tmp_path, names=cast(Any, None))
    best = max(
        size
        for size in range(1, len(names) + 1)
        for chosen in combinations(names, size)
        if all(other not in chain.after(one) for one, other in combinations(chosen, 2))
    )
    assert _width(chain, names) == best
