"""GRPO with rewards that programs check: parameters, rules, and who runs it. Values are in ``config/*.yaml``."""

from __future__ import annotations

from nemotron.compile import verified_grpo
from nemotron.compile.declaration import TrainingStep
from nemotron.compile.estimate import grpo_work
from nemotron.compile.verified_job import VerifiedJob
from nemotron.config.schema.verified import VerifiedGrpoConfig

STEP = TrainingStep(
    config=VerifiedGrpoConfig,
    job=VerifiedJob,
    rules=verified_grpo.STAGES,
    processes=verified_grpo.processes,
    work=grpo_work,
    engines={"embedded": "nemotron.engines.embedded.scene:verified_grpo"},
)
