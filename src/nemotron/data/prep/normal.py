"""The identity of a row: hashes of its bytes, of its prompt and of its texts, for many rows at once.

Every hash is xxh3, whose values are fixed for good. Working on many rows at once keeps the cost per row below a
microsecond: the texts are joined, brought into normal form by one ``bytes.translate``, and split again.
"""

from __future__ import annotations

import string
from collections.abc import Sequence
from typing import Any

import numpy as np
import xxhash
from numpy.typing import NDArray

U64 = NDArray[np.uint64]

_LOWER = bytes(b + 32 if 65 <= b <= 90 else b for b in range(256))
_DROPPED = (string.whitespace + "\"'`").encode()
_SEPARATOR = "\x00"


def normal_form(text: str) -> bytes:
    """Two prompts are near duplicates when these are equal: ASCII case, white space and quotes do not count."""
    return text.encode().translate(_LOWER, _DROPPED)


def prompt_digests(texts: Sequence[str]) -> list[bytes]:
    """64-bit hash of the normal form of each text."""
    forms = _SEPARATOR.join(texts).encode().translate(_LOWER, _DROPPED).split(_SEPARATOR.encode())
    if len(forms) != len(texts):
        # No texts at all, or one of them holds the separator itself.
        forms = [normal_form(text) for text in texts]
    return list(map(xxhash.xxh3_64_digest, forms))


def text_digests(texts: Sequence[str]) -> list[bytes]:
    """64-bit hash of each text as it is."""
    return list(map(xxhash.xxh3_64_digest, map(str.encode, texts)))


def line_digests(lines: Sequence[bytes]) -> list[bytes]:
    """128-bit hash of each line."""
    return list(map(xxhash.xxh3_128_digest, lines))


NO_TEXT = xxhash.xxh3_64_digest(b"")
"""The digest of an answer that a row does not have."""


def hashes(digests: Sequence[bytes]) -> U64:
    """Digests as numbers, one or two of each: of a line, the first orders rows, both together tell rows apart."""
    return np.frombuffer(b"".join(digests), dtype=">u8").astype(np.uint64)


def sort_order(keys: U64, checks: U64, *ties: NDArray[Any]) -> NDArray[np.int64]:
    """The order by key, then check, then ``ties``. Equal keys are rare, so the fast unstable sort comes first."""
    order = np.argsort(keys)
    found = keys[order]
    if (found[1:] == found[:-1]).any():
        order = np.lexsort((*reversed(ties), checks, keys))
    return order


def mixed(values: U64, seed: int, salt: int = 0) -> U64:
    """A random-looking permutation of 64-bit values that depends on the seed (the finaliser of SplitMix64).

    Equal values stay equal, so an order by the result is a shuffle that no input order can change.
    """
    start = int.from_bytes(xxhash.xxh3_64_digest(f"{seed}/{salt}".encode()), "big")
    x: Any = values ^ np.uint64(start)
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    result: U64 = x ^ (x >> np.uint64(31))
    return result
