"""The graph of a pipeline, as text and as a picture: columns by how much has to be done before."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Protocol
from xml.sax.saxutils import escape

WIDTH, HEIGHT, ACROSS, DOWN, MARGIN = 190, 48, 70, 22, 12
LANE = 14
"""Between two arrows that pass below boxes."""
_COLOURS = {
    "finished": "#2e7d4f",
    "reused": "#2e7d4f",
    "running": "#2563b0",
    "failed": "#b3261e",
    "stopped": "#b3261e",
    "interrupted": "#b26a00",
}
_OTHER = "#7a7f87"


class Drawn(Protocol):
    """What is drawn of a node."""

    @property
    def name(self) -> str: ...
    @property
    def step(self) -> str: ...
    @property
    def needs(self) -> tuple[str, ...]: ...
    @property
    def inserted(self) -> bool: ...
    @property
    def state(self) -> str: ...


class Nodes(Protocol):
    """What is drawn."""

    @property
    def nodes(self) -> Sequence[Drawn]: ...


def columns(needs: Mapping[str, Sequence[str]]) -> dict[str, int]:
    """Node -> how many have to end before it, one after the other; nodes stand behind those that they need."""
    found: dict[str, int] = {}
    for name, before in needs.items():
        found[name] = max((found[one] + 1 for one in before), default=0)
    return found


def svg(pipeline: Nodes) -> str:
    """An SVG element without scripts, links or fonts from elsewhere."""
    places = _places(pipeline.nodes)
    lanes = _lanes(pipeline.nodes, places)
    wide = max(x for x, _ in places.values()) + WIDTH + MARGIN
    high = max([*(y + HEIGHT for _, y in places.values()), *lanes.values()]) + MARGIN
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{wide}" height="{high}" viewBox="0 0 {wide} {high}" '
        'role="img" font-family="system-ui, sans-serif" font-size="13">',
        '<defs><marker id="tip" viewBox="0 0 8 8" refX="8" refY="4" markerWidth="7" markerHeight="7" orient="auto">'
        f'<path d="M0 0 8 4 0 8z" fill="{_OTHER}"/></marker></defs>',
        *(line for node in pipeline.nodes for line in _lines(node, places, lanes)),
        *(line for node in pipeline.nodes for line in _box(node, places[node.name])),
        "</svg>",
    ]
    return "\n".join(parts) + "\n"


def _places(nodes: Sequence[Drawn]) -> dict[str, tuple[int, int]]:
    at = columns({node.name: node.needs for node in nodes})
    used: dict[int, int] = {}
    found = {}
    for node in nodes:
        column = at[node.name]
        row = used[column] = used.get(column, -1) + 1
        found[node.name] = (MARGIN + column * (WIDTH + ACROSS), MARGIN + row * (HEIGHT + DOWN))
    return found


def _lanes(nodes: Sequence[Drawn], places: Mapping[str, tuple[int, int]]) -> dict[tuple[str, str], int]:
    """How far down an arrow runs that passes other columns: below their boxes, and beside other such arrows."""
    found: dict[tuple[str, str], int] = {}
    taken: list[tuple[int, int, int]] = []
    for node in nodes:
        for name in node.needs:
            first, last = places[name][0] + WIDTH + ACROSS, places[node.name][0] - WIDTH - ACROSS
            if first > last:
                continue  # the next column
            below = max(y for x, y in places.values() if first <= x <= last) + HEIGHT + LANE
            lane = max(below, places[name][1] + HEIGHT // 2)
            while any(abs(lane - y) < LANE and first <= end and begin <= last for begin, end, y in taken):
                lane += LANE
            taken.append((first, last, lane))
            found[name, node.name] = lane
    return found


def _lines(node: Drawn, places: Mapping[str, tuple[int, int]], lanes: Mapping[tuple[str, str], int]) -> Iterator[str]:
    x, y = places[node.name]
    for name in node.needs:
        from_x, from_y = places[name]
        at, end = (from_x + WIDTH, from_y + HEIGHT // 2), (x, y + HEIGHT // 2)
        path = f"M{at[0]} {at[1]}"
        if (lane := lanes.get((name, node.name))) is not None:
            path += f"{_bend(at, (at[0] + ACROSS, lane))}H{x - ACROSS}"
            at = (x - ACROSS, lane)
        path += _bend(at, end)
        yield f'<path d="{path}" fill="none" stroke="{_OTHER}" stroke-width="1.5" marker-end="url(#tip)"/>'


def _bend(start: tuple[int, int], end: tuple[int, int]) -> str:
    """From one height to another, between two columns."""
    middle = (start[0] + end[0]) // 2
    return f"C{middle} {start[1]} {middle} {end[1]} {end[0]} {end[1]}"


def _box(node: Drawn, place: tuple[int, int]) -> Iterator[str]:
    x, y = place
    colour = _COLOURS.get(node.state, _OTHER)
    dashes = ' stroke-dasharray="5 3"' if node.inserted else ""
    yield f"<g><title>{escape(node.name)}: {escape(node.step)}, {escape(node.state)}</title>"
    yield (
        f'<rect x="{x}" y="{y}" width="{WIDTH}" height="{HEIGHT}" rx="7" fill="{colour}" fill-opacity="0.1" '
        f'stroke="{colour}" stroke-width="1.5"{dashes}/>'
    )
    yield f'<text x="{x + 10}" y="{y + 20}" font-weight="600" fill="currentColor">{escape(node.name)}</text>'
    yield f'<text x="{x + 10}" y="{y + 38}" font-size="11" fill="{_OTHER}">{escape(node.step)}</text></g>'
