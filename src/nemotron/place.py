"""Where a job runs, as far as that is known where it is compiled.

The preflight asks a place, never "this machine": what is installed there, how much memory and how many GPUs it has, and
which of its files can be looked at from here. A question that nobody can answer from here has the answer None, and a
rule that gets it stays silent or says that it could not look.
"""

from __future__ import annotations

import os
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated

from pydantic import ConfigDict, Field

from nemotron.disk.home import expanded, homeless
from nemotron.promises import DataPromise, ModelPromise, Promise

HERE = "here"
BF16_FLAGS = {"flags": frozenset({"avx512_bf16", "amx_bf16"}), "Features": frozenset({"bf16"})}
"""The line of ``/proc/cpuinfo`` with a processor's abilities (x86, arm64), and those that multiply bfloat16."""


@dataclass(frozen=True)
class Place:
    """A machine or a cluster."""

    __pydantic_config__ = ConfigDict(extra="forbid")

    name: str = HERE
    """``here``, or the name of the profile that describes it."""
    is_here: bool = True
    """It is this machine: every file is looked at, and what is installed is asked of this interpreter."""
    nodes: int = 1
    gpus_per_node: int | None = None
    """None where nobody has said it."""
    judge_gpus: int | None = None
    """GPUs of the machine that a job gets for a judge beside its own; None where it gets none."""
    has_cuda: bool = False
    """A CUDA device is there, and visible to the job."""
    has_bf16: bool | None = None
    """The processor multiplies bfloat16 matrices itself; None where that is not known."""
    memory_bytes: int | None = None
    """Main memory that a process may use on one node; None where it is not known."""
    gpu_memory_bytes: int | None = None
    """Memory of each GPU; None where nobody has said it."""
    modules: Mapping[str, bool] = field(default_factory=dict)
    """Answers about Python modules that were given beforehand, by name; any other is looked for when the place is this
    machine, and not known otherwise."""
    shared: tuple[Path, ...] = ()
    """Folders of the place that are the same folders here: what lies below them is looked at. All, when it is here."""
    reaches: tuple[Path, ...] | None = None
    """Folders of the place that a job can read, and that outlive it; None where every path may be right."""
    hub_cache: Path | None = None
    """Folder of downloaded Hugging Face models, where it can be looked at."""
    offline: bool = False
    """Downloads are switched off."""
    promised: Annotated[Mapping[str, Promise], Field(exclude=True)] = field(default_factory=dict)
    """What runs before this one will make, by absolute path. Written into no job: when a run starts, it is there."""

    @classmethod
    def this_machine(cls) -> Place:
        """This machine, in a few milliseconds; imports no engine."""
        return cls(
            has_cuda=_has_cuda(),
            has_bf16=bf16_of(Path("/proc/cpuinfo")),
            memory_bytes=_memory(),
            hub_cache=_hub_cache(),
            offline=any(
                os.environ.get(name, "") not in ("", "0") for name in ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE")
            ),
        )

    def has(self, module: str) -> bool | None:
        """Whether a Python module is installed there; None when that cannot be known from here."""
        known = self.modules.get(module)
        if known is not None or not self.is_here:
            return known
        return find_spec(module) is not None

    def lacking(self, modules: Iterable[str]) -> tuple[str, ...]:
        """Those of ``modules`` that are known not to be installed there."""
        return tuple(name for name in modules if self.has(name) is False)

    def promise(self, path: str | Path | None) -> Promise | None:
        """What is promised to lie at ``path``; None of everything else."""
        return self.promised.get(str(path)) if path is not None else None

    def promised_model(self, name: str | Path | None) -> ModelPromise | None:
        """The promised checkpoint at ``name``."""
        found = self.promise(name)
        return found if isinstance(found, ModelPromise) else None

    def promised_data(self, path: str | Path | None) -> DataPromise | None:
        """The promised data whose manifest is ``path``."""
        found = self.promise(path)
        return found if isinstance(found, DataPromise) else None

    def sees(self, path: Path) -> bool:
        """Whether what lies at ``path`` there can be looked at from here; what is only promised cannot."""
        if str(path) in self.promised:
            return False
        if self.is_here:
            return True
        if homeless(path):
            return False
        absolute = Path(os.path.normpath(expanded(path).absolute()))
        return any(absolute.is_relative_to(folder) for folder in self.shared)


def bf16_of(cpuinfo: Path) -> bool | None:
    """Whether the first processor that ``cpuinfo`` lists has bfloat16 instructions; None where that is not said."""
    name, value = _first_line(cpuinfo, BF16_FLAGS)
    return None if name is None else not BF16_FLAGS[name].isdisjoint(value.split())


def cpu_maker(cpuinfo: Path) -> str | None:
    """Who made the first processor that ``cpuinfo`` lists, as x86 processors say it; None where that is not said."""
    name, value = _first_line(cpuinfo, ("vendor_id",))
    return None if name is None else value.strip()


def _first_line(cpuinfo: Path, wanted: Collection[str]) -> tuple[str | None, str]:
    """The name and the value of the first line with one of the ``wanted`` names."""
    try:
        with cpuinfo.open(errors="replace") as lines:
            for line in lines:
                name, _, value = line.partition(":")
                if name.strip() in wanted:
                    return name.strip(), value
    except OSError:
        return None, ""
    return None, ""


def _has_cuda() -> bool:
    if os.environ.get("CUDA_VISIBLE_DEVICES", "all").strip() in ("", "-1"):
        return False
    return any(Path("/proc/driver/nvidia/gpus").glob("*")) or any(Path("/dev").glob("nvidia[0-9]*"))


def _memory() -> int | None:
    """The smaller of physical memory and the limit of the container."""
    try:
        physical = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (ValueError, OSError):
        return None
    try:
        limit = Path("/sys/fs/cgroup/memory.max").read_text().strip()
    except OSError:
        return physical
    return min(physical, int(limit)) if limit.isdecimal() else physical


def _hub_cache() -> Path:
    home = Path(os.environ.get("HF_HOME") or Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache") / "huggingface")
    return expanded(os.environ.get("HF_HUB_CACHE") or home / "hub")
