"""What a server of vLLM says: what it does while it loads, and the cause among its words when it has died."""

from __future__ import annotations

import re
from itertools import pairwise

_LINE = re.compile(r"^(?:\(\w+ pid=\d+\) )?(?:(?P<level>[A-Z]+) \d\d-\d\d [\d:]+ \[[^\]]*\] ?)?(?P<words>.*)$")
"""Process; level, time and line of code; words."""
_WORD = re.compile(r"[A-Za-z]{3}")
_BAR = re.compile(r"\d%")
_CAUSE = re.compile(r"^\s*(?:(?:\w+\.)*(?P<kind>\w*(?:Error|Exception))|vllm.*: error): (?P<what>.+)")
_EMPTY = ("Engine core initialization failed", "EngineCore encountered an issue", "WorkerProc initialization failed")
"""Errors that only say that there is another one."""
_LONGEST_WORDS = 100
_LONGEST_CAUSE = 600
_LAST_LINES = 5


def last_words(log: str) -> str:
    """What it does now: the last line that is information or progress, without what stands before its words."""
    for line in reversed(log.replace("\r", "\n").splitlines()):
        match = _LINE.match(line)
        words = " ".join(match["words"].split()) if match else ""
        if match and _WORD.search(words) and (match["level"] == "INFO" or _BAR.search(words)):
            return words if len(words) <= _LONGEST_WORDS else words[: _LONGEST_WORDS - 3] + "..."
    return ""


def cause(log: str) -> str:
    """The error that a log ends with, else its last lines; empty for an empty log.

    vLLM's processes pass an error on to each other, each with a traceback of its own, so that its end says nothing.
    """
    words = [match["words"] for line in log.splitlines() if (match := _LINE.match(line))]
    found = []
    for line, after in pairwise([*words, ""]):
        if match := _CAUSE.match(line):
            kind = f"{match['kind']}: " if match["kind"] else ""
            # What a type refuses stands on the next line.
            more = f" {after.strip()}" if after.startswith("  ") else ""
            found.append(f"{kind}{match['what']}{more}")
    told = [one for one in found if not any(empty in one for empty in _EMPTY)]
    if told:
        return told[-1][:_LONGEST_CAUSE]
    return "\n".join(words[-_LAST_LINES:]).strip()[-_LONGEST_CAUSE:]
