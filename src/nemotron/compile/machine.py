"""What this machine can run, found out without importing any engine."""

from __future__ import annotations

import os
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

EMBEDDED_MODULES = ("torch", "transformers", "safetensors", "numpy", "aiohttp", "tenacity", "jinja2")
LOGGER_MODULES = ("tensorboard", "wandb")
BF16_FLAGS = {"flags": frozenset({"avx512_bf16", "amx_bf16"}), "Features": frozenset({"bf16"})}
"""The line of ``/proc/cpuinfo`` with a processor's abilities (x86, arm64), and those that multiply bfloat16."""


@dataclass(frozen=True, slots=True)
class Machine:
    """Facts that decide the engine and whether a job fits."""

    has_nemo_rl: bool
    """NeMo-RL can be imported."""
    has_adapter: bool
    """This version of nemotron can drive NeMo-RL."""
    has_cuda: bool
    """A CUDA device is visible to this process."""
    missing: tuple[str, ...]
    """Modules of the embedded engine that are not installed."""
    memory_bytes: int | None
    """Main memory this process may use; None where the system does not say."""
    hub_cache: Path
    """Folder of downloaded Hugging Face models."""
    offline: bool
    """Downloads are switched off."""
    loggers: tuple[str, ...] = ()
    """Logger libraries that are installed."""
    has_bf16: bool | None = None
    """The processor multiplies bfloat16 matrices itself; None where the system does not say."""

    @classmethod
    def here(cls) -> Machine:
        """This machine, in a few milliseconds."""
        return cls(
            has_nemo_rl=find_spec("nemo_rl") is not None,
            has_adapter=find_spec("nemotron.engines.nemo_rl") is not None,
            has_cuda=_has_cuda(),
            missing=tuple(name for name in EMBEDDED_MODULES if find_spec(name) is None),
            memory_bytes=_memory(),
            hub_cache=_hub_cache(),
            offline=any(
                os.environ.get(name, "") not in ("", "0") for name in ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE")
            ),
            loggers=tuple(name for name in LOGGER_MODULES if find_spec(name) is not None),
            has_bf16=bf16_of(Path("/proc/cpuinfo")),
        )


def bf16_of(cpuinfo: Path) -> bool | None:
    """Whether the first processor that ``cpuinfo`` lists has bfloat16 instructions; None where that is not said."""
    try:
        with cpuinfo.open(errors="replace") as lines:
            for line in lines:
                name, _, value = line.partition(":")
                if name.strip() in BF16_FLAGS:
                    return not BF16_FLAGS[name.strip()].isdisjoint(value.split())
    except OSError:
        return None
    return None


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
    return Path(os.environ.get("HF_HUB_CACHE") or home / "hub").expanduser()
