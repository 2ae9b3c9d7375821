"""Direct preference optimisation on pairs: parameters, rules, and who runs it. Values are in ``config/*.yaml``."""

from __future__ import annotations

from nemotron.compile import dpo
from nemotron.compile.declaration import TrainingStep
from nemotron.compile.pair_job import pair_work
from nemotron.config.schema.dpo import DpoRunConfig

STEP = TrainingStep(
    config=DpoRunConfig,
    job=dpo.DpoJob,
    rules=dpo.STAGES,
    processes=dpo.processes,
    work=pair_work,
    engines={"embedded": "nemotron.engines.embedded.scene:dpo"},
)
