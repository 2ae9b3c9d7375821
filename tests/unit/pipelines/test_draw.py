"""The picture of a pipeline: no arrow runs through a box, or over another."""

from __future__ import annotations

import random
import re
from types import SimpleNamespace
from typing import Any, cast
from xml.etree import ElementTree

import pytest

from nemotron.pipelines.chain import compile_chain
from nemotron.pipelines.draw import svg
from nemotron.pipelines.file import read_pipeline, shipped
from nemotron.pipelines.start import planned

SVG = "{http://www.w3.org/2000/svg}"
Point = tuple[float, float]
PIECE = re.compile(r"([MCH])([\d .-]+)")


def graph(seed: int) -> Any:
    """Nodes of which each needs some of those before it."""
    draw = random.Random(seed)
    names = [f"n{number}" for number in range(draw.randint(2, 9))]
    nodes = [
        SimpleNamespace(
            name=name,
            step="a/step",
            needs=tuple(other for other in names[:at] if draw.random() < 0.4),
            inserted=False,
            state="waiting",
        )
        for at, name in enumerate(names)
    ]
    return SimpleNamespace(nodes=nodes)


def points(path: str) -> list[Point]:
    """Along an arrow, close enough that none of them jumps over a box."""
    found: list[Point] = []
    at: Point = (0.0, 0.0)
    for kind, text in PIECE.findall(path):
        numbers = [float(word) for word in text.split()]
        if kind == "M":
            at = (numbers[0], numbers[1])
        elif kind == "H":
            found += [(at[0] + (numbers[0] - at[0]) * share / 100, at[1]) for share in range(101)]
            at = (numbers[0], at[1])
        else:
            a, b, end = (numbers[0], numbers[1]), (numbers[2], numbers[3]), (numbers[4], numbers[5])
            for share in (step / 50 for step in range(51)):
                weights = (1 - share) ** 3, 3 * share * (1 - share) ** 2, 3 * share**2 * (1 - share), share**3
                x, y = (sum(w * p[axis] for w, p in zip(weights, (at, a, b, end), strict=True)) for axis in (0, 1))
                found.append((x, y))
            at = end
    return found


def check(drawn: str, arrows: int) -> None:
    root = ElementTree.fromstring(drawn)
    wide, high = float(root.attrib["width"]), float(root.attrib["height"])
    boxes = [[float(box.attrib[name]) for name in ("x", "y", "width", "height")] for box in root.iter(f"{SVG}rect")]
    paths = [one.attrib["d"] for one in root.iter(f"{SVG}path") if one.get("marker-end")]
    assert len(paths) == arrows
    for path in paths:
        for x, y in points(path):
            assert 0 <= x <= wide
            assert 0 <= y <= high
            assert not any(left < x < left + width and top < y < top + tall for left, top, width, tall in boxes), path
    # Where arrows run side by side each can be followed.
    lanes = [(float(y), float(end)) for path in paths for y, end in re.findall(r" ([\d.]+)H([\d.]+)", path)]
    assert len(set(lanes)) == len(lanes)


@pytest.mark.parametrize("name", sorted(shipped()))
def test_of_a_shipped_pipeline(name: str, tmp_path: Any) -> None:
    state = planned(compile_chain(read_pipeline(shipped()[name]), tmp_path / "runs"))
    check(svg(cast(Any, state)), sum(len(node.needs) for node in state.nodes))


@pytest.mark.parametrize("seed", range(60))
def test_of_any_graph(seed: int) -> None:
    pipeline = graph(seed)
    check(svg(pipeline), sum(len(node.needs) for node in pipeline.nodes))
