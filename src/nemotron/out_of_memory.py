"""When memory does not suffice: recognised whichever library says it, with the keys of the config that decide it."""

from __future__ import annotations

import errno
import re
from collections.abc import Mapping
from typing import Any

from nemotron.errors import EngineError

# From what costs nothing but time to what changes the training.
_SIZES = (
    "policy.train_micro_batch_size",
    "policy.logprob_batch_size",
    "value.train_micro_batch_size",
    "value.logprob_batch_size",
    "dpo.val_micro_batch_size",
    "rm.val_micro_batch_size",
    "reward_model.batch_size",
    "judge.max_batch_size",
    "num_processes",
    "grpo.num_prompts_per_step",
    "ppo.num_prompts_per_step",
    "policy.max_total_sequence_length",
)
_SHOWN = 4
OFFLOAD = "policy.offload_optimizer_for_logprob"
_ASKED = re.compile(r"(?i)to allocate ([\d.]+) (bytes|[KMGTPE]?i?B)\b")
_SENTENCES = ("can't allocate memory", "not enough memory", "out of memory", "cannot allocate memory")


def keys_to_lower(values: Mapping[str, Any]) -> list[str]:
    """The keys of a config that memory grows with, those first that cost only time; ``values`` are resolved."""
    return [key for key in _SIZES if _can_be_lowered(values, key)][:_SHOWN]


def _can_be_lowered(values: Mapping[str, Any], key: str) -> bool:
    at = _at(values, key)
    return at == "auto" or (isinstance(at, int) and not isinstance(at, bool) and at > 1)


def _at(values: Mapping[str, Any], key: str) -> Any:
    at: Any = values
    for name in key.split("."):
        at = at.get(name) if isinstance(at, Mapping) else None
    return at


def out_of_memory(error: BaseException, values: Mapping[str, Any] | None = None) -> EngineError | None:
    """The error to show when ``error`` says that memory did not suffice, None for any other.

    Python, numpy, torch on a CPU and torch on a GPU each say it in their own way. ``values``: the config that ran.
    """
    if not _says_so(error):
        return None
    text = str(error)
    where = "the GPU" if "CUDA" in text else "this machine"
    asked = _ASKED.search(text)
    detail = f": {_size(asked[1], asked[2])} were asked for at once" if asked else ""
    values = values or {}
    # It costs a copy in each step and changes nothing else, so it comes first.
    offload = where == "the GPU" and _at(values, "policy.optimizer") and not _at(values, OFFLOAD)
    hint = f"set `{OFFLOAD}=true`, " if offload else ""
    return EngineError(f"{where} has not enough memory{detail}", hint=hint + _hint(keys_to_lower(values)))


def _hint(keys: list[str]) -> str:
    if not keys:
        return "take a smaller model or less data, or a machine with more memory"
    return f"lower {either(keys)}, take a smaller model, or a machine with more memory"


def either(keys: list[str]) -> str:
    """Keys in backticks as a choice: ```a`, `b` or `c```."""
    quoted = [f"`{key}`" for key in keys]
    return " or ".join(filter(None, (", ".join(quoted[:-1]), quoted[-1])))


def _size(number: str, unit: str) -> str:
    return f"{int(number) / 2**30:.1f} GiB" if unit == "bytes" and number.isdecimal() else f"{number} {unit}"


def _says_so(error: BaseException) -> bool:
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        return True
    if isinstance(error, OSError):
        return error.errno == errno.ENOMEM
    return isinstance(error, RuntimeError) and any(words in str(error).lower() for words in _SENTENCES)
