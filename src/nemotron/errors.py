"""One error tree. Each class carries its exit code; a message is built from facts and names the fix.

Exit codes (docs/reference/exit-codes.md lists them for users):

====  =====================  ==========================================================================
code  class                  when
====  =====================  ==========================================================================
2     UsageError             the command line itself is wrong (unknown flag, two exclusive flags)
3     ConfigError            the config does not compile: unknown key, type, range, cross-field rule
4     NotFoundError          no such step, config name, run or profile
5     DataError              a data file is missing, broken or too small
6     ArtifactError          a checkpoint or tokenizer is missing, corrupt or of the wrong kind
7     RewardError            the judge, a verifier or a server gives no rewards, or too many are missing
8     OutputError            a result cannot be written (permission, disk full)
9     EngineError            the run failed or crossed a limit set in the config (NaN loss, KL bound)
10    NotAvailableError      a part that is not installed, or not available on this machine or yet
11    ExecutorError          a cluster refuses the job, has lost it, or cannot be reached
130   (interrupt)            Ctrl-C
====  =====================  ==========================================================================
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

Severity = Literal["error", "warning", "note"]


@dataclass(frozen=True, slots=True)
class Origin:
    """Where a value came from: a line of a file, or a token of the command line.

    Example: ``Origin("config/default.yaml", line=12, column=3)`` prints as ``config/default.yaml:12:3``;
    ``Origin("command line", argument=5)`` prints as ``command line, argument 5``.
    """

    source: str
    """A path as the user would type it, or ``command line``, ``profile NAME``, ``environment variable NAME``."""
    line: int | None = None
    """1-based line in the file."""
    column: int | None = None
    """1-based column in the file."""
    argument: int | None = None
    """1-based position among the words after ``nemotron``."""

    def __str__(self) -> str:
        if self.argument is not None:
            return f"{self.source}, argument {self.argument}"
        parts = [self.source, *(str(n) for n in (self.line, self.column) if n is not None)]
        return ":".join(parts)


class NemotronError(Exception):
    """Root of every error a user can cause or should see.

    ``message`` says what is wrong in one sentence without a final period, ``hint`` names the fix, ``origin`` the place.
    """

    exit_code: ClassVar[int] = 1

    def __init__(self, message: str, *, hint: str | None = None, origin: Origin | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint
        self.origin = origin


class UsageError(NemotronError):
    """The command line itself is wrong."""

    exit_code = 2


class ConfigError(NemotronError):
    """The configuration does not compile."""

    exit_code = 3


class NotFoundError(NemotronError):
    """No step, config name, run or profile of that name."""

    exit_code = 4


class DataError(NemotronError):
    """A data file is missing, broken, or too small for one batch."""

    exit_code = 5


class ArtifactError(NemotronError):
    """A checkpoint or tokenizer is missing, corrupt or of the wrong kind."""

    exit_code = 6


class RewardError(NemotronError):
    """Rewards cannot be had: their source cannot be reached, or too many of them are missing."""

    exit_code = 7


class JudgeError(RewardError):
    """The judge cannot be reached, or too many of its verdicts are missing."""


class OutputError(NemotronError):
    """A result cannot be written."""

    exit_code = 8


class EngineError(NemotronError):
    """The run failed, or crossed a limit that the config sets."""

    exit_code = 9


class LimitError(EngineError):
    """A limit that the config sets was crossed; the run stopped after saving what it had."""


class OutOfTimeError(LimitError):
    """The time that the config allows is over; the run stopped after saving and goes on when it is resumed."""

    # As for a run that a scheduler interrupts: not finished, nothing wrong, resume it.
    exit_code = 130


class NotAvailableError(NemotronError):
    """Something that is not installed, or not available on this machine or yet."""

    exit_code = 10


class ExecutorError(NemotronError):
    """A cluster refuses the job, has lost it, or cannot be reached."""

    exit_code = 11


class UnreachableError(ExecutorError):
    """A cluster does not answer: what it was asked can be asked again."""


@dataclass(frozen=True, slots=True)
class Finding:
    """One result of the preflight: what is wrong (or worth knowing), where it was said, and the fix."""

    severity: Severity
    name: str
    """Stable error name, kebab-case, e.g. ``unknown-key``, ``batch-not-divisible``."""
    message: str
    """One sentence, no final period; keys and values in backticks."""
    key: str | None = None
    """Dotted config key, e.g. ``grpo.max_num_steps``."""
    origin: Origin | None = None
    hint: str | None = None
    rule: int | None = None
    """Number of the NeMo-RL validity rule that this check stands for, when there is one."""
    exit_code: int = ConfigError.exit_code
    """The exit code if this finding is what stops the job."""


class CompileError(ConfigError):
    """The preflight found errors. Carries every finding; its exit code is that of the first error."""

    def __init__(self, findings: Sequence[Finding]) -> None:
        errors = [f for f in findings if f.severity == "error"]
        noun = "problem" if len(errors) == 1 else "problems"
        super().__init__(f"{len(errors)} {noun} found, nothing was started")
        self.findings = tuple(findings)
        self.finding_exit_code = errors[0].exit_code if errors else self.exit_code
