"""Thread counts are chosen here, not left to chance. Nothing in this module imports torch before it is asked to act
on it.

Measured on two cores with GNU OpenMP (libgomp, which torch's Linux wheels carry): the linear layers of a decode step
of a 1M-parameter model, batch 128, milliseconds a step, three runs each. "alone" is the fastest twentieth of the
steps, "in company" the range of means while other processes kept both cores busy:

==================================  ==========  ==========
setting                                  alone  in company
==================================  ==========  ==========
1 thread                                   2.4        8-10
2 threads, library default                 1.4      90-270
2 threads, GOMP_SPINCOUNT=30000            1.4      25-110
2 threads, GOMP_SPINCOUNT=10000            1.4       40-55
2 threads, GOMP_SPINCOUNT=3000             1.4       14-19
2 threads, GOMP_SPINCOUNT=1000      1.5 or 3.9        8-15
2 threads, GOMP_SPINCOUNT=0                2.8        6-13
==================================  ==========  ==========

OMP_WAIT_POLICY=PASSIVE is the same as a count of 0. By default a thread that waits at a barrier spins for
milliseconds, and when it spins on the core that its partner needs, each of the hundreds of barriers of a step costs a
time slice of the scheduler. Three thousand spins are just enough to meet a partner that runs, and soon over when it
does not.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, MutableMapping
from dataclasses import dataclass

from nemotron.processes.cores import share, usable_cores


@dataclass(frozen=True, slots=True)
class ThreadPlan:
    """How many threads each process of a run computes with."""

    cores: int
    """Cores this process may use."""
    policy: int
    """Threads of the training process."""
    helper: int
    """Threads of a judge or critic on the same machine; 0 without one."""


def plan_threads(*, helper: int = 0, cores: int | None = None, environ: Mapping[str, str] = os.environ) -> ThreadPlan:
    """Share the cores between the training process and a helper beside it.

    Args:
        helper: threads of a process (judge, critic) that works on this machine while the policy does.
        cores: for tests; default ``usable_cores()``.
        environ: its OMP_NUM_THREADS is what the user decided for the training process; without a number there, it gets
            all cores but the helper's.
    """
    cores = usable_cores() if cores is None else cores
    requested = environ.get("OMP_NUM_THREADS", "").strip()
    policy = int(requested) if requested.isdecimal() and int(requested) else max(1, cores - helper)
    return ThreadPlan(cores=cores, policy=policy, helper=helper)


def critic_threads(cores: int | None = None) -> int:
    """Threads of a critic that shares the machine with its actor: a quarter of the cores, at least one."""
    return max(1, (usable_cores() if cores is None else cores) // 4)


def crowded(plan: ThreadPlan, load: float | None = None) -> str | None:
    """A warning where other processes keep the cores busy that several threads want to meet on; None elsewhere.

    Args:
        load: for tests; default the processes that wanted to run in the last minute, before this one computes.
    """
    if load is None:
        if share() is not None:
            return None  # whoever shares the cores out has counted those that work beside this process
        try:
            load = os.getloadavg()[0]
        except OSError:  # a system that does not count them
            return None
    free = plan.cores - load
    if plan.policy < 2 or free >= plan.policy:
        return None
    return (
        f"other processes keep {min(load, plan.cores):.1f} of {plan.cores} cores busy: {plan.policy} threads that wait "
        "for each other may be slower than one; stop the others, or set OMP_NUM_THREADS=1"
    )


def thread_environment(threads: int) -> dict[str, str]:
    """Environment of a process that computes with ``threads`` threads; torch's libraries read it when they load."""
    return {
        "OMP_NUM_THREADS": str(threads),
        "MKL_NUM_THREADS": str(threads),
        "GOMP_SPINCOUNT": "3000",
        "KMP_BLOCKTIME": "0",
        "TOKENIZERS_PARALLELISM": "false",
    }


def set_environment(threads: int, environ: MutableMapping[str, str] = os.environ) -> None:
    """Write ``thread_environment`` into ``environ`` before torch is imported. What the user has set stays as it is."""
    for name, value in thread_environment(threads).items():
        environ.setdefault(name, value)


def apply_threads(threads: int) -> None:
    """Let torch compute with ``threads`` threads in this process, with the same bits every time. Imports torch."""
    import torch
    import torch.utils.deterministic

    torch.set_num_threads(threads)
    if not torch.cuda.is_available():
        # Where several threads add to one place (the backward pass of indexing with repeated indices), the order of the
        # sum is that in which they come, unless it is forbidden. New memory stays as it is: nothing reads it.
        torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
        torch.use_deterministic_algorithms(True, warn_only=True)
