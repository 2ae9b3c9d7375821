"""Slurm's states in our words. `man squeue`, JOB STATE CODES, of 22.05 to 24.11."""

from __future__ import annotations

import re

from nemotron.executors.base import JobState, StateName

STATES: dict[str, StateName] = {
    "PENDING": "queued",
    "CONFIGURING": "queued",
    "REQUEUED": "queued",
    "REQUEUE_FED": "queued",
    "REQUEUE_HOLD": "queued",
    "RESV_DEL_HOLD": "queued",
    "SPECIAL_EXIT": "queued",
    "RUNNING": "running",
    "COMPLETING": "running",
    "RESIZING": "running",
    "SIGNALING": "running",
    "STAGE_OUT": "running",
    "STOPPED": "running",
    "SUSPENDED": "running",
    "COMPLETED": "finished",
    "FAILED": "failed",
    "CANCELLED": "cancelled",
    "REVOKED": "cancelled",
    "TIMEOUT": "timeout",
    "DEADLINE": "timeout",
    "PREEMPTED": "preempted",
    "OUT_OF_MEMORY": "out_of_memory",
    "NODE_FAIL": "node_failed",
    "BOOT_FAIL": "node_failed",
}
NO_REASON = frozenset({"", "None", "(null)"})
STUCK = (
    (r"(QOS|Assoc)\w*PerJob(Limit)?", "it asks for more than one job may have there"),
    (r"PartitionTimeLimit", "it asks for more time than the partition gives"),
    (r"Invalid(Account|QOS)|AccountNotAllowed|QOSNotAllowed|BadConstraints", "there is no such thing for it"),
    (r"JobHeld(User|Admin)|launch_failed_requeued_held", "it is held (`scontrol release` lets it go)"),
    (r"DependencyNeverSatisfied", "what it waits for has failed"),
)
"""Reasons for which a job does not start however long it waits, and what they mean."""


def job_state(word: str, reason: str = "", exit_code: str = "") -> JobState:
    """A state from Slurm's words.

    Args:
        word: of ``scontrol`` or ``sacct``; ``CANCELLED by 1000`` and ``COMPLETED+`` mean what they begin with.
        exit_code: ``code:signal``.
    """
    name = re.split(r"[ +]", word.strip(), maxsplit=1)[0].upper()
    state = STATES.get(name, "unknown")
    code, _, signal = exit_code.partition(":")
    number = int(code) if code.isdecimal() else None
    if number is not None and signal.isdecimal() and int(signal):
        number = 128 + int(signal)
    told = "" if reason in NO_REASON else reason
    if state == "queued" and (means := next((means for words, means in STUCK if re.fullmatch(words, told)), None)):
        told = f"{told}: it will not start as it is, because {means}"
    if state == "unknown" and name:
        told = told or name
    elif state not in ("queued", "running", "finished", "failed") and name:
        told = f"{name}" + (f", {told}" if told else "")
    ended = state not in ("queued", "running", "unknown")
    return JobState(state, told, number if ended else None)


def of_scontrol(line: str) -> tuple[str, JobState] | None:
    """Job id and state of a line of ``scontrol --oneliner show job``; None where the line is of no job."""
    fields = dict(re.findall(r"(?:^|\s)(JobId|JobState|Reason|ExitCode)=(\S*)", line))
    if "JobId" not in fields:
        return None
    return fields["JobId"], job_state(fields.get("JobState", ""), fields.get("Reason", ""), fields.get("ExitCode", ""))
