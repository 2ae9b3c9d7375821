"""PPO with reward model and critic: parameters, rules, and who runs it. Values are in ``config/*.yaml``."""

from __future__ import annotations

from nemotron.compile.declaration import TrainingStep
from nemotron.compile.jobs.ppo import PpoJob
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
    policy_gradient,
    ppo,
    resources,
    schedule,
    validation,
)
from nemotron.config.schema.ppo import PpoMasterConfig

STEP = TrainingStep(
    config=PpoMasterConfig,
    job=PpoJob,
    rules=(
        (engine.modules, engine.rules),
        (
            schedule.rules,
            validation.rules,
            batches.rules,
            policy_gradient.rules,
            ppo.rules,
            generation.rules,
            conversations.rules,
            generation.rollouts,
            parallelism.rules,
            checkpointing.rules,
            doubts.speed,
            doubts.rules,
        ),
        (output.folders, output.rules, resources.rules),
        (artifacts.files, artifacts.rules, ppo.models),
        (data.rules,),
    ),
    engines={
        "embedded": "nemotron.engines.embedded.scene:ppo",
        "nemo_rl": "nemotron.engines.nemo_rl.run:train",
    },
)
