"""What `vllm serve` is started with: settings as NeMo-Gym and NeMo-RL name them, to words of a command line."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

OURS = (
    "model",
    "model_tag",
    "host",
    "port",
    "uds",
    "api_key",
    "served_model_name",
    "config",
    "root_path",
    "ssl_keyfile",
)
"""Settings that whoever starts the server chooses: where it answers, whom, and under which name."""
PARALLEL_SIZES = ("tensor_parallel_size", "pipeline_parallel_size", "data_parallel_size")
SHARED_GPU = 0.3
"""Of the memory of a GPU that the policy is on, too."""
_BLOCK = 128
"""Tokens of a block of vLLM's cache on a CPU."""
_LEAST_CACHE = 64 << 20
_UNKNOWN_CACHE = 1 << 30
_CACHE_SHARE = 4
"""A cache takes no more than this part of the machine's memory, where nobody has said how much."""


@dataclass(frozen=True)
class Serve:
    """One server: what is served and how."""

    program: Path
    model: str
    """Folder, or a name of the hub."""
    name: str
    """What requests call it."""
    settings: Mapping[str, Any]
    """vLLM's own settings by the names of its Python arguments; null leaves one out."""
    variables: Mapping[str, str] = field(default_factory=dict)
    """Environment variables beside those of this process."""

    def argv(self, *address: str) -> list[str]:
        """The words of the command; ``address`` are those that say where it answers."""
        named = ("--served-model-name", self.name)
        return [str(self.program), "serve", self.model, *named, *address, *flags(self.settings)]


def flags(settings: Mapping[str, Any]) -> list[str]:
    """``settings`` as vLLM's command line has them.

    Example: ``{"max_model_len": 512, "enforce_eager": True}`` is ``["--max-model-len", "512", "--enforce-eager"]``.
    """
    return [word for name, value in settings.items() for word in _words(name.replace("_", "-"), value)]


def _words(name: str, value: Any) -> Iterator[str]:
    if value is None:
        return
    if isinstance(value, bool):
        yield f"--{name}" if value else f"--no-{name}"
    elif isinstance(value, Mapping):
        yield from (f"--{name}", json.dumps(value))
    elif isinstance(value, Sequence) and not isinstance(value, str):
        yield from (f"--{name}", *map(str, value))
    else:
        yield from (f"--{name}", str(value))


def gpus(settings: Mapping[str, Any]) -> int:
    """GPUs that a server with these settings takes."""
    return math.prod(int(settings.get(name) or 1) for name in PARALLEL_SIZES)


def cpu_cache(config: Mapping[str, Any], sequences: int, length: int | None, memory: int | None) -> int:
    """Bytes for keys and values on a CPU, where vLLM by itself takes memory that others need.

    As many as ``sequences`` of ``length`` tokens fill in float32, but no more than a part of the machine's ``memory``.

    Args:
        config: the model's `config.json`.
        length: longest sequence; None takes the model's own.
    """
    layers, heads = config.get("num_hidden_layers"), config.get("num_attention_heads")
    hidden, tokens = config.get("hidden_size"), length or config.get("max_position_embeddings")
    sizes = (layers, heads, hidden, tokens)
    if not all(isinstance(size, int) and size > 0 for size in sizes):
        return _UNKNOWN_CACHE
    kv_heads = config.get("num_key_value_heads") or heads
    head = config.get("head_dim") or hidden // heads  # type: ignore[operator]
    a_sequence = 2 * 4 * layers * kv_heads * head * _BLOCK * math.ceil(tokens / _BLOCK)  # type: ignore[operator]
    wanted = max(_LEAST_CACHE, sequences * a_sequence)
    return int(min(wanted, max(memory // _CACHE_SHARE, a_sequence)) if memory else wanted)
