"""GRPO with a generative reward judge: parameters, rules, and who runs it. Values are in ``config/*.yaml``."""

from __future__ import annotations

from nemotron.compile.declaration import TrainingStep
from nemotron.compile.jobs.grpo import JudgedJob
from nemotron.compile.rules import (
    artifacts,
    batches,
    checkpointing,
    conversations,
    data,
    doubts,
    engine,
    generation,
    grpo,
    judge,
    nemo_gym,
    output,
    parallelism,
    policy_gradient,
    resources,
    schedule,
    validation,
)
from nemotron.config.schema.extras import JudgedGrpoConfig

STEP = TrainingStep(
    config=JudgedGrpoConfig,
    job=JudgedJob,
    rules=(
        (engine.modules, engine.rules),
        (
            schedule.rules,
            validation.rules,
            batches.rules,
            policy_gradient.rules,
            grpo.rules,
            generation.rules,
            conversations.rules,
            generation.rollouts,
            parallelism.rules,
            nemo_gym.rules,
            checkpointing.rules,
            doubts.speed,
            doubts.rules,
        ),
        (output.folders, output.rules, resources.rules),
        (artifacts.files, artifacts.rules),
        (data.rules,),
        (judge.rules,),
    ),
    engines={
        "embedded": "nemotron.engines.embedded.scene:judged_grpo",
        "nemo_rl": "nemotron.engines.nemo_rl.run:train",
    },
)
