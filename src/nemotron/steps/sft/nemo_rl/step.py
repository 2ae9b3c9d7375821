"""Supervised fine-tuning on conversations: parameters, rules, and who runs it. Values are in ``config/*.yaml``."""

from __future__ import annotations

from nemotron.compile.declaration import TrainingStep
from nemotron.compile.jobs.sft import SftJob
from nemotron.compile.rules import (
    artifacts,
    batches,
    checkpointing,
    conversations,
    data,
    doubts,
    engine,
    generation,
    output,
    parallelism,
    resources,
    schedule,
    validation,
)
from nemotron.config.schema.sft import SftRunConfig

STEP = TrainingStep(
    config=SftRunConfig,
    job=SftJob,
    rules=(
        (engine.modules, engine.rules),
        (
            schedule.rules,
            validation.rules,
            batches.rules,
            generation.rules,
            conversations.rules,
            conversations.demonstrations,
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
        "embedded": "nemotron.engines.embedded.scene:sft",
        "nemo_rl": "nemotron.engines.nemo_rl.run:train",
    },
)
