"""The work both sides of ``rm_vs_trl.py`` do: the pairs of ``dpo_vs_trl.py``. Imports nothing but the standard
library."""

from __future__ import annotations

from dpo_work import Sizes, pairs
from work import Asked

END = 1


def token_pairs(asked: Asked, sizes: Sizes) -> list[tuple[list[int], list[int], list[int]]]:
    """Prompt, chosen and rejected tokens of pairs. Word ``w<i>`` is token ``i + 3``; an answer ends with ``<eos>``."""

    def ids(text: str) -> list[int]:
        return [int(word.removeprefix("w")) + 3 for word in text.split()]

    return [
        (ids(pair["prompt"]), [*ids(pair["chosen"]), END], [*ids(pair["rejected"]), END])
        for pair in pairs(asked, sizes)
    ]
