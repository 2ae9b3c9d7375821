"""Check and run the step: Megatron to Hugging Face."""

from __future__ import annotations

import time
from pathlib import Path

from nemotron.checkpoints.megatron import layout
from nemotron.compile.declaration import PlainStep
from nemotron.compile.plan import FileRef, Preflight, Surroundings
from nemotron.config.layers import Resolved
from nemotron.engines.base import Attempt
from nemotron.errors import ArtifactError
from nemotron.steps.convert.checks import OUTPUT, Checks, needed_modules
from nemotron.steps.convert.megatron_to_hf.config import Config
from nemotron.steps.convert.run import finish, local_model, recorder, shown_progress

SOURCE, GIVEN = "megatron_path", "hf_model"


def preflight(config: Config, resolved: Resolved, where: Surroundings) -> Preflight:
    """Everything that can be known before torch is loaded: the target is free, the checkpoint is whole and converts."""
    checks = Checks(resolved, where.place)
    source = Path(config.megatron_path).expanduser()
    checks.has_modules(needed_modules(config.verify, config.hf_model))
    checks.output(config.output_dir, source, where.runs_dir, overwrite=config.overwrite)
    inputs = [FileRef("checkpoint", SOURCE, str(source), "checkpoint_megatron")]
    given = None
    if config.hf_model is not None:
        given = checks.hf_folder(GIVEN, config.hf_model)
        inputs.append(FileRef("model", GIVEN, str(given or config.hf_model), "checkpoint_hf"))
    with checks.model_files(SOURCE):
        if config.hf_model is not None and given is None:
            # Not here, or wrong and reported: without its config no more can be said than that a checkpoint is there.
            layout.resolve(source)
        else:
            check(source, given)
    output = FileRef("model", OUTPUT, config.output_dir, "checkpoint_hf")
    return checks.result(inputs=inputs, output=output, runs_dir=where.runs_dir)


def check(source: Path, given: Path | None = None) -> None:
    """The checkpoint converts, and it is whole by its index. ``given``: the same model on Hugging Face.

    Raises:
        ArtifactError: as the conversion would.
    """
    from nemotron.checkpoints import hf
    from nemotron.checkpoints.megatron.describe import describe

    checkpoint = describe(source, hf.read_config(given) if given else None)
    lost = [name for name in sorted(checkpoint.index.files()) if not (checkpoint.folder / name).is_file()]
    if lost:
        raise ArtifactError(
            f"`{checkpoint.folder / lost[0]}` is missing: a shard of the checkpoint is lost", hint="copy it again"
        )


def run(attempt: Attempt) -> None:
    """Convert, verify, record. Needs no secrets.

    Raises:
        ArtifactError: the model does not convert (by name) or is broken. OutputError: the target cannot be written.
    """
    from nemotron.checkpoints.convert import megatron_to_hf

    started = time.monotonic()
    run, config = attempt.run, attempt.settings(Config)
    details = {"verified": config.verify, "dtype": config.dtype, "run": run.id}
    run.write_status(state="running", phase="converting", error=None, exit_code=None)
    source = Path(config.megatron_path).expanduser()
    with shown_progress() as progress:
        conversion = megatron_to_hf(
            source,
            Path(config.output_dir).expanduser(),
            hf_model=local_model(config.hf_model) if config.hf_model else None,
            dtype=None if config.dtype == "auto" else config.dtype,
            verify=config.verify,
            overwrite=config.overwrite,
            finish=recorder(attempt.job.step, "checkpoint_hf", source, details),
            progress=progress,
        )
    finish(run, conversion, started)


STEP = PlainStep(config=Config, check=preflight, run="nemotron.steps.convert.megatron_to_hf.step:run")
