"""Does the job fit this machine?"""

from __future__ import annotations

from collections.abc import Iterator

from nemotron.compile.estimate import memory
from nemotron.compile.jobs.base import AnyJob
from nemotron.compile.rules.base import EMBEDDED, Rules
from nemotron.errors import Finding
from nemotron.out_of_memory import either, keys_to_lower

rules: Rules[AnyJob] = Rules("resources")


@rules.rule("memory", engines=EMBEDDED)
def job_fits_memory(job: AnyJob) -> Iterator[Finding]:
    """Only where the run will use main memory: a GPU's size is not known here."""
    need, have = memory(job), job.place.memory_bytes
    if need and have and not job.place.has_cuda and need.total > have:
        yield job.warning(
            "policy.model_name",
            f"the job needs about {need.total / 2**30:.1f} GiB of memory, this machine has {have / 2**30:.1f} GiB",
            hint="use a smaller model, or lower " + either(keys_to_lower(job.resolved.values)),
        )
