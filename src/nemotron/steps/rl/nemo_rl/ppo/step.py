"""Launcher of the PPO step: the preflight of PPO, run by the embedded engine in two processes."""

from __future__ import annotations

from nemotron.compile.ppo import preflight
from nemotron.engines.ppo_process import run

__all__ = ["preflight", "run"]
