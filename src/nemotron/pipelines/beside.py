"""Which nodes of a pipeline work on this machine at the same time, and how they share its cores.

Both follow from the graph and the machine alone. That a node is given fewer cores because another one might work beside
it holds even when that one has ended long ago: how many threads compute may reach the last bits of a result, and what
happened to be running when a node began must not.
"""

from __future__ import annotations

from collections.abc import Sequence

from nemotron.compile.plan import Memory
from nemotron.pipelines.chain import Chain, Node
from nemotron.processes.cores import usable_cores

CORES_OF_A_NODE = 2
"""What a node can use before another one is started beside it: its own process, and its judge, critic or workers."""


def slots(chain: Chain, wanted: set[str], asked: int | None, *, cores: int | None = None) -> int:
    """How many nodes work at once here.

    Args:
        wanted: the nodes that the command was asked for.
        asked: by the user, who knows the machine; by default as many as its cores and memory are enough for, and one
            where there is a GPU, which every node would take.
        cores: for tests; default ``usable_cores()``.
    """
    nodes = _here(chain, wanted)
    width = max(1, _width(chain, [node.name for node in nodes]))
    if asked is not None:
        return min(asked, width)
    if any(node.plan.place.has_cuda or node.plan.engine == "nemo_rl" for node in nodes):
        return 1
    found = min(width, max(1, (usable_cores() if cores is None else cores) // CORES_OF_A_NODE))
    while found > 1 and not _fit(nodes, found):
        found -= 1
    return found


def cores_of(chain: Chain, wanted: set[str], name: str, slots: int, *, cores: int | None = None) -> int:
    """The cores that are left to a node: all where nothing can work beside it, else an equal share."""
    others = [node.name for node in _here(chain, wanted) if not _related(chain, name, node.name)]
    at_once = min(slots, 1 + _width(chain, others))
    return max(1, (usable_cores() if cores is None else cores) // at_once)


def _here(chain: Chain, wanted: set[str]) -> list[Node]:
    return [node for node in chain.nodes if node.profile is None and node.name in wanted]


def _fit(nodes: Sequence[Node], count: int) -> bool:
    """Whether the largest of them fit into the memory together, as far as their sizes are known."""
    sizes = [node.plan.memory.total for node in nodes if isinstance(node.plan.memory, Memory)]
    memory = min((node.plan.place.memory_bytes for node in nodes if node.plan.place.memory_bytes), default=None)
    return memory is None or sum(sorted(sizes)[-count:]) <= memory


def _related(chain: Chain, one: str, other: str) -> bool:
    """Whether one of them has to end before the other begins."""
    return other in chain.after(one) or one in chain.after(other)


def _width(chain: Chain, names: Sequence[str]) -> int:
    """The most nodes of which none waits for another: by Dilworth, all of them less a largest matching of each with one
    that comes after it."""
    after = {name: [other for other in names if other != name and other in chain.after(name)] for name in names}
    before: dict[str, str] = {}

    def matched(name: str, tried: set[str]) -> bool:
        for other in after[name]:
            if other not in tried:
                tried.add(other)
                if other not in before or matched(before[other], tried):
                    before[other] = name
                    return True
        return False

    return len(names) - sum(matched(name, set()) for name in names)
