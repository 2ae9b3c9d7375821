"""A Bradley-Terry reward model from pairs: parameters, rules, and who runs it. Values are in ``config/*.yaml``."""

from __future__ import annotations

from nemotron.compile import reward_model
from nemotron.compile.declaration import TrainingStep
from nemotron.compile.pair_job import pair_work
from nemotron.config.schema.rm import RmRunConfig

STEP = TrainingStep(
    config=RmRunConfig,
    job=reward_model.RmJob,
    rules=reward_model.STAGES,
    processes=reward_model.processes,
    work=pair_work,
    engines={"embedded": "nemotron.engines.embedded.scene:reward_model"},
)
