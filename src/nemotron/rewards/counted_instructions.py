"""More checks of instructions, under the names that NeMo-Gym's rows use beyond IFEval's: those that need no language.

What each asks for is what its rows say to the model. ``words:start_verb`` is not here: it takes a tagger of English.
"""

from __future__ import annotations

import re
import string
from itertools import pairwise

from nemotron.rewards.instructions import RELATIONS, instruction, sentence_texts, words

_LISTED = (
    "emma liam sophia jackson olivia noah ava lucas isabella mason mia ethan charlotte alexander amelia benjamin "
    "harper leo zoe daniel chloe samuel lily matthew grace owen abigail gabriel ella jacob scarlett nathan victoria "
    "elijah layla nicholas audrey david hannah christopher penelope thomas nora andrew aria joseph claire ryan stella "
    "jonathan"
)
_NAMES = frozenset(_LISTED.split())
"""The names that the prompts of ``count:person_names`` list."""
_SMALL_WORDS = (
    # articles, pronouns, possessives
    "a an the i me my mine myself we us our ours ourselves you your yours yourself yourselves he him his himself she "
    "her hers herself it its itself they them their theirs themselves this that these those who whom whose which what "
    # auxiliary verbs
    "am is are was were be been being have has had having do does did doing will would shall should can could may "
    "might must ought don doesn didn isn aren wasn weren hasn haven hadn won wouldn shouldn couldn mustn needn ain "
    # conjunctions and prepositions
    "and or but nor so yet if because as until while although though since unless of at by for with about against "
    "between into through during before after above below to from up down in out on off over under "
    # adverbs of place, time, degree
    "again further then once here there when where why how all any both each few more most other some such no not "
    "only own same than too very just now also s t d m ll re ve"
)
_STOP_WORDS = frozenset(_SMALL_WORDS.split())
_TIMES = (1, 2, 3, 5, 7)
"""How often the five keywords of ``count:keywords_multiple`` are asked for."""


def _bare(word: str) -> str:
    return word.strip(string.punctuation).lower()


@instruction("last_word:last_word_answer", last_word="str")
def _last_word(text: str, last_word: str) -> bool:
    return _bare(text.split()[-1]) == _bare(last_word)


@instruction("last_word:last_word_sent", last_word="str")
def _last_words(text: str, last_word: str) -> bool:
    return all(_bare(sentence.split()[-1]) == _bare(last_word) for sentence in sentence_texts(text))


@instruction("first_word:first_word_answer", first_word="str")
def _first_word(text: str, first_word: str) -> bool:
    return _bare(text.split()[0]) == _bare(first_word)


@instruction("first_word:first_word_sent", first_word="str")
def _first_words(text: str, first_word: str) -> bool:
    return all(_bare(sentence.split()[0]) == _bare(first_word) for sentence in sentence_texts(text))


@instruction("count:lowercase_counting", N="int")
def _lowercase(text: str, N: int) -> bool:
    """At most so many words in small letters."""
    return sum(word.islower() for word in words(text)) <= N


@instruction("letters:letter_counting", N="int", relation="relation")
def _letters(text: str, N: int, relation: str) -> bool:
    return RELATIONS[relation](sum(letter.isalpha() for letter in text), N)


@instruction("letters:letter_counting2", letter="str", let_frequency="int", let_relation="relation")
def _letter(text: str, letter: str, let_frequency: int, let_relation: str) -> bool:
    return RELATIONS[let_relation](text.lower().count(letter.lower()), let_frequency)


@instruction("paragraphs:paragraphs")
def _two_paragraphs(text: str) -> bool:
    """Two paragraphs parted by ``***``."""
    parts = [part.strip() for part in text.split("***")]
    return all(parts[1:-1]) and sum(map(bool, parts)) == 2


@instruction("paragraphs:paragraphs2")
def _two_blocks(text: str) -> bool:
    """Two paragraphs parted by a blank line."""
    return sum(bool(part.strip()) for part in re.split(r"\n[ \t]*\n", text)) == 2


@instruction("count:keywords_multiple", keyword1="str", keyword2="str", keyword3="str", keyword4="str", keyword5="str")
def _keywords(text: str, **keywords: str) -> bool:
    """Once, twice, three, five and seven times."""
    said = [_bare(word) for word in words(text)]
    return all(said.count(_bare(keywords[f"keyword{i}"])) == times for i, times in enumerate(_TIMES, 1))


@instruction("format:line_indent")
def _stairs(text: str) -> bool:
    """Every line begins further to the right than the one before it."""
    lines = [line.expandtabs() for line in text.split("\n") if line.strip()]
    steps = [len(line) - len(line.lstrip()) for line in lines]
    return len(steps) > 1 and all(before < after for before, after in pairwise(steps))


@instruction("ratio:stop_words", percentage="number")
def _stop_words(text: str, percentage: float) -> bool:
    said = [word.lower() for word in words(text)]
    return sum(word in _STOP_WORDS for word in said) * 100 <= percentage * len(said)


@instruction("count:person_names", N="int")
def _persons(text: str, N: int) -> bool:
    return len(_NAMES & {word.lower() for word in words(text)}) >= N
