"""Run the step: Hugging Face to Megatron."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from nemotron.steps.convert.hf_to_megatron.config import Config
from nemotron.steps.convert.run import local_model, recorder, report, shown_progress

if TYPE_CHECKING:
    from nemotron.checkpoints.convert import Conversion

STEP = "convert/hf_to_megatron"


def check(config: Config) -> None:
    """What can be known before torch is loaded: the model is there, whole by its headers, and converts.

    Raises:
        ArtifactError: as the conversion would.
    """
    from nemotron.checkpoints import hf
    from nemotron.checkpoints.megatron import families

    source = Path(config.hf_model)
    if source.exists():
        families.from_hf(hf.read_config(source), f"`{source}`")
        hf.headers(source)


def convert(config: Config) -> Conversion:
    """Convert, verify, record.

    Raises:
        ArtifactError: the model does not convert (by name) or is broken. OutputError: the target cannot be written.
    """
    from nemotron.checkpoints.convert import hf_to_megatron

    source = local_model(config.hf_model)
    details = {"verified": config.verify, "dtype": config.dtype}
    hub_name = config.hf_model if not Path(config.hf_model).exists() else None
    with shown_progress() as progress:
        conversion = hf_to_megatron(
            source,
            Path(config.output_dir),
            dtype=None if config.dtype == "auto" else config.dtype,
            verify=config.verify,
            overwrite=config.overwrite,
            hf_model_id=hub_name,
            finish=recorder(STEP, "checkpoint_megatron", source, details),
            progress=progress,
        )
    report(conversion)
    return conversion
