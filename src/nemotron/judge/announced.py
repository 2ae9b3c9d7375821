"""A judge on another machine of the same job: where it answers, and that it still does.

It says so in a file of the attempt's folder, on storage that both see. The token of the job is in no file.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from nemotron.disk.documents import open_regular, read_object
from nemotron.errors import JudgeError

FILE_VARIABLE = "NEMOTRON_JUDGE_FILE"
"""Names the file in which the judge says where it answers."""
TOKEN_VARIABLE = "NEMOTRON_JUDGE_TOKEN"
ADDRESS_VARIABLE = "NEMOTRON_JUDGE_URL"
"""Tells whoever asks the judge where that is."""
_POLL_S = 0.2
_END_BYTES = 1 << 16
"""Of a log, the end of which says why."""
_BESIDE_READY_S = 60.0
"""How much later than the judge itself its asker gives up: its own words come first."""
_END_S = 30.0
"""How long after its last answer the script of the job may take to say that the judge has ended."""


@dataclass(frozen=True, slots=True)
class Announced:
    """What is known of it from its file."""

    file: Path

    @property
    def log(self) -> Path:
        """What it prints."""
        return self.file.parent / "logs" / "judge.log"

    @classmethod
    def of(cls, environ: Mapping[str, str]) -> Announced:
        """The judge of the job that this process is part of.

        Raises:
            JudgeError: the job has none.
        """
        name = environ.get(FILE_VARIABLE)
        if name is None:
            raise JudgeError(
                "`judge.server=vllm` on NeMo-RL wants a judge on a machine of its own, and this job has none",
                hint="submit with a Slurm profile that has `judge`, or set `judge.server=auto`",
            )
        return cls(Path(name))

    def wait(self, ready_timeout_s: float, *, clock: Callable[[], float] = time.monotonic) -> str:
        """Where it answers, when it does.

        Raises:
            JudgeError: it has ended, or takes too long.
        """
        end = clock() + ready_timeout_s + _BESIDE_READY_S
        while not self.file.exists():
            self.mind()
            if clock() > end:
                raise JudgeError(
                    f"the judge of this job is not ready after {ready_timeout_s:g} s",
                    hint=f"`judge.ready_timeout_s` is how long to wait; what it says is in `{self.log}`",
                )
            time.sleep(_POLL_S)
        return self._address()

    def mind(self) -> None:
        """Raises JudgeError when it has ended: nobody would give rewards any more."""
        if not self.file.with_name(f"{self.file.name}.failed").exists():
            return
        said = self._last_words()
        errors = [line for line in said if line.startswith("error: ")]
        last = (errors or said or ["it said nothing"])[-1].removeprefix("error: ")
        raise JudgeError(f"the judge of this job has ended: {last}", hint=f"the whole log is `{self.log}`")

    def blame(self, *, clock: Callable[[], float] = time.monotonic) -> None:
        """After a failure of whoever asks it: raises JudgeError when that comes of the judge's end.

        An answer that does not come fails NeMo-RL at once, and that the judge has ended is known a moment later: its
        process goes, then its task, then storage that both machines see must say so.
        """
        # Commands import this module, and an HTTP client takes time to import.
        from nemotron.processes.answering import healthy

        end = clock() + _END_S
        while healthy(f"{self._address().removesuffix('/v1')}/health") is False and clock() < end:
            self.mind()
            time.sleep(_POLL_S)
        self.mind()

    def _address(self) -> str:
        return str(read_object(self.file)["base_url"])

    def _last_words(self) -> list[str]:
        try:
            with open_regular(self.log) as file:
                file.seek(max(0, file.seek(0, os.SEEK_END) - _END_BYTES))
                return file.read().decode("utf-8", "replace").strip().splitlines()
        except OSError:
            # It ended before it wrote anything.
            return []


def variables(environ: Mapping[str, str], address: str) -> dict[str, str]:
    """What the processes that ask it are told."""
    return {ADDRESS_VARIABLE: address, TOKEN_VARIABLE: environ[TOKEN_VARIABLE]}
