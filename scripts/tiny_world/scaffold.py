"""Extra training signal for the judge, thrown away afterwards.

A verdict is seven tokens that depend on a dozen facts about two answers, too thin a signal to find the comparison of
slots quickly. So small linear heads also read the judge's hidden states: at every slot word of an answer, "was this
asked for?"; at the end of every answer, its aspects and its points. With them the slots are compared after a few
hundred steps, without them not after thousands. The shipped judge has only its language-model head.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from judging import Comparison
from torch.nn import functional as F
from world import quality

from nemotron.rewards.tiny_world import SLOT_WORDS


@dataclass(frozen=True, slots=True)
class Marks:
    """Positions in one judge prompt and what is true there."""

    slots: list[tuple[int, float]]
    """Slot words of the answers: position, 1.0 when the request has the word."""
    ends: list[tuple[int, list[float], int]]
    """End of each answer: position, four aspects as 0 or 1, points minus 1."""


class Marker:
    """Finds the marks of comparisons tokenized by ``tokenizer``."""

    def __init__(self, tokenizer: Any) -> None:
        self._slots = {tokenizer.encode(f" {word}")[0] for words in SLOT_WORDS.values() for word in words}
        self._answers = tokenizer.convert_tokens_to_ids("<|response_1|>")
        self._end = tokenizer.eos_token_id

    def marks(self, comparison: Comparison, prompt: list[int]) -> Marks:
        """Positions count from the start of ``prompt``."""
        start = prompt.index(self._answers)
        asked = set(prompt[:start]) & self._slots
        slots = [(i, float(prompt[i] in asked)) for i in range(start, len(prompt)) if prompt[i] in self._slots]
        ends = []
        responses = (comparison.response_1, comparison.response_2)
        for i, response in zip(
            [i for i in range(start, len(prompt)) if prompt[i] == self._end], responses, strict=True
        ):
            points, key = quality(comparison.request, response)
            ends.append((i, [float(k) for k in key[:4]], points - 1))
        return Marks(slots, ends)


class Scaffold(torch.nn.Module):
    """The linear heads."""

    def __init__(self, hidden: int) -> None:
        super().__init__()
        self.slot = torch.nn.Linear(hidden, 1)
        self.aspects = torch.nn.Linear(hidden, 4)
        self.points = torch.nn.Linear(hidden, 5)

    def forward(self, hidden: torch.Tensor, marks: list[Marks]) -> torch.Tensor:
        """Sum of the mean losses (nats) of the three heads; ``hidden`` is [rows, positions, hidden]."""
        slots = [(row, at, truth) for row, m in enumerate(marks) for at, truth in m.slots]
        ends = [(row, *end) for row, m in enumerate(marks) for end in m.ends]
        rows, places, truths = zip(*slots, strict=True)
        loss = F.binary_cross_entropy_with_logits(self.slot(hidden[rows, places])[:, 0], torch.tensor(truths))
        rows, places, aspects, points = zip(*ends, strict=True)
        at_end = hidden[rows, places]
        loss = loss + F.binary_cross_entropy_with_logits(self.aspects(at_end), torch.tensor(aspects))
        return loss + F.cross_entropy(self.points(at_end), torch.tensor(points))
