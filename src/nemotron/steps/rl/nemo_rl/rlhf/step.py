"""GRPO with a generative reward judge: parameters, rules, and who runs it. Values are in ``config/*.yaml``."""

from __future__ import annotations

from nemotron.compile import judged_grpo
from nemotron.compile.declaration import TrainingStep
from nemotron.compile.grpo_job import JudgedJob
from nemotron.config.schema.extras import JudgedGrpoConfig

STEP = TrainingStep(
    config=JudgedGrpoConfig,
    job=JudgedJob,
    rules=judged_grpo.STAGES,
    processes=judged_grpo.processes,
    work=judged_grpo.work,
    engines={"embedded": "nemotron.engines.embedded.scene:judged_grpo"},
)
