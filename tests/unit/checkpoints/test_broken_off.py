"""A checkpoint whose writing is broken off ends with what broke it off: a full disk, or who asked for the end.

The C++ of ``torch.save`` calls our file. What is raised there becomes an archive that ends too early, which is another
error, "unexpected pos", or the end of the process in its destructor.
"""

from __future__ import annotations

import errno
import os
import shutil
from pathlib import Path

import pytest
import torch

from nemotron.checkpoints.policy import write_root
from nemotron.disk import stream
from tests.signalled import signalled_at
from tests.unit.checkpoints.interpreters.make import CONFIG, state

SOURCE = Path(stream.__file__).parents[1]
WRITING = (str(SOURCE / "disk"), str(SOURCE / "checkpoints"), str(SOURCE / "processes"), torch.serialization.__file__)


def write(folder: Path) -> None:
    write_root(folder, state(), CONFIG, None, None, None, {}, None)


@pytest.mark.parametrize("moments", [40, pytest.param(400, marks=pytest.mark.full)])
def test_interrupted_at_any_line(tmp_path: Path, moments: int) -> None:
    """And not, which it was at one in ten of them, out of disk space."""
    with signalled_at(None, *WRITING) as count:
        write(tmp_path / "whole")
    assert count[0] > 1000
    for moment in range(moments):
        line = 1 + moment * count[0] // moments
        with pytest.raises(KeyboardInterrupt), signalled_at(line, *WRITING):
            write(tmp_path / "broken")
        shutil.rmtree(tmp_path / "broken", ignore_errors=True)


def test_a_disk_that_is_full_at_any_write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usual, full_after, written = stream.write_all, 10**6, [0]

    def on_that_disk(fd: int, content: bytes | memoryview) -> int:
        written[0] += 1
        if written[0] > full_after:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return usual(fd, content)

    monkeypatch.setattr(stream, "write_all", on_that_disk)
    write(tmp_path / "whole")
    writes = written[0]
    assert writes > 100
    for full_after in range(0, writes, writes // 20):
        written[0] = 0
        with pytest.raises(OSError, match="No space left on device"):
            write(tmp_path / "broken")
        assert written[0] <= full_after + 3, "it goes on writing"
        shutil.rmtree(tmp_path / "broken")
