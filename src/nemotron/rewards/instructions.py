"""Checks of instructions under the names of IFEval (Zhou et al. 2023), written anew; those that need no language.

A row names its checks in ``instruction_id_list`` and their arguments, in the same order, in ``kwargs``. An empty answer
follows no instruction. Relations: ``at least``, ``at most``, ``less than``, ``more than``, ``exactly``.
"""

from __future__ import annotations

import json
import operator
import re
import string
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from nemotron.config.schema.rewards import InstructionsRewardConfig
from nemotron.rewards.text import MISSING, answer_part, field
from nemotron.rewards.types import VerifierError
from nemotron.suggest import closest

RELATIONS: dict[str, Callable[[int, int], bool]] = {
    "at least": operator.ge,
    "at most": operator.le,
    "less than": operator.lt,
    "more than": operator.gt,
    "exactly": operator.eq,
}
Check = Callable[..., bool]


@dataclass(frozen=True, slots=True)
class Instruction:
    """A check and the arguments it takes, by name with their type: ``int``, ``number``, ``str``, ``list`` of texts,
    ``relation``."""

    check: Check
    arguments: Mapping[str, str]


INSTRUCTIONS: dict[str, Instruction] = {}
"""Checks by the name that a row uses."""


def instruction(name: str, **arguments: str) -> Callable[[Check], Check]:
    """Register a check under the name that rows use, with the types of its arguments."""

    def add(check: Check) -> Check:
        INSTRUCTIONS[name] = Instruction(check, arguments)
        return check

    return add


class Instructions:
    """See `InstructionsRewardConfig`."""

    def __init__(self, config: InstructionsRewardConfig) -> None:
        self._config = config

    def problem(self, row: Mapping[str, Any]) -> str | None:
        """Why the row cannot be used."""
        found = self._checks(row)
        return found if isinstance(found, str) else None

    def __call__(self, row: Mapping[str, Any], response: str, *, ended: bool) -> float:
        """Share of the instructions that are followed, or 1.0 only for all."""
        checks = self._checks(row)
        if isinstance(checks, str):
            raise VerifierError(checks)
        text = answer_part(response, self._config.strip_thinking).strip()
        followed = [bool(text) and INSTRUCTIONS[name].check(text, **arguments) for name, arguments in checks]
        mode = self._config.score or ("share" if row.get("grading_mode") == "fraction" else "all")
        return float(all(followed)) if mode == "all" else sum(followed) / len(followed)

    def _checks(self, row: Mapping[str, Any]) -> list[tuple[str, dict[str, Any]]] | str:
        """(name, arguments) of every instruction of a row, or why there are none."""
        names, given = field(row, self._config.ids_field), field(row, self._config.kwargs_field)
        if not isinstance(names, list) or not names:
            return f"the row has no list `{self._config.ids_field}`"
        given = [None] * len(names) if given is MISSING else given
        if not isinstance(given, list) or len(given) != len(names):
            return f"`{self._config.kwargs_field}` must be a list as long as `{self._config.ids_field}`"
        checks = []
        for name, arguments in zip(names, given, strict=True):
            if not isinstance(name, str) or name not in INSTRUCTIONS:
                guess = closest(str(name)[:100], INSTRUCTIONS)
                return f"there is no instruction `{str(name)[:100]}`" + (f"; did you mean `{guess}`?" if guess else "")
            if arguments is not None and not isinstance(arguments, Mapping):
                return f"the arguments of `{name}` in `{self._config.kwargs_field}` must be an object"
            # Tables give every row the columns of all instructions and fill them with null.
            arguments = {key: _whole(value) for key, value in (arguments or {}).items() if value is not None}
            wanted = INSTRUCTIONS[name].arguments
            for key, kind in wanted.items():
                if fault := _fault(arguments.get(key), kind):
                    return f"the instruction `{name}` needs `{key}`: {fault}"
            checks.append((name, {key: arguments[key] for key in wanted}))
        return checks


def _whole(value: Any) -> Any:
    """A table with gaps has its counts as floats."""
    return int(value) if isinstance(value, float) and value.is_integer() else value


def _fault(value: Any, kind: str) -> str | None:
    fits = {
        "int": isinstance(value, int) and not isinstance(value, bool) and value >= 0,
        "number": isinstance(value, int | float) and not isinstance(value, bool) and value >= 0,
        "str": isinstance(value, str) and bool(value.strip()),
        "list": isinstance(value, list) and bool(value) and all(isinstance(item, str) and item for item in value),
        "relation": isinstance(value, str) and value in RELATIONS,
    }
    said = {"int": "a whole number", "number": "a number", "str": "a text", "list": "a list of texts"}
    return None if fits[kind] else f"expected {said.get(kind, ' or '.join(RELATIONS))}"


def words(text: str) -> list[str]:
    """Runs of letters, digits and `_`."""
    return re.findall(r"\w+", text)


def sentences(text: str) -> int:
    """Runs that end in ``.``, ``!`` or ``?`` before white space or the end; what follows the last one counts too."""
    ends = list(re.finditer(r"[.!?]+[\"')\]]*(?=\s|$)", text))
    rest = text[ends[-1].end() :] if ends else text
    return len(ends) + bool(words(rest))


def sentence_texts(text: str) -> list[str]:
    """The sentences of a text, each with its end mark."""
    ends = [match.end() for match in re.finditer(r"[.!?]+[\"')\]]*(?=\s|$)", text)]
    parts = [text[start:end] for start, end in zip([0, *ends], [*ends, len(text)], strict=True)]
    return [part for part in parts if words(part)]


@instruction("keywords:existence", keywords="list")
def _existence(text: str, keywords: list[str]) -> bool:
    return all(re.search(re.escape(word), text, re.IGNORECASE) for word in keywords)


@instruction("keywords:forbidden_words", forbidden_words="list")
def _forbidden(text: str, forbidden_words: list[str]) -> bool:
    return not any(re.search(rf"(?<!\w){re.escape(word)}(?!\w)", text, re.IGNORECASE) for word in forbidden_words)


@instruction("keywords:frequency", keyword="str", frequency="int", relation="relation")
def _frequency(text: str, keyword: str, frequency: int, relation: str) -> bool:
    return RELATIONS[relation](len(re.findall(re.escape(keyword), text, re.IGNORECASE)), frequency)


@instruction("keywords:letter_frequency", letter="str", let_frequency="int", let_relation="relation")
def _letters(text: str, letter: str, let_frequency: int, let_relation: str) -> bool:
    return RELATIONS[let_relation](text.lower().count(letter.lower()), let_frequency)


@instruction("length_constraints:number_words", num_words="int", relation="relation")
def _number_words(text: str, num_words: int, relation: str) -> bool:
    return RELATIONS[relation](len(words(text)), num_words)


@instruction("length_constraints:number_characters", num_characters="int", relation="relation")
def _number_characters(text: str, num_characters: int, relation: str) -> bool:
    return RELATIONS[relation](len(text), num_characters)


@instruction("length_constraints:number_sentences", num_sentences="int", relation="relation")
def _number_sentences(text: str, num_sentences: int, relation: str) -> bool:
    return RELATIONS[relation](sentences(text), num_sentences)


@instruction("length_constraints:number_paragraphs", num_paragraphs="int")
def _number_paragraphs(text: str, num_paragraphs: int) -> bool:
    """Paragraphs parted by ``***``; only the first and the last may be empty."""
    parts = [part.strip() for part in text.split("***")]
    return all(parts[1:-1]) and sum(map(bool, parts)) == num_paragraphs


@instruction("length_constraints:nth_paragraph_first_word", num_paragraphs="int", nth_paragraph="int", first_word="str")
def _first_word(text: str, num_paragraphs: int, nth_paragraph: int, first_word: str) -> bool:
    """Paragraphs parted by blank lines."""
    parts = [part for part in re.split(r"\n\s*\n", text) if part.strip()]
    if len(parts) != num_paragraphs or not 1 <= nth_paragraph <= len(parts):
        return False
    return parts[nth_paragraph - 1].split()[0].strip(string.punctuation).lower() == first_word.lower()


@instruction("detectable_format:number_bullet_lists", num_bullets="int")
def _bullets(text: str, num_bullets: int) -> bool:
    return len(re.findall(r"^[ \t]*(?:\*(?!\*)|-|\+)[ \t]*\S", text, re.MULTILINE)) == num_bullets


@instruction("detectable_format:number_highlighted_sections", num_highlights="int")
def _highlights(text: str, num_highlights: int) -> bool:
    return len(re.findall(r"\*\*[^\n*]*[^\s*][^\n*]*\*\*|\*[^\n*]*[^\s*][^\n*]*\*", text)) >= num_highlights


@instruction("detectable_format:multiple_sections", section_spliter="str", num_sections="int")
def _sections(text: str, section_spliter: str, num_sections: int) -> bool:
    return len(re.findall(rf"{re.escape(section_spliter.strip())}\s*\d+", text)) >= num_sections


@instruction("detectable_format:title")
def _title(text: str) -> bool:
    return any(title.strip() for title in re.findall(r"<<([^\n<>]+)>>", text))


@instruction("detectable_format:json_format")
def _json(text: str) -> bool:
    bare = re.sub(r"\A```(?:json)?\s*|\s*```\Z", "", text, flags=re.IGNORECASE)
    try:
        json.loads(bare)
    except (ValueError, RecursionError):
        return False
    return True


@instruction("detectable_format:constrained_response")
def _constrained(text: str) -> bool:
    return any(f"My answer is {word}." in text for word in ("yes", "no", "maybe"))


@instruction("detectable_content:number_placeholders", num_placeholders="int")
def _placeholders(text: str, num_placeholders: int) -> bool:
    return len(re.findall(r"\[[^\[\]]+\]", text)) >= num_placeholders


@instruction("detectable_content:postscript", postscript_marker="str")
def _postscript(text: str, postscript_marker: str) -> bool:
    marker = r"\s*".join(re.escape(letter) for letter in postscript_marker if not letter.isspace())
    return re.search(rf"^\s*{marker}\s*\S", text, re.IGNORECASE | re.MULTILINE) is not None


@instruction("startend:end_checker", end_phrase="str")
def _end(text: str, end_phrase: str) -> bool:
    return text.strip('"').lower().endswith(end_phrase.strip().lower())


@instruction("startend:start_checker", start_phrase="str")
def _start(text: str, start_phrase: str) -> bool:
    return text.strip('"').lower().startswith(start_phrase.strip().lower())


@instruction("startend:quotation")
def _quotation(text: str) -> bool:
    return len(text) > 1 and text[0] == text[-1] == '"'


@instruction("change_case:english_capital")
def _upper(text: str) -> bool:
    return text.isupper()


@instruction("change_case:english_lowercase")
def _lower(text: str) -> bool:
    return text.islower()


@instruction("change_case:capital_word_frequency", capital_frequency="int", capital_relation="relation")
def _capital_words(text: str, capital_frequency: int, capital_relation: str) -> bool:
    return RELATIONS[capital_relation](sum(word.isupper() for word in words(text)), capital_frequency)


@instruction("punctuation:no_comma")
def _no_comma(text: str) -> bool:
    return "," not in text


@instruction("combination:repeat_prompt", prompt_to_repeat="str")
def _repeat(text: str, prompt_to_repeat: str) -> bool:
    return text.lower().startswith(prompt_to_repeat.strip().lower())


@instruction("combination:two_responses")
def _two(text: str) -> bool:
    """Two different answers parted by six asterisks."""
    parts = [part.strip() for part in text.split("******")]
    return len(parts) == 2 and all(parts) and parts[0] != parts[1]
