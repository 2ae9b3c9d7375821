"""The graph of a pipeline, as text and as a picture: columns by how much has to be done before."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Protocol
from xml.sax.saxutils import escape

WIDTH, HEIGHT, ACROSS, DOWN, MARGIN = 190, 48, 70, 22, 12
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
    wide = max(x for x, _ in places.values()) + WIDTH + MARGIN
    high = max(y for _, y in places.values()) + HEIGHT + MARGIN
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{wide}" height="{high}" viewBox="0 0 {wide} {high}" '
        'role="img" font-family="system-ui, sans-serif" font-size="13">',
        '<defs><marker id="tip" viewBox="0 0 8 8" refX="8" refY="4" markerWidth="7" markerHeight="7" orient="auto">'
        f'<path d="M0 0 8 4 0 8z" fill="{_OTHER}"/></marker></defs>',
        *(line for node in pipeline.nodes for line in _lines(node, places)),
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


def _lines(node: Drawn, places: Mapping[str, tuple[int, int]]) -> Iterator[str]:
    x, y = places[node.name]
    for name in node.needs:
        from_x, from_y = places[name]
        start, end = (from_x + WIDTH, from_y + HEIGHT // 2), (x, y + HEIGHT // 2)
        bend = (start[0] + end[0]) // 2
        path = f"M{start[0]} {start[1]}C{bend} {start[1]} {bend} {end[1]} {end[0]} {end[1]}"
        yield f'<path d="{path}" fill="none" stroke="{_OTHER}" stroke-width="1.5" marker-end="url(#tip)"/>'


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
