"""``sampler``: who draws responses for the embedded engine."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field

from nemotron.config.schema.base import Strict
from nemotron.config.schema.fields import Count, DiskPath, NonNegativeInt, OnDisk, PositiveFloat


class SamplerConfig(Strict):
    """Who samples, and how far it may be from the policy. Under NeMo-RL `policy.generation.backend` says it."""

    server: Literal["embedded", "vllm"] = "embedded"
    """``embedded``: the policy itself, in the process that trains it. ``vllm``: a `vllm serve` of the run's own, which
    takes over the weights after every update."""
    vllm_command: Annotated[str | None, OnDisk()] = None
    """The program `vllm`, or the folder of the environment that has it; null looks on PATH and beside this Python."""
    vllm_serve_kwargs: dict[str, Any] | None = None
    """Further settings of that vLLM, by the names of its Python arguments."""
    vllm_serve_env_vars: dict[str, str] | None = None
    """Environment variables of that vLLM."""
    ready_timeout_s: PositiveFloat = 1800.0
    """Seconds to wait until it answers."""
    request_timeout_s: PositiveFloat = 3600.0
    """Seconds that one response, or taking over the weights, may take."""
    max_restarts: NonNegativeInt = 3
    """How often in a run it is started again when it has died; it comes back with the newest weights."""
    check_period: Count = 10
    """Every so many steps, and in the first two of an attempt, the log-probabilities that it gives are compared with
    the policy's own."""
    max_gap: Literal["auto"] | Annotated[float, Field(gt=0)] = "auto"
    """Largest mean difference of a token's log-probability between the two, in nats: above it the run stops. ``auto``:
    0.001 with `policy.precision: float32`, else 0.1."""
    weights_dir: DiskPath | None = None
    """Folder where the weights are handed over; null takes the one of temporary files. `/dev/shm` where memory is
    plenty."""

    def gap(self, precision: str) -> float:
        """``max_gap`` of a policy in that precision as a number."""
        if self.max_gap != "auto":
            return self.max_gap
        return 1e-3 if precision in ("float32", "fp32") else 0.1
