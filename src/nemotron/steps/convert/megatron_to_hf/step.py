"""Run the step: Megatron to Hugging Face."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from nemotron.steps.convert.megatron_to_hf.config import Config
from nemotron.steps.convert.run import local_model, recorder, report, shown_progress

if TYPE_CHECKING:
    from nemotron.checkpoints.convert import Conversion

STEP = "convert/megatron_to_hf"


def check(config: Config) -> None:
    """What can be known before torch is loaded: the checkpoint is there, whole by its index, and converts.

    Raises:
        ArtifactError: as the conversion would.
    """
    from nemotron.checkpoints import hf
    from nemotron.checkpoints.megatron.describe import describe

    given = Path(config.hf_model) if config.hf_model else None
    describe(Path(config.megatron_path), hf.read_config(given) if given and given.exists() else None)


def convert(config: Config) -> Conversion:
    """Convert, verify, record.

    Raises:
        ArtifactError: the model does not convert (by name) or is broken. OutputError: the target cannot be written.
    """
    from nemotron.checkpoints.convert import megatron_to_hf

    source = Path(config.megatron_path)
    details = {"verified": config.verify, "dtype": config.dtype}
    with shown_progress() as progress:
        conversion = megatron_to_hf(
            source,
            Path(config.output_dir),
            hf_model=local_model(config.hf_model) if config.hf_model else None,
            dtype=None if config.dtype == "auto" else config.dtype,
            verify=config.verify,
            overwrite=config.overwrite,
            finish=recorder(STEP, "checkpoint_hf", source, details),
            progress=progress,
        )
    report(conversion)
    return conversion
