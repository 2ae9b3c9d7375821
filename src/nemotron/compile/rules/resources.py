"""Does the job fit this machine?"""

from __future__ import annotations

from collections.abc import Iterator

from nemotron.compile.estimate import memory, savings
from nemotron.compile.jobs.base import AnyJob
from nemotron.compile.rules.base import EMBEDDED, Rules
from nemotron.errors import Finding
from nemotron.out_of_memory import either, keys_to_lower

rules: Rules[AnyJob] = Rules("resources")
_SHOWN = 3
"""Ways to save memory that a hint names."""


@rules.rule("memory", engines=EMBEDDED)
def job_fits_memory(job: AnyJob) -> Iterator[Finding]:
    """Only where the run will use main memory: a GPU's size is not known here."""
    need, have = memory(job), job.place.memory_bytes
    if need and have and not job.place.has_cuda and need.total > have:
        yield job.warning(
            "policy.model_name",
            f"the job needs about {need.total / 2**30:.1f} GiB of memory, this machine has {have / 2**30:.1f} GiB",
            hint=_hint(job),
        )


def _hint(job: AnyJob) -> str:
    """What saves most, measured by the same estimate."""
    found, lower = savings(job)[:_SHOWN], either(keys_to_lower(job.resolved.values))
    if not found:
        return f"use a smaller model, or lower {lower}"
    told = [
        f"{' '.join(f'`{word}`' for word in words.split())} saves about {saved / 2**30:.1f} GiB"
        for words, saved in found
    ]
    return "; ".join(told) + f"; or use a smaller model, or lower {lower}"
