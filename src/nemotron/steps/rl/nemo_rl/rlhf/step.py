"""Launcher of the RLHF step: the preflight of judged GRPO, run by the embedded engine."""

from __future__ import annotations

from nemotron.compile.judged_grpo import preflight
from nemotron.engines.embedded_process import run

__all__ = ["preflight", "run"]
