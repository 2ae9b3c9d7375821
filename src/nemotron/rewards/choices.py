"""The letter of a multiple-choice answer. Rules are asked until one of them reads a letter.

No pattern here may walk the same white space twice: answers are long, and some are nothing but line ends.
"""

from __future__ import annotations

import re
import string
from collections.abc import Iterator, Mapping
from typing import Any

from nemotron.config.schema.rewards import ChoiceRewardConfig
from nemotron.rewards.text import MISSING, answer_part, boxes_backwards, field, gold_answers, gold_problem, last_match
from nemotron.rewards.types import need

_COLON = re.compile(r"answer[\s*_]*(?:is[\s*_]*)?[:=]|answer\s+is\s", re.IGNORECASE)
_LONGEST_ANSWER = 1000
"""Characters behind ``Answer:`` that are read."""
_WRAP = re.compile(r"\\(?:text|textbf|textrm|mathrm|mathbf|boxed)\s*\{([^{}]*)\}")
_EDGES = string.whitespace + string.punctuation


class Choice:
    """See `ChoiceRewardConfig`."""

    def __init__(self, config: ChoiceRewardConfig) -> None:
        self._config = config
        self._extract = None if config.own_pattern is None else re.compile(config.own_pattern)

    def problem(self, row: Mapping[str, Any]) -> str | None:
        """Why the row cannot be used."""
        if problem := gold_problem(row, self._config.answer_field):
            return problem
        letters = self._letters(self._options(row))
        golds = gold_answers(row, self._config.answer_field) or []
        if not all(gold.strip().upper() in letters for gold in golds):
            return f"the right answer is none of the letters {', '.join(letters)}"
        return None

    def __call__(self, row: Mapping[str, Any], response: str, *, ended: bool) -> float:
        """1.0 when the chosen letter is the right one."""
        need(self.problem(row))
        options = self._options(row)
        chosen = self.chosen(answer_part(response, self._config.strip_thinking), options)
        golds = gold_answers(row, self._config.answer_field) or []
        return float(chosen is not None and chosen in {gold.strip().upper() for gold in golds})

    def chosen(self, text: str, options: Mapping[str, str]) -> str | None:
        """The letter that an answer gives; None when it gives none, or several at once."""
        letters = "".join(self._letters(options))
        if self._extract is not None:
            found = last_match(self._extract, text)
            return None if found is None else _boxed_letter(found, letters, options)
        mode = self._config.extract
        found = None
        if mode != "answer_colon":
            found = next(
                (letter for box in boxes_backwards(text) if (letter := _boxed_letter(box, letters, options))), None
            )
        if found is None and mode != "boxed":
            found = next((letter for said in _named_answers(text) if (letter := _told(*said, letters, options))), None)
        if found is None and mode == "lenient":
            found = _loose(text, letters, options)
        return None if found == SEVERAL else found

    def _options(self, row: Mapping[str, Any]) -> dict[str, str]:
        name = self._config.options_field
        value = field(row, name) if name else MISSING
        parts = value if isinstance(value, list) else [value]
        if parts and all(isinstance(part, str) for part in parts):
            return {letter.upper(): text for letter, text in zip(self._config.letters, parts, strict=False)}
        return {str(k).upper(): str(v) for part in parts if isinstance(part, Mapping) for k, v in part.items()}

    def _letters(self, options: Mapping[str, str]) -> list[str]:
        return list(options) or [letter.upper() for letter in self._config.letters]


SEVERAL = "several"
"""Instead of a letter: the answer names more than one, and so none."""


def unwrapped(text: str) -> str:
    """``text`` without LaTeX around its words, dollars and Markdown's emphasis at its ends."""
    while (bare := _WRAP.sub(r"\1", text)) != text:
        text = bare
    return text.strip(string.whitespace + "$*_`")


def _boxed_letter(box: str, letters: str, options: Mapping[str, str]) -> str | None:
    said = unwrapped(box)
    if letter := _option(said, options):
        return letter
    group = f"[{re.escape(letters)}{re.escape(letters.lower())}]"
    found = re.match(rf"[\W_]*({group})(?:[\W_]*$|[.):])", said)
    return found[1].upper() if found else None


def _named_answers(text: str) -> Iterator[tuple[str, bool]]:
    """What stands behind ``Answer:`` and ``answer is``, the last first; and whether a small letter may be the answer.

    After "is" a small a is an article.
    """
    for found in reversed(list(_COLON.finditer(text))):
        line = text[found.end() : found.end() + _LONGEST_ANSWER].lstrip(string.whitespace + "*_`").partition("\n")[0]
        yield line, found[0][-1] in ":="


def _told(said: str, small: bool, letters: str, options: Mapping[str, str]) -> str | None:
    said = unwrapped(said)
    if letter := _option(said, options):
        return letter
    said = re.sub(r"^[\W_]*(?:the\s+)?(?:option|choice|letter)\b", "", said, flags=re.IGNORECASE)
    group = re.escape(letters)
    if re.match(rf"[\W_]*[{group}]\W*(?:\s(?:or|and)\s|[/&,])[\W_]*[{group}](?:\W*$|\W*[.,;/&]|\s+(?:or|and)\s)", said):
        return SEVERAL
    found = re.match(rf"[\W_]*([{group}])(?!\w)|[\W_]*([{group.lower()}])(?:[\W_]*$|[.):])", said)
    if found is None or (found[2] and not small):
        return None
    return (found[1] or found[2]).upper()


def _loose(text: str, letters: str, options: Mapping[str, str]) -> str | None:
    group = re.escape(letters)
    edge = r"(?:[^\w\n]|_)*"
    for pattern in (rf"\(([{group}])\)", rf"(?m)^{edge}([{group}]){edge}$", rf"(?m)^[ \t]*([{group}])[.):]\s"):
        if letter := last_match(re.compile(pattern), text):
            return letter
    stripped = text.strip(_EDGES)
    if len(stripped) == 1:
        return stripped.upper() if stripped.upper() in letters else None
    named = [letter for letter, option in options.items() if _says(text, option)]
    return named[0] if len(named) == 1 else None


def _option(said: str, options: Mapping[str, str]) -> str | None:
    """The one option whose text this is."""
    equal = [letter for letter, option in options.items() if _flat(option) and _flat(option) == _flat(said)]
    return equal[0] if len(equal) == 1 else None


def _flat(text: str) -> str:
    return " ".join(unwrapped(text).casefold().strip(_EDGES).split())


def _says(text: str, option: str) -> bool:
    return bool(option.strip()) and re.search(rf"(?<!\w){re.escape(option.strip())}(?!\w)", text, re.I) is not None
