"""PPO with reward model and critic: parameters, rules, and who runs it. Values are in ``config/*.yaml``."""

from __future__ import annotations

from nemotron.compile import ppo
from nemotron.compile.declaration import TrainingStep
from nemotron.compile.ppo_job import PpoJob
from nemotron.config.schema.ppo import PpoMasterConfig

STEP = TrainingStep(
    config=PpoMasterConfig,
    job=PpoJob,
    rules=ppo.STAGES,
    processes=ppo.processes,
    work=ppo.work,
    engines={"embedded": "nemotron.engines.embedded.scene:ppo"},
)
