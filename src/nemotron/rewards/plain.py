"""Functions that look at the text alone: exact, choice, format, and the tiny world's own."""

from __future__ import annotations

import re
import string
import unicodedata
from collections.abc import Mapping
from typing import Any

from nemotron.config.schema.rewards import (
    ChoiceRewardConfig,
    ExactRewardConfig,
    FormatRewardConfig,
    TinyWorldRewardConfig,
)
from nemotron.errors import DataError
from nemotron.rewards import tiny_world
from nemotron.rewards.text import MISSING, answer_part, field, gold_answers, gold_problem, last_boxed, last_match
from nemotron.rewards.types import VerifierError


def need(problem: str | None) -> None:
    """Raise `VerifierError` when a row cannot be used."""
    if problem:
        raise VerifierError(problem)


class Exact:
    """See `ExactRewardConfig`."""

    def __init__(self, config: ExactRewardConfig) -> None:
        self._config = config
        self._extract = re.compile(config.extract) if config.extract else None

    def problem(self, row: Mapping[str, Any]) -> str | None:
        """Why the row cannot be used."""
        return gold_problem(row, self._config.answer_field)

    def __call__(self, row: Mapping[str, Any], response: str, *, ended: bool) -> float:
        """1.0 when the answer is one of the right ones."""
        need(self.problem(row))
        text: str | None = answer_part(response, self._config.strip_thinking)
        if self._extract is not None:
            text = last_match(self._extract, text or "")
        if text is None:
            return 0.0
        found = self.normal(text)
        return float(
            any(self._stands(self.normal(gold), found) for gold in gold_answers(row, self._config.answer_field) or [])
        )

    def normal(self, text: str) -> str:
        """``text`` with all differences removed that do not count."""
        config = self._config
        if config.normalize_unicode:
            text = unicodedata.normalize("NFKC", text)
        if config.ignore_case:
            text = text.casefold()
        if config.ignore_punctuation:
            text = "".join(c for c in text if not unicodedata.category(c).startswith(("P", "S")))
        if config.ignore_articles:
            text = re.sub(r"\b(a|an|the)\b", " ", text, flags=re.IGNORECASE)
        return " ".join(text.split()) if config.collapse_whitespace else text

    def _stands(self, gold: str, found: str) -> bool:
        how = self._config.match
        if how == "equal":
            return gold == found
        if not gold:
            return False
        # Word boundaries, so that 4 does not stand in 42; only where the answer itself begins or ends with a letter.
        before = r"(?<!\w)" if gold[0].isalnum() else ""
        after = r"(?!\w)" if gold[-1].isalnum() else ""
        pattern = f"{before}{re.escape(gold)}{after}"
        anchored = {"contains": pattern, "starts_with": rf"\A{pattern}", "ends_with": rf"{pattern}\Z"}
        return re.search(anchored[how], found) is not None


class Choice:
    """See `ChoiceRewardConfig`."""

    def __init__(self, config: ChoiceRewardConfig) -> None:
        self._config = config
        builtin = config.extract in ("lenient", "boxed", "answer_colon")
        self._extract = None if builtin else re.compile(config.extract)

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
        """The letter that an answer gives; None when it gives none."""
        letters = "".join(self._letters(options))
        if self._extract is not None:
            return self._letter(last_match(self._extract, text), letters)
        boxed = last_boxed(text)
        if boxed is not None and self._config.extract != "answer_colon":
            boxed = re.sub(r"\\(?:text|mathrm|mathbf|textbf)\s*\{(.*)\}", r"\1", boxed.strip())
            return self._letter(boxed, letters)
        group = re.escape(letters)
        # After a colon any case will do; after "is" a small a may be an article.
        colon = re.compile(
            rf"(?i:answer\s*(?:is)?[\s*_]*[:=])[\s*_`(\[]*([{group}{group.lower()}])(?!\w)"
            rf"|(?i:answer\s+is)\s+[*_`(\[]*([{group}])(?!\w)"
        )
        if self._config.extract != "boxed" and (letter := last_match(colon, text)):
            return letter.upper()
        return self._loose(text, letters, options) if self._config.extract == "lenient" else None

    def _loose(self, text: str, letters: str, options: Mapping[str, str]) -> str | None:
        group = re.escape(letters)
        for pattern in (rf"\(([{group}])\)", rf"(?m)^\W*([{group}])\W*$", rf"(?m)^\s*([{group}])[.):]\s"):
            if letter := last_match(re.compile(pattern), text):
                return letter
        stripped = text.strip(string.whitespace + string.punctuation)
        if len(stripped) == 1:
            return self._letter(stripped, letters)
        named = [letter for letter, option in options.items() if _says(text, option)]
        return named[0] if len(named) == 1 else None

    @staticmethod
    def _letter(text: str | None, letters: str) -> str | None:
        bare = (text or "").strip(string.whitespace + string.punctuation).upper()
        head = re.match(r"([A-Z])(?!\w)", bare)
        return head.group(1) if head and head.group(1) in letters else None

    def _options(self, row: Mapping[str, Any]) -> dict[str, str]:
        name = self._config.options_field
        value = field(row, name) if name else MISSING
        parts = value if isinstance(value, list) else [value]
        if parts and all(isinstance(part, str) for part in parts):
            return {letter.upper(): text for letter, text in zip(self._config.letters, parts, strict=False)}
        return {str(k).upper(): str(v) for part in parts if isinstance(part, Mapping) for k, v in part.items()}

    def _letters(self, options: Mapping[str, str]) -> list[str]:
        return list(options) or [letter.upper() for letter in self._config.letters]


class Format:
    """See `FormatRewardConfig`."""

    def __init__(self, config: FormatRewardConfig) -> None:
        self._config = config
        self._require = [re.compile(pattern) for pattern in config.require]
        self._forbid = [re.compile(pattern) for pattern in config.forbid]

    def problem(self, row: Mapping[str, Any]) -> str | None:
        """Any row will do."""
        return None

    def __call__(self, row: Mapping[str, Any], response: str, *, ended: bool) -> float:
        """Share of the demands met, or 1.0 only for all."""
        config = self._config
        met: list[bool] = []
        if config.tags:
            met.append(self._tags_stand(response))
        met += [pattern.search(response) is not None for pattern in self._require]
        met += [pattern.search(response) is None for pattern in self._forbid]
        if config.min_characters:
            met.append(len(response) >= config.min_characters)
        if config.max_characters is not None:
            met.append(len(response) <= config.max_characters)
        if config.require_end:
            met.append(ended)
        return float(all(met)) if config.score == "all" else sum(met) / len(met)

    def _tags_stand(self, response: str) -> bool:
        position, outside = 0, ""
        for tag in self._config.tags:
            opening, closing = f"<{tag}>", f"</{tag}>"
            prefilled = tag in self._config.prefilled
            if response.count(opening) != (0 if prefilled else 1) or response.count(closing) != 1:
                return False
            start = position if prefilled else response.find(opening, position)
            end = response.find(closing, max(start, 0))
            inner = start if prefilled else start + len(opening)
            if start < position or end < inner or not response[inner:end].strip():
                return False
            outside += response[position:start]
            position = end + len(closing)
        outside += response[position:]
        return not (self._config.only_tags and outside.strip())


class TinyWorld:
    """See `TinyWorldRewardConfig`."""

    def __init__(self, config: TinyWorldRewardConfig) -> None:
        self._aspect = config.aspect

    def problem(self, row: Mapping[str, Any]) -> str | None:
        """Why the row cannot be used."""
        world = row.get("world")
        known = isinstance(world, Mapping) and isinstance(world.get("slots"), Mapping) and "intent" in world
        return None if known else "the row has no `world` with `intent` and `slots`"

    def __call__(self, row: Mapping[str, Any], response: str, *, ended: bool) -> float:
        """1.0 when the aspect is right."""
        try:
            return float(tiny_world.score(row, response, ended=ended)[self._aspect])
        except DataError as error:
            raise VerifierError(error.message) from error


def _says(text: str, option: str) -> bool:
    return bool(option.strip()) and re.search(rf"(?<!\w){re.escape(option.strip())}(?!\w)", text, re.I) is not None
