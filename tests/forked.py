"""`nemotron` in a fork of the tests' process: what hangs or eats memory ends alone, and what it took is known."""

from __future__ import annotations

import contextlib
import json
import os
import re
import resource
import signal
import sys
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from tests.in_process import nemotron


@dataclass(frozen=True)
class Ended:
    """How a command ended."""

    code: int
    """-9 when it was killed for the time."""
    said: str
    """Both streams."""
    seconds: float
    """Of the processor, or of the clock where it did not end."""
    megabytes: float
    """That it took at the most, beyond what the fork began with."""


def forked(words: tuple[str, ...], folder: Path, longest_s: float, most_bytes: int, env: Mapping[str, str]) -> Ended:
    """One command line in ``folder``, where its reports of bugs go, too."""
    note = folder / "ended.json"
    child = os.fork()
    if child == 0:
        _run(words, folder, note, most_bytes, env)
    started = time.monotonic()
    while os.waitid(os.P_PID, child, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None:
        if time.monotonic() - started > longest_s:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(child, signal.SIGKILL)
            os.waitpid(child, 0)
            return Ended(-9, f"it did not end within {longest_s} s", longest_s, 0.0)
        time.sleep(0.005)
    _, status, used = os.wait4(child, 0)
    told = json.loads(note.read_text()) if note.exists() else {"said": "it wrote nothing", "took": 0.0}
    code = os.waitstatus_to_exitcode(status)
    return Ended(code, told["said"], used.ru_utime + used.ru_stime, told["took"])


def _run(words: tuple[str, ...], folder: Path, note: Path, most_bytes: int, env: Mapping[str, str]) -> None:
    code, before = 99, _megabytes("VmRSS")
    try:
        os.setsid()
        resource.setrlimit(resource.RLIMIT_DATA, (most_bytes, most_bytes))
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        tempfile.tempdir = str(folder)
        # The threads of the tests' own process are not in the fork; a second one would wait for them for ever.
        if "torch" in sys.modules:
            sys.modules["torch"].set_num_threads(1)
        done = nemotron(*words, cwd=folder, env={"OMP_NUM_THREADS": "1", **env})
        code, said = done.code, done.stdout[-3000:] + done.stderr[-3000:]
    except BaseException as error:  # noqa: BLE001  nothing of the tests may go on in the fork
        said = f"Traceback: {error!r}"
    try:
        note.write_text(json.dumps({"said": said, "took": _megabytes("VmHWM") - before}))
    finally:
        os._exit(code)


def _megabytes(name: str) -> float:
    found = re.search(rf"{name}:\s+(\d+)", Path("/proc/self/status").read_text())
    assert found is not None
    return int(found[1]) / 1024
