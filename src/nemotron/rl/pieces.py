"""How much of a large table of logits exists at once.

A vocabulary of 151,936 words makes 608 KB of float32 logits a token, and a log-softmax with its gradient holds several
such tables: for the tokens of one micro-batch that is more than the model.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch

LOGITS = {"cpu": 2**25, "cuda": 2**27}
"""Logits that are computed at once, by device: 128 MB of float32, 512 MB."""


def rows_at_once(vocabulary: int, device: torch.device) -> int:
    """Tokens whose logits may exist at the same time."""
    return max(1, LOGITS.get(device.type, LOGITS["cuda"]) // vocabulary)


def pieces(rows: int, vocabulary: int, device: torch.device) -> Iterator[slice]:
    """``rows`` cut into pieces of as many as may have logits at once."""
    size = rows_at_once(vocabulary, device)
    for start in range(0, rows, size):
        yield slice(start, min(start + size, rows))
