"""Direct preference optimisation on pairs: parameters, rules, and who runs it. Values are in ``config/*.yaml``."""

from __future__ import annotations

from nemotron.compile.declaration import TrainingStep
from nemotron.compile.jobs.pairs import DpoJob
from nemotron.compile.rules import (
    artifacts,
    checkpointing,
    data,
    doubts,
    engine,
    output,
    pairs,
    parallelism,
    resources,
)
from nemotron.config.schema.dpo import DpoRunConfig

STEP = TrainingStep(
    config=DpoRunConfig,
    job=DpoJob,
    rules=(
        (engine.rules,),
        (pairs.rules, parallelism.rules, checkpointing.rules, doubts.rules),
        (output.rules, resources.rules),
        (artifacts.rules,),
        (data.rules,),
    ),
    engines={"embedded": "nemotron.engines.embedded.scene:dpo"},
)
