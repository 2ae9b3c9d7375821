"""Check and run the step: Hugging Face to Megatron."""

from __future__ import annotations

import time
from pathlib import Path

from nemotron.compile.declaration import PlainStep
from nemotron.compile.plan import FileRef, Preflight, Surroundings
from nemotron.config.layers import Resolved
from nemotron.engines.base import Attempt
from nemotron.steps.convert.checks import OUTPUT, Checks, needed_modules
from nemotron.steps.convert.hf_to_megatron.config import Config
from nemotron.steps.convert.run import finish, is_hub_name, local_model, recorder, shown_progress

SOURCE = "hf_model"


def preflight(config: Config, resolved: Resolved, where: Surroundings) -> Preflight:
    """Everything that can be known before torch is loaded: the target is free, the model is whole and converts."""
    checks = Checks(resolved, where.place)
    installed = checks.has_modules(needed_modules(config.verify, config.hf_model))
    source = checks.hf_folder(SOURCE, config.hf_model)
    checks.output(config.output_dir, source, where.runs_dir, overwrite=config.overwrite)
    if source is not None:
        with checks.model_files(SOURCE):
            # Of a hub model the cache may hold a part; the rest is fetched when the run starts.
            check(source, headers=installed and not is_hub_name(config.hf_model))
    return checks.result(
        inputs=[FileRef("model", SOURCE, str(source or config.hf_model), "checkpoint_hf")],
        output=FileRef("checkpoint", OUTPUT, config.output_dir, "checkpoint_megatron"),
        runs_dir=where.runs_dir,
    )


def check(source: Path, *, headers: bool = True) -> None:
    """The model converts, and its files are whole by their headers (which needs safetensors).

    Raises:
        ArtifactError: as the conversion would.
    """
    from nemotron.checkpoints import hf
    from nemotron.checkpoints.megatron import families

    families.from_hf(hf.read_config(source), f"`{source}`")
    if headers:
        hf.headers(source)


def run(attempt: Attempt) -> None:
    """Convert, verify, record. Needs no secrets.

    Raises:
        ArtifactError: the model does not convert (by name) or is broken. OutputError: the target cannot be written.
    """
    from nemotron.checkpoints.convert import hf_to_megatron

    started = time.monotonic()
    run, config = attempt.run, attempt.settings(Config)
    details = {"verified": config.verify, "dtype": config.dtype, "run": run.id}
    run.write_status(state="running", phase="converting", error=None, exit_code=None)
    source = local_model(config.hf_model)
    with shown_progress() as progress:
        conversion = hf_to_megatron(
            source,
            Path(config.output_dir).expanduser(),
            dtype=None if config.dtype == "auto" else config.dtype,
            verify=config.verify,
            overwrite=config.overwrite,
            hf_model_id=config.hf_model if is_hub_name(config.hf_model) else None,
            finish=recorder(attempt.job.step, "checkpoint_megatron", source, details),
            progress=progress,
        )
    finish(run, conversion, started)


STEP = PlainStep(config=Config, check=preflight, run="nemotron.steps.convert.hf_to_megatron.step:run")
