"""The letter after ``Answer:`` in a text with Markdown around it, as NeMo-Gym 0.7.0 finds it."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Collection, Iterator
from itertools import pairwise

_PAYLOAD = re.compile(r"[*_]{0,2}Answer[*_]{0,2}\s*:[*_\s]{0,2}(.+)", re.IGNORECASE | re.MULTILINE)
_LEADING = re.compile(r"([A-Za-z])(?![A-Za-z0-9])")
_STANDING = re.compile(r"\b[A-Z]\b")
_LETTER = re.compile(r"(?<![A-Za-z])[A-Za-z](?![A-Za-z])")
_BETWEEN = re.compile(r"\s*[/|&,;]\s*|\s+(?:or|and)\s+|\s+", re.IGNORECASE)
_OTHER_SCRIPTS = str.maketrans({"أ": " A", "ب": " B", "ج": " C", "د": " D", "অ": " A", "ব": " B", "ড": " C", "ঢ": " D"})
_AROUND = "*_` \t\n\r.,;:"


def latin(text: str) -> str:
    """``text`` with the letters that other scripts count options by in Latin ones."""
    return unicodedata.normalize("NFKC", text).translate(_OTHER_SCRIPTS).strip()


def answer_in_markdown(text: str, letters: Collection[str]) -> str | None:
    """The letter of the last ``Answer:`` whose line has one; several choices in a list are none."""
    payloads = [found[1] for found in _PAYLOAD.finditer(unicodedata.normalize("NFKC", text))]
    found = (_choice(payload, letters) for payload in reversed(payloads))
    return next((letter for letter in found if letter is not None), None)


def _choice(payload: str, letters: Collection[str]) -> str | None:
    said = latin(payload).strip(_AROUND)
    if _is_list(said, letters):
        return None
    if (leading := _LEADING.match(said)) is not None:
        return _known(leading[1], letters)
    return next((_known(letter, letters) for letter in _standing(said)), None)


def _standing(said: str) -> Iterator[str]:
    """Capital letters that stand alone, the last one first."""
    yield from reversed(_STANDING.findall(said))


def _known(letter: str, letters: Collection[str]) -> str | None:
    return letter.upper() if letter.upper() in letters else None


def _is_list(said: str, letters: Collection[str]) -> bool:
    """Whether two different choices stand beside each other: ``A or B``, ``A, B``."""
    found = [one for one in _LETTER.finditer(said) if one[0].upper() in letters]
    return any(
        left[0].upper() != right[0].upper() and _BETWEEN.fullmatch(said[left.end() : right.start()])
        for left, right in pairwise(found)
    )
