"""Log-probabilities of the reference policy for every pair, computed once and kept on disk.

The reference is the policy before training and the pairs never change, so nothing has to be computed twice: not in the
second epoch, not after a crash, and while training runs only one model is in memory. Pairs are kept in files of
``CHUNK`` pairs; each says of which weights and tokens it is, and one that is of others, or damaged, is made again.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from nemotron.disk.atomic import write_atomic
from nemotron.disk.documents import regular
from nemotron.rl.pairs import TokenPair
from nemotron.rl.policy import Policy

CHUNK = 4096
"""Pairs of one file."""


@dataclass(frozen=True)
class ReferenceCache:
    """The files of one run."""

    folder: Path
    weights: str
    """Names the weights of the reference and the precision of the arithmetic, e.g. by a content hash."""
    load: Callable[[], Policy]
    """Loads the reference; called at most once, and only when something is missing."""
    batch_size: int
    """Pairs per forward pass."""
    report: Callable[[str], None] = print
    """Called with a line of progress before a chunk is computed."""

    def in_whole_batches(self, count: int) -> int:
        """``count`` pairs and those that share the last forward pass with them, however many more there may be."""
        full, rest = divmod(count, CHUNK)
        return full * CHUNK + min(CHUNK, -(-rest // self.batch_size) * self.batch_size)

    def fill(self, name: str, pairs: Sequence[TokenPair]) -> list[TokenPair]:
        """``pairs`` with their ``reference``; ``name`` tells data sets apart on disk.

        Raises:
            ArtifactError: the reference cannot be loaded.
            OutputError: a file cannot be written.
        """
        filled: list[TokenPair] = []
        for start in range(0, len(pairs), CHUNK):
            chunk = pairs[start : start + CHUNK]
            path = self.folder / f"{name}-{start // CHUNK:05d}.safetensors"
            key = _fingerprint(self.weights, chunk)
            values = _read(path, key)
            if values is None:
                self.report(f"reference log-probs of {len(pairs)} {name} pairs")
                values = torch.cat(list(self._compute(chunk)))
                path.parent.mkdir(parents=True, exist_ok=True)
                write_atomic(path, save({"logprobs": values}, metadata={"fingerprint": key}))
            filled += _apart(chunk, values)
        return filled

    @torch.no_grad()
    def _compute(self, pairs: Sequence[TokenPair]) -> Iterator[Tensor]:
        """The values of all answers, end to end."""
        policy = self.load()
        for start in range(0, len(pairs), self.batch_size):
            groups = [pair.group for pair in pairs[start : start + self.batch_size]]
            rows = policy.response_logprobs(groups).cpu()
            answers = [answer for group in groups for answer in group.completions]
            for row, answer in zip(rows, answers, strict=True):
                yield row[: len(answer.token_ids)]


def _apart(pairs: Sequence[TokenPair], values: Tensor) -> Iterator[TokenPair]:
    lengths = [len(answer.token_ids) for pair in pairs for answer in pair.group.completions]
    rows = torch.split(values, lengths)
    for i, pair in enumerate(pairs):
        yield replace(pair, reference=(rows[2 * i], rows[2 * i + 1]))


def _read(path: Path, key: str) -> Tensor | None:
    """The values of a file that is whole and of ``key``."""
    try:
        with safe_open(regular(path), framework="pt") as file:
            if (file.metadata() or {}).get("fingerprint") != key:
                return None
            values: Tensor = file.get_tensor("logprobs")
            return values
    except (OSError, SafetensorError):
        # Missing, or cut short by something that is not us: files appear whole. Computing it again mends both.
        return None


def _fingerprint(weights: str, pairs: Sequence[TokenPair]) -> str:
    """Of everything the values depend on; tokens stand for data, template and limits alike."""
    digest = hashlib.sha256(weights.encode())
    for pair in pairs:
        ids = [pair.group.prompt_ids, *(answer.token_ids for answer in pair.group.completions)]
        digest.update(json.dumps(ids, separators=(",", ":")).encode())
    return f"sha256:{digest.hexdigest()}"
