"""Grades a multiple-choice answer as NeMo-Gym's mcqa server does: same modes, same order of rules.

Where NeMo-Gym finds no letter in the first box or after the first ``Answer:``, ours reads on; an answer that it
pays is paid here.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from nemotron.rewards.text import boxes_backwards

Options = Sequence[Mapping[str, str | None]]

MODES = ("strict_single_letter_boxed", "lenient_boxed", "lenient_answer_colon", "lenient_answer_colon_md")
"""``strict_single_letter_boxed``: a capital letter in the first ``\\boxed{}`` that has one. ``lenient_boxed``: else the
one option whose text stands in the first box. ``lenient_answer_colon``: ``Answer: B`` or ``Answer: text of B``.
``lenient_answer_colon_md``: the letter after ``Answer:``, with Markdown around it."""

_BOXED_LETTER = re.compile(r"\\boxed\{\s*[^A-Za-z]*([A-Z])[^A-Za-z]*\s*\}")
_TEXT_WRAP = re.compile(r"\\text\{\s*(.*?)\s*\}", re.DOTALL)
_COLON = re.compile(r"answer\s*:\s*(.+)", re.IGNORECASE)
_COLON_MD = re.compile(r"[*_]{0,2}answer[*_]{0,2}\s*:[*_\s]{0,2}\s*([A-Z])(?![a-zA-Z0-9])", re.IGNORECASE)


def grade(row: Mapping[str, Any], text: str, *, mode: str | None = None) -> tuple[float, str | None]:
    """Reward (1 or 0) and the letter that was read from ``text``.

    ``row`` has ``options`` (a list of ``{letter: text}``), ``expected_answer``, and may have ``grading_mode`` (``mode``
    replaces it) and ``template_metadata.output_regex`` (one pattern or several, tried first; their last match counts).
    """
    options = [option for option in row.get("options") or [] if isinstance(option, Mapping)]
    gold = str(row.get("expected_answer") or "").strip().upper()
    text = text.strip()
    if not text:
        return 0.0, None
    letter = _by_template(row.get("template_metadata"), text, options)
    if letter is None:
        letter = _by_mode(mode or row.get("grading_mode") or MODES[0], text, options)
    return float(bool(gold) and letter == gold), letter


LETTER_CODES = 0x110000
"""What `letter_code` divides by."""


def letter_code(row: Mapping[str, Any], response: str, *, ended: bool) -> float:
    """The letter of `grade` as a share of all characters, 0 without one: a reward function's value for a worker."""
    _, letter = grade(row, response)
    return ord(letter) / LETTER_CODES if letter else 0.0


def _by_mode(mode: str, text: str, options: Options) -> str | None:
    letters = _letters(options)
    if mode in ("strict_single_letter_boxed", "lenient_boxed"):
        boxed = next((found[1] for found in _BOXED_LETTER.finditer(text) if found[1] in letters), None)
        if boxed is not None:
            return boxed
        return _by_boxed_text(text, options) if mode == "lenient_boxed" else None
    if mode == "lenient_answer_colon":
        said = (_letter_or_option(_bare(found[1]), options) for found in _COLON.finditer(text))
        return next((letter for letter in said if letter is not None), None)
    if mode == "lenient_answer_colon_md":
        return next((found[1].upper() for found in _COLON_MD.finditer(text) if found[1].upper() in letters), None)
    raise ValueError(f"`grading_mode` is `{mode}`, not one of {', '.join(MODES)}")


def _by_boxed_text(text: str, options: Options) -> str | None:
    """The one option whose text, or letter in dollars or ``\\text{}``, stands in the first box that has one."""
    for box in reversed(list(boxes_backwards(text))):
        inside = {_flat(box), _flat(_unwrapped(box.strip()))}
        hits = {letter for letter, said in _texts(options) if said and any(said in part for part in inside)}
        if len(hits) == 1:
            return hits.pop()
        if not hits and (letter := _letter_or_option(_bare(box), options)):
            return letter
    return None


def _letter_or_option(said: str, options: Options) -> str | None:
    if len(said) == 1 and said.upper() in _letters(options):
        return said.upper()
    return next((letter for letter, text in _texts(options) if text == _flat(said)), None)


def _by_template(metadata: Any, text: str, options: Options) -> str | None:
    patterns = metadata.get("output_regex") if isinstance(metadata, Mapping) else None
    for pattern in [patterns] if isinstance(patterns, str) else patterns or []:
        try:
            matches = re.findall(pattern, text, re.IGNORECASE)
        except re.error:
            continue
        if matches and isinstance(matches[-1], str):
            said = matches[-1].strip().upper()
            # As upstream: a lone letter is believed, whether or not the options have it.
            letter = said if len(said) == 1 and said.isalpha() else _letter_or_option(said, options)
            if letter is not None:
                return letter
    return None


def _letters(options: Options) -> set[str]:
    return {letter for letter, _ in _texts(options)}


def _texts(options: Options) -> list[tuple[str, str]]:
    """(capital letter, normalised text) of every usable option."""
    return [
        (key.upper(), _flat(value))
        for option in options
        for key, value in option.items()
        if isinstance(key, str) and len(key) == 1 and key.isalpha() and isinstance(value, str)
    ]


def _unwrapped(text: str) -> str:
    while found := _TEXT_WRAP.fullmatch(text):
        text = found[1]
    return text


def _bare(text: str) -> str:
    """Without dollars, emphasis and ``\\text{}`` around it."""
    while (bare := _unwrapped(text.strip().strip("$*_").strip())) != text:
        text = bare
    return text


def _flat(text: str) -> str:
    return " ".join(text.lower().split())
