"""PPO with reward model and critic: parameters, rules, and who runs it. Values are in ``config/*.yaml``."""

from __future__ import annotations

from nemotron.compile.declaration import TrainingStep
from nemotron.compile.jobs.ppo import PpoJob
from nemotron.compile.rules import (
    artifacts,
    checkpointing,
    critic,
    data,
    doubts,
    engine,
    generation,
    output,
    parallelism,
    resources,
)
from nemotron.config.schema.ppo import PpoMasterConfig

STEP = TrainingStep(
    config=PpoMasterConfig,
    job=PpoJob,
    rules=(
        (engine.rules,),
        (critic.rules, generation.rules, parallelism.rules, checkpointing.rules, doubts.rules),
        (output.rules, resources.rules),
        (artifacts.rules, critic.models),
        (data.rules,),
    ),
    engines={"embedded": "nemotron.engines.embedded.scene:ppo"},
)
