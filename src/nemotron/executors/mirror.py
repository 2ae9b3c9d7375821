"""Runs whose folder cannot be seen from here: what the job is given to unpack, and what it repeats in its log.

The other side of both is :mod:`nemotron.executors.bootstrap`, which runs in the job.
"""

from __future__ import annotations

import base64
import io
import lzma
import tarfile
from collections.abc import Iterable
from pathlib import Path

from nemotron import snapshot
from nemotron.disk.atomic import write_atomic
from nemotron.disk.documents import read_bytes
from nemotron.executors import bootstrap
from nemotron.runs.folder import RunFolder

CHUNK = 96 * 1024
"""Bytes of a variable: Linux takes 128 KiB for one string of an environment."""
RUN_FILES = ("job.json", "status.json", "profile.json")
_MARK = bootstrap.MARK.encode()


def bootstrap_words(python: str, run_dir: str, code_dir: str, worker: list[str]) -> list[str]:
    """The command that unpacks, starts the worker, and repeats its rows."""
    source = Path(bootstrap.__file__).read_text(encoding="utf-8")
    return [python, "-c", source, run_dir, code_dir, *worker]


def packed(run: Path, number: int, *, with_code: bool) -> dict[str, str]:
    """Variables that carry run folder and code: a tar file, compressed, in base64, in pieces."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        for name in (*RUN_FILES, f"attempts/{number}/handle.json"):
            if (run / name).is_file():
                _add(tar, f"run/{name}", read_bytes(run / name))
        if with_code:
            for path in snapshot.files(assets=False):
                _add(tar, f"code/nemotron/{path.relative_to(snapshot.PACKAGE).as_posix()}", path.read_bytes())
    text = base64.b64encode(lzma.compress(buffer.getvalue())).decode()
    pieces = [text[start : start + CHUNK] for start in range(0, len(text), CHUNK)]
    return {f"{bootstrap.PREFIX}{index:03d}": piece for index, piece in enumerate(pieces)}


def printed(log: bytes) -> bytes:
    """What the job itself printed. A mark that has only begun to arrive is none of that."""
    return b"".join(line for line in log.splitlines(keepends=True) if not line.startswith(_MARK[:1]))


def repeated(log: bytes) -> dict[str, list[bytes]]:
    """File -> the lines that the job has repeated of it, whole ones."""
    found: dict[str, list[bytes]] = {}
    for line in log.splitlines(keepends=True):
        if line.startswith(_MARK) and line.endswith(b"\n"):
            name, _, content = line[len(_MARK) :].rstrip(b"\n").partition(b" ")
            found.setdefault(name.decode("utf-8", "replace"), []).append(content)
    return found


def keep(run: RunFolder, rows: dict[str, list[bytes]]) -> None:
    """Write rows and the newest status into the mirror. Raises OutputError."""
    for name in bootstrap.ROWS:
        if lines := rows.get(name):
            write_atomic(run.path / name, _joined(lines))
    if statuses := rows.get("status.json"):
        write_atomic(run.path / "status.json", _joined(statuses[-1:]))


def _joined(lines: Iterable[bytes]) -> bytes:
    return b"".join(line + b"\n" for line in lines)


def _add(tar: tarfile.TarFile, name: str, content: bytes) -> None:
    member = tarfile.TarInfo(name)
    member.size = len(content)
    tar.addfile(member, io.BytesIO(content))
