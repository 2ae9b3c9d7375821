"""From the judge's text to a verdict, by NeMo-Gym's rules.

A fenced ```` ```json ```` block is searched first and its *first* valid object wins; without one, the *last* valid
object of the whole text wins. Checked against ``parse`` of golden/genrm_compare.json.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Sequence
from typing import Any

from nemotron.contracts.answers import answer_of
from nemotron.judge.types import Verdict

_FENCE = "```"
_FENCE_OPEN = re.compile("```json", re.IGNORECASE)
_MARKS = re.compile(r'[{}"\\]')
_KEYS = ("score_1", "score_2", "ranking")


def parse_verdict(
    text: str, *, default_score: float | None, default_ranking: float, allow_non_finite: bool = False
) -> Verdict | None:
    """The verdict in the answer part of ``text``, or None when there is none.

    An object is a verdict when it is strict JSON and has both scores, looked up under ``overall`` when that is an
    object; a ranking that it lacks takes the default. Numbers may be written as strings or booleans. Values are not
    clamped. With a ``default_score`` one of ``score_1``, ``score_2``, ``ranking`` is enough, as in NeMo-Gym.

    ``allow_non_finite`` is NeMo-Gym 0.4.0's behaviour: NaN and Infinity pass. Without it (0.7.0) they make the object
    invalid, because a NaN reward would silently poison the whole group.
    """

    def read(candidate: str) -> Verdict | None:
        verdict = _read_object(candidate, default_score, default_ranking)
        if verdict is None or allow_non_finite:
            return verdict
        finite = all(map(math.isfinite, (verdict.score_1, verdict.score_2, verdict.ranking)))
        return verdict if finite else None

    text = answer_of(text)
    for block in _fenced_blocks(text):
        for candidate in balanced_objects(block):
            verdict = read(candidate)
            if verdict is not None:
                return verdict
    for candidate in reversed(balanced_objects(text)):
        verdict = read(candidate)
        if verdict is not None:
            return verdict
    return None


def _read_object(candidate: str, default_score: float | None, default_ranking: float) -> Verdict | None:
    try:
        value = json.loads(candidate)
        overall = value.get("overall")
        found = overall if isinstance(overall, dict) else value
        if not any(key in found for key in _KEYS):
            return None
        # Without a default, a score that is not there is null, which is no number.
        scores: dict[str, Any] = {"score_1": default_score, "score_2": default_score, "ranking": default_ranking}
        return Verdict(*(float(found.get(key, default)) for key, default in scores.items()))
    except (ValueError, TypeError, OverflowError, RecursionError):
        # Not JSON, a value that is no number, an integer too large for a float, nesting deeper than the reader goes.
        return None


def _fenced_blocks(text: str) -> list[str]:
    """Contents of the closed ```` ```json ```` blocks, in order."""
    blocks = []
    position = 0
    while (opening := _FENCE_OPEN.search(text, position)) is not None:
        closing = text.find(_FENCE, opening.end())
        if closing < 0:
            break
        blocks.append(text[opening.end() : closing])
        position = closing + len(_FENCE)
    return blocks


def balanced_objects(text: str) -> list[str]:
    """Every outermost balanced ``{...}``, left to right. Braces inside double quotes do not count.

    A ``{`` that never closes is skipped and the search goes on behind it. Quotes are read from each ``{`` afresh, so an
    odd quote before an object does not hide it. Linear in the length of the text (NeMo-Gym's scan is quadratic).
    """
    marks = [(found.start(), found[0]) for found in _MARKS.finditer(text)]
    closing = _closing_braces(marks)
    objects = []
    end = -1
    for number, (start, mark) in enumerate(marks):
        if mark == "{" and start > end and closing[number + 1] >= 0:
            end = closing[number + 1]
            objects.append(text[start : end + 1])
    return objects


def _closing_braces(marks: Sequence[tuple[int, str]]) -> list[int]:
    """For each mark: where the first unmatched ``}`` is when reading from it outside of quotes, or -1; and one -1 more.

    Read backwards. A reader is in one of three states (outside quotes, inside, just after a backslash inside), so three
    answers per mark hold every possible start; the two inside states only ever look one mark ahead.
    """
    outside = [-1] * (len(marks) + 1)
    behind: dict[int, int] = {}
    """Position of a mark -> number of the next one."""
    inside = escaped = following = -1
    for number in range(len(marks) - 1, -1, -1):
        position, mark = marks[number]
        after = outside[number + 1]
        if position + 1 != following:
            # Between the two stands something that a backslash can be in front of.
            escaped = inside
        following = position
        if mark == "}":
            outside[number], inside, escaped = position, inside, inside
        elif mark == "{":
            # What closes this one is a mark: its successor is where the reader goes on.
            outside[number], escaped = (outside[behind[after]] if after >= 0 else -1), inside
        elif mark == '"':
            outside[number], inside, escaped = inside, after, inside
        else:
            outside[number], inside, escaped = after, escaped, inside
        behind[position] = number + 1
    return outside
