"""Multiple choice by the rule of NeMo-Gym 0.4.0, where the first box counts, even when the answer takes it back.

Where NeMo-Gym 0.4.0 finds no letter in the first box or after the first ``Answer:``, ours reads on; an answer that it
pays is paid here.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from nemotron.gym.mcqa import (
    ANSWER_COLON,
    MODES,
    Options,
    code_of,
    flat,
    grade_by,
    letter_or_option,
    letters_of,
    texts_of,
    unwrapped,
)
from nemotron.rewards.text import boxes_backwards

_BOXED_LETTER = re.compile(r"\\boxed\{\s*[^A-Za-z]*([A-Z])[^A-Za-z]*\s*\}")
_COLON_MD = re.compile(r"[*_]{0,2}answer[*_]{0,2}\s*:[*_\s]{0,2}\s*([A-Z])(?![a-zA-Z0-9])", re.IGNORECASE)


def grade(row: Mapping[str, Any], text: str) -> tuple[float, str | None]:
    """Reward (1 or 0) and the letter, as :func:`nemotron.gym.mcqa.grade`."""
    return grade_by(by_mode, row, text)


def letter_code(row: Mapping[str, Any], response: str, *, ended: bool) -> float:
    """As :func:`nemotron.gym.mcqa.letter_code`."""
    return code_of(grade(row, response)[1])


def by_mode(mode: str, text: str, options: Options) -> str | None:
    """The rule of 0.4.0. Raises ValueError: an unknown mode."""
    letters = letters_of(options)
    if mode in ("strict_single_letter_boxed", "lenient_boxed"):
        boxed = next((found[1] for found in _BOXED_LETTER.finditer(text) if found[1] in letters), None)
        if boxed is not None:
            return boxed
        return _by_boxed_text(text, options) if mode == "lenient_boxed" else None
    if mode == "lenient_answer_colon":
        said = (letter_or_option(_bare(found[1]), options) for found in ANSWER_COLON.finditer(text))
        return next((letter for letter in said if letter is not None), None)
    if mode == "lenient_answer_colon_md":
        return next((found[1].upper() for found in _COLON_MD.finditer(text) if found[1].upper() in letters), None)
    raise ValueError(f"`grading_mode` is `{mode}`, not one of {', '.join(MODES)}")


def _by_boxed_text(text: str, options: Options) -> str | None:
    """The one option whose text, or letter in dollars or ``\\text{}``, stands in the first box that has one."""
    for box in reversed(list(boxes_backwards(text))):
        inside = {flat(box), flat(unwrapped(box.strip()))}
        hits = {letter for letter, said in texts_of(options) if said and any(said in part for part in inside)}
        if len(hits) == 1:
            return hits.pop()
        if not hits and (letter := letter_or_option(_bare(box), options)):
            return letter
    return None


def _bare(text: str) -> str:
    """Without dollars, emphasis and ``\\text{}`` around it."""
    while (bare := unwrapped(text.strip().strip("$*_").strip())) != text:
        text = bare
    return text
