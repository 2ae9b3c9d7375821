"""GRPO with rewards that programs check: parameters, rules, and who runs it. Values are in ``config/*.yaml``."""

from __future__ import annotations

from nemotron.compile.declaration import TrainingStep
from nemotron.compile.jobs.grpo import VerifiedJob
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
    output,
    parallelism,
    policy_gradient,
    resources,
    reward_setup,
    rewards,
    schedule,
    validation,
)
from nemotron.config.schema.verified import VerifiedGrpoConfig

STEP = TrainingStep(
    config=VerifiedGrpoConfig,
    job=VerifiedJob,
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
            checkpointing.rules,
            doubts.speed,
            doubts.rules,
        ),
        (output.folders, output.rules, resources.rules),
        (artifacts.files, artifacts.rules),
        (data.rules,),
        (reward_setup.rules, rewards.rules),
    ),
    engines={
        "embedded": "nemotron.engines.embedded.scene:verified_grpo",
        "nemo_rl": "nemotron.engines.nemo_rl.run:train",
    },
)
