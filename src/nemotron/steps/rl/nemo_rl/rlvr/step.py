"""Launcher of the RLVR step: the preflight of GRPO with verifiable rewards, run by the embedded engine."""

from __future__ import annotations

from nemotron.compile.verified_grpo import preflight
from nemotron.engines.verified_process import run

__all__ = ["preflight", "run"]
