"""Direct preference optimisation on pairs: parameters, rules, and who runs it. Values are in ``config/*.yaml``."""

from __future__ import annotations

from nemotron.compile.declaration import TrainingStep
from nemotron.compile.jobs.pairs import DpoJob
from nemotron.compile.rules import (
    artifacts,
    batches,
    checkpointing,
    conversations,
    data,
    doubts,
    dpo,
    engine,
    generation,
    output,
    parallelism,
    resources,
    schedule,
    validation,
)
from nemotron.config.schema.dpo import DpoRunConfig

STEP = TrainingStep(
    config=DpoRunConfig,
    job=DpoJob,
    rules=(
        (engine.modules, engine.rules),
        (
            schedule.rules,
            validation.rules,
            batches.rules,
            dpo.rules,
            generation.rules,
            conversations.rules,
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
        "embedded": "nemotron.engines.embedded.scene:dpo",
        "nemo_rl": "nemotron.engines.nemo_rl.run:train",
    },
)
