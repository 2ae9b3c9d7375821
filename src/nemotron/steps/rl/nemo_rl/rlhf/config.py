"""The config of the RLHF step: NeMo-RL v0.7.0's GRPO tree and four sections of our own."""

from __future__ import annotations

from nemotron.config.schema.extras import EngineChoice, EvalConfig, LimitsConfig
from nemotron.config.schema.judge import JudgeConfig
from nemotron.config.schema.master import GrpoMasterConfig


class Config(GrpoMasterConfig):
    """GRPO with a generative reward judge."""

    engine: EngineChoice
    """What runs the job: the embedded engine, NeMo-RL, or whichever of them can run here."""
    judge: JudgeConfig
    """How the judge is served and asked."""
    eval: EvalConfig
    """Measurements that are independent of the reward."""
    limits: LimitsConfig
    """Bounds whose crossing stops the run."""
