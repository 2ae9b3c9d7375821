"""Files as a broken disk, a careless script or somebody hostile leaves them. A seed always gives the same."""

from __future__ import annotations

import os
import random
import re
import shutil
from pathlib import Path

NUMBERS = (b"-1", b"0", b"1" + b"0" * 12, b"9" * 400, b"9" * 6000, b"1e308", b"1e999", b"NaN", b"1.5", b"null", b'"x"')
DEEP = (b"[" * 150 + b"]" * 150, b"[" * 100_000, b'{"a":' * 5000, b"[" * 900 + b"]" * 900)
INSERTED = (
    b"\x00",
    b"\xff",
    b"\xed\xa0\x80",
    b'"\\ud800"',
    b"\n",
    b"\t",
    b"{",
    b"]",
    b'"',
    b"\\",
    b"%{",
    b"\x1b[31m",
    b"x" * 70_000,
)
KINDS = ("folder", "pipe", "device", "nowhere", "itself", "hole", "passwd")


def spoil(path: Path, seed: int) -> str:
    """Spoil a file in place, or replace it by what is none; says how."""
    if seed < len(KINDS):
        replace(path, KINDS[seed])
        return KINDS[seed]
    content = path.read_bytes()
    draw = random.Random(f"{path.name} {seed}")
    how = draw.choice(list(WAYS))
    path.write_bytes(WAYS[how](draw, content))
    return how


def replace(path: Path, kind: str) -> None:
    """What stands in the place of the file."""
    path.unlink()
    if kind == "folder":
        path.mkdir()
    elif kind == "pipe":
        os.mkfifo(path)
    elif kind == "hole":
        with path.open("wb") as file:
            file.truncate(3 << 30)
    else:
        path.symlink_to({"device": "/dev/zero", "nowhere": "gone", "itself": path.name, "passwd": "/etc/passwd"}[kind])


def _cut(draw: random.Random, content: bytes) -> bytes:
    return content[: draw.randrange(len(content))]


def _flip(draw: random.Random, content: bytes) -> bytes:
    spoiled = bytearray(content)
    for _ in range(draw.choice((1, 1, 1, 8, 100))):
        # What stands in front decides more.
        at = min(draw.randrange(len(content)), draw.randrange(len(content)))
        spoiled[at] ^= 1 << draw.randrange(8)
    return bytes(spoiled)


def _insert(draw: random.Random, content: bytes) -> bytes:
    at = draw.randrange(len(content) + 1)
    return content[:at] + draw.choice(INSERTED) + content[at + draw.choice((0, 1, 1)) :]


def _number(draw: random.Random, content: bytes) -> bytes:
    found = list(re.finditer(rb"\d+(?:\.\d+)?", content[:200_000]))
    if not found:
        return draw.choice(NUMBERS)
    place = draw.choice(found)
    return content[: place.start()] + draw.choice(NUMBERS) + content[place.end() :]


def _value(draw: random.Random, content: bytes) -> bytes:
    """A text in quotes becomes something else."""
    found = list(re.finditer(rb'"[^"\\\n]*"', content[:200_000]))
    if not found:
        return draw.choice(DEEP)
    place = draw.choice(found)
    return content[: place.start()] + draw.choice((*NUMBERS, *DEEP, b"[]", b"{}", b"true")) + content[place.end() :]


def _whole(draw: random.Random, content: bytes) -> bytes:
    return draw.choice(
        (b"", b" ", b"\n", b"null", b"[]", b"{}", b"0", b'""', b"\x80\x04.", b"PK\x03\x04", b"[1", *DEEP, *NUMBERS)
    )


def _twice(draw: random.Random, content: bytes) -> bytes:
    at, size = draw.randrange(len(content)), draw.choice((1, 8, 100, 5000))
    return content[:at] + content[at : at + size] + content[at:]


def _noise(draw: random.Random, content: bytes) -> bytes:
    return draw.randbytes(draw.choice((1, 10, 300, 100_000)))


def _header(draw: random.Random, content: bytes) -> bytes:
    """Eight bytes that say how long something is."""
    at = draw.choice((0, 0, draw.randrange(len(content))))
    size = draw.choice((0, 1, 2**31, 2**40, 2**63, 2**64 - 1, len(content), 2**20)).to_bytes(8, "little")
    return content[:at] + size + content[at + 8 :]


WAYS = {
    **{"cut": _cut, "flipped": _flip, "inserted": _insert, "number": _number, "value": _value, "whole": _whole},
    **{"twice": _twice, "noise": _noise, "header": _header},
}


def copied(world: Path, folder: Path) -> Path:
    """The world again. Large files are hard links: rows are appended, all else is written beside and renamed."""
    shutil.copytree(world, folder, copy_function=_linked_if_large, symlinks=True)
    return folder


def _linked_if_large(source: str, target: str) -> None:
    large = os.stat(source).st_size > 100_000 and not source.endswith(".jsonl")
    os.link(source, target) if large else shutil.copy2(source, target)


def own(path: Path) -> None:
    """Make a file of a copied world one of its own."""
    content = path.read_bytes()
    path.unlink()
    path.write_bytes(content)
