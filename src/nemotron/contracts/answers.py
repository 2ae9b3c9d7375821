"""What counts as the answer in what a model wrote: the one definition for rewards, judges and verdicts.

A reasoning model thinks between ``<think>`` and ``</think>`` and answers after it. The answer is what follows the last
``</think>``; what follows a ``<think>`` that is never closed is a thought that was not finished, and no answer.
"""

from __future__ import annotations

from dataclasses import dataclass

THINK = "<think>"
THINK_END = "</think>"


@dataclass(frozen=True, slots=True)
class Reply:
    """What a model wrote, in its two parts."""

    reasoning: str
    """Everything that is thought and not said, finished or not, without the tags at its ends."""
    answer: str
    """Empty when there is none. White space is kept."""


def split_reply(text: str) -> Reply:
    """Thoughts and answer of a text."""
    thought, _, rest = text.rpartition(THINK_END)
    answer, _, unfinished = rest.partition(THINK)
    parts = [thought.strip().removeprefix(THINK).strip(), unfinished.strip()]
    return Reply("\n".join(part for part in parts if part), answer)


def answer_of(text: str) -> str:
    """The answer in a text, empty when it has none."""
    return split_reply(text).answer


def complete_reply(prompt_end: str, text: str) -> str:
    """``text`` as it has to be read after a prompt that ends in ``prompt_end``.

    Many chat templates open ``<think>`` themselves. A model that then never closes it has written a thought and no tag;
    the tag of the prompt is put before it, so that nobody takes the thought for an answer.
    """
    opened = prompt_end.rstrip().endswith(THINK)
    return THINK + text if opened and THINK_END not in text else text
