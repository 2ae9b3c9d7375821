"""From sampled groups to the tensors a loss needs, and back.

Legend: N rows (prompt-major), T longest response of the batch, S = T + 1. Column 0 stands for the last prompt token:
losses shift their inputs by one (as NeMo-RL's do), so what belongs to response token t sits in column t + 1.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from nemotron.contracts.samples import Completion, Group


@dataclass(frozen=True, slots=True)
class ResponseTensors:
    """Sampled responses as right-padded tensors."""

    token_mask: Tensor
    """[N,S] 1.0 on response tokens, 0.0 on column 0 and on padding."""
    generation_logprobs: Tensor
    """[N,S] log-probability each token was drawn with, 0.0 elsewhere."""
    lengths: Tensor
    """[N] int64 response tokens."""
    truncated: Tensor
    """[N] bool, True where the length limit cut the response."""


def rows_of(groups: Sequence[Group]) -> list[Completion]:
    """All completions, prompt-major."""
    return [completion for group in groups for completion in group.completions]


def response_tensors(groups: Sequence[Group]) -> ResponseTensors:
    """Pack the responses of ``groups`` ([N,S] layout)."""
    rows = rows_of(groups)
    lengths = torch.tensor([len(row.token_ids) for row in rows])
    width = int(lengths.max()) + 1
    logprobs = torch.zeros(len(rows), width)
    for i, row in enumerate(rows):
        logprobs[i, 1 : len(row.logprobs) + 1] = torch.tensor(row.logprobs)
    columns = torch.arange(width)
    mask = (columns >= 1) & (columns <= lengths[:, None])
    return ResponseTensors(
        token_mask=mask.float(),
        generation_logprobs=logprobs,
        lengths=lengths,
        truncated=torch.tensor([row.truncated for row in rows]),
    )


def in_columns(rows: Sequence[Tensor], width: int) -> Tensor:
    """Per-token values of each row ([L_i], response tokens) -> [N,width] in columns 1.., 0.0 elsewhere."""
    out = torch.zeros(len(rows), width)
    for i, values in enumerate(rows):
        out[i, 1 : values.shape[0] + 1] = values
    return out


def request_seed(*parts: int | str) -> int:
    """A 63-bit seed that depends on nothing but ``parts``: the same request draws the same tokens in every run.

    Example: ``request_seed(run_seed, step, prompt_index, sample_index)``.
    """
    digest = hashlib.blake2b("/".join(map(str, parts)).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 1
