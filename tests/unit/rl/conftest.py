"""One thread: the models here are tiny, and two OpenMP threads on a busy machine take twenty times as long."""

from __future__ import annotations

from nemotron.rl.threads import apply_threads

apply_threads(1)
