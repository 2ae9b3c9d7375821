"""Grades a multiple-choice answer as the mcqa server of NeMo-Gym 0.7.0 does: same modes, same order of rules.

The last box counts, so an answer that was taken back is not paid. :mod:`nemotron.gym.mcqa_old` has the rule of 0.4.0.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from nemotron.gym.mcqa_markdown import answer_in_markdown, latin

Options = Sequence[Mapping[str, str | None]]

MODES = ("strict_single_letter_boxed", "lenient_boxed", "lenient_answer_colon", "lenient_answer_colon_md")
"""``strict_single_letter_boxed``: the capital letter in the last ``\\boxed{}``, alone or as a label. ``lenient_boxed``:
else the one option whose text stands there. ``lenient_answer_colon``: the first ``Answer: B`` or ``Answer: text of B``.
``lenient_answer_colon_md``: the letter of the last ``Answer:`` that has one, with Markdown or words around it."""

_BOX = "\\boxed{"
_BRACES = re.compile(r"[{}]")
_LONE = re.compile(r"^[^A-Za-z]*([A-Z])[^A-Za-z]*$")
_LABELLED = re.compile(r"^\s*([A-Z])\s*[:).\-]")
_TEXT_WRAP = re.compile(r"\\text\{\s*(.*?)\s*\}", re.DOTALL)
ANSWER_COLON = re.compile(r"answer\s*:\s*(.+)", re.IGNORECASE)


Rule = Callable[[str, str, Options], str | None]
"""How a letter is read: from the mode, the text and the options."""


def grade(row: Mapping[str, Any], text: str, *, mode: str | None = None) -> tuple[float, str | None]:
    """Reward (1 or 0) and the letter that was read from ``text``.

    ``row`` has ``options`` (a list of ``{letter: text}``), ``expected_answer``, and may have ``grading_mode`` (``mode``
    replaces it) and ``template_metadata.output_regex`` (one pattern or several, tried first; their last match counts).
    """
    return grade_by(by_mode, row, text, mode=mode)


def grade_by(rule: Rule, row: Mapping[str, Any], text: str, *, mode: str | None = None) -> tuple[float, str | None]:
    """`grade`, with ``rule`` to read the letter where no pattern of the row has found one."""
    options = [option for option in row.get("options") or [] if isinstance(option, Mapping)]
    gold = str(row.get("expected_answer") or "").strip().upper()
    text = text.strip()
    if not text:
        return 0.0, None
    letter = by_template(row.get("template_metadata"), text, options)
    if letter is None:
        letter = rule(mode or row.get("grading_mode") or MODES[0], text, options)
    return float(bool(gold) and letter == gold), letter


LETTER_CODES = 0x110000
"""What `code_of` divides by."""


def letter_code(row: Mapping[str, Any], response: str, *, ended: bool) -> float:
    """The letter of `grade` as a share of all characters, 0 without one: a reward function's value for a worker."""
    return code_of(grade(row, response)[1])


def code_of(letter: str | None) -> float:
    """A letter as a share of all characters."""
    return ord(letter) / LETTER_CODES if letter else 0.0


def by_mode(mode: str, text: str, options: Options) -> str | None:
    """The rule of 0.7.0. Raises ValueError: an unknown mode."""
    if mode in ("strict_single_letter_boxed", "lenient_boxed"):
        box = _last_box(text)
        if box is None:
            return None
        letter = _boxed_letter(box, options)
        return _boxed_option(box, options) if letter is None and mode == "lenient_boxed" else letter
    if mode == "lenient_answer_colon":
        said = ANSWER_COLON.search(text)
        return letter_or_option(unwrapped(said[1]).strip(), options) if said else None
    if mode == "lenient_answer_colon_md":
        return answer_in_markdown(text, letters_of(options))
    raise ValueError(f"`grading_mode` is `{mode}`, not one of {', '.join(MODES)}")


def _last_box(text: str) -> str | None:
    """What stands in the last ``\\boxed{}``; None where there is none, or it is not closed."""
    begin = text.rfind(_BOX)
    if begin < 0:
        return None
    depth, begin = 1, begin + len(_BOX)
    for brace in _BRACES.finditer(text, begin):
        depth += 1 if brace[0] == "{" else -1
        if depth == 0:
            return text[begin : brace.start()]
    return None


def _boxed_letter(box: str, options: Options) -> str | None:
    """A lone capital letter, or one with a label's sign behind it: ``B``, ``(B)``, ``B: the lamp``."""
    inside = unwrapped(box.strip())
    found = _LONE.match(inside) or _LABELLED.match(inside)
    return found[1] if found and found[1] in letters_of(options) else None


def _boxed_option(box: str, options: Options) -> str | None:
    """The one option whose text stands in the box."""
    inside = {flat(box), flat(unwrapped(box.strip()))}
    hits = {letter for letter, said in texts_of(options) if said and any(said in part for part in inside)}
    return hits.pop() if len(hits) == 1 else None


def letter_or_option(said: str, options: Options) -> str | None:
    """The letter that ``said`` is, or the letter of the option whose text it is."""
    if len(said) == 1 and said.upper() in letters_of(options):
        return said.upper()
    return next((letter for letter, text in texts_of(options) if text == flat(said)), None)


def by_template(metadata: Any, text: str, options: Options) -> str | None:
    patterns = metadata.get("output_regex") if isinstance(metadata, Mapping) else None
    for pattern in [patterns] if isinstance(patterns, str) else patterns or []:
        try:
            matches = re.findall(pattern, text, re.IGNORECASE)
        except re.error:
            continue
        if matches and isinstance(matches[-1], str):
            said = latin(matches[-1].strip()).upper()
            # As upstream: a lone letter is believed, whether or not the options have it.
            letter = said if len(said) == 1 and said.isalpha() else letter_or_option(said, options)
            if letter is not None:
                return letter
    return None


def letters_of(options: Options) -> set[str]:
    return {letter for letter, _ in texts_of(options)}


def texts_of(options: Options) -> list[tuple[str, str]]:
    """(capital letter, normalised text) of every usable option."""
    return [
        (key.upper(), flat(value))
        for option in options
        for key, value in option.items()
        if isinstance(key, str) and len(key) == 1 and key.isalpha() and isinstance(value, str)
    ]


def unwrapped(text: str) -> str:
    while found := _TEXT_WRAP.fullmatch(text):
        text = found[1]
    return text


def flat(text: str) -> str:
    return " ".join(text.lower().split())
