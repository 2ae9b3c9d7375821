"""Functions that look at the text alone: exact, format, and the tiny world's own."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Mapping
from typing import Any

from nemotron.config.schema.rewards import (
    ExactRewardConfig,
    FormatRewardConfig,
    TinyWorldRewardConfig,
)
from nemotron.errors import DataError
from nemotron.rewards import tiny_world
from nemotron.rewards.text import answer_part, gold_answers, gold_problem, last_match
from nemotron.rewards.types import VerifierError, need


class Exact:
    """See `ExactRewardConfig`."""

    def __init__(self, config: ExactRewardConfig) -> None:
        self._config = config
        self._extract = re.compile(config.extract) if config.extract else None

    def problem(self, row: Mapping[str, Any]) -> str | None:
        """Why the row cannot be used."""
        if problem := gold_problem(row, self._config.answer_field):
            return problem
        golds = gold_answers(row, self._config.answer_field) or []
        blank = not all(self.normal(gold).strip() for gold in golds)
        return "nothing is left of the right answer when it is normalised" if blank else None

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
