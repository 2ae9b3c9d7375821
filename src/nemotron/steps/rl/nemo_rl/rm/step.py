"""A Bradley-Terry reward model from pairs: parameters, rules, and who runs it. Values are in ``config/*.yaml``."""

from __future__ import annotations

from nemotron.compile.declaration import TrainingStep
from nemotron.compile.jobs.pairs import RmJob
from nemotron.compile.rules import (
    artifacts,
    batches,
    checkpointing,
    conversations,
    data,
    doubts,
    engine,
    output,
    parallelism,
    resources,
    reward_model,
    schedule,
    validation,
)
from nemotron.config.schema.rm import RmRunConfig

STEP = TrainingStep(
    config=RmRunConfig,
    job=RmJob,
    rules=(
        (engine.modules, engine.rules),
        (
            schedule.rules,
            validation.rules,
            batches.rules,
            reward_model.rules,
            conversations.pairs,
            parallelism.rules,
            checkpointing.rules,
            doubts.speed,
            doubts.rules,
        ),
        (output.folders, output.rules, resources.rules),
        (artifacts.files, artifacts.rules),
        (data.rules,),
    ),
    engines={
        "embedded": "nemotron.engines.embedded.scene:reward_model",
        "nemo_rl": "nemotron.engines.nemo_rl.run:train",
    },
)
