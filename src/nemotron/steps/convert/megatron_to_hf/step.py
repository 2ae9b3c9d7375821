"""Check and run the step: Megatron to Hugging Face."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from nemotron.checkpoints.megatron import layout
from nemotron.compile.declaration import PlainStep
from nemotron.compile.plan import FileRef
from nemotron.compile.probes.model_files import folder_of, read_model
from nemotron.disk.home import expanded
from nemotron.engines.base import Attempt
from nemotron.errors import ArtifactError
from nemotron.steps.convert.job import ConvertJob
from nemotron.steps.convert.megatron_to_hf.config import Config
from nemotron.steps.convert.rules import STAGES
from nemotron.steps.convert.run import finish, local_model, recorder, shown_progress

SOURCE, GIVEN = "megatron_path", "hf_model"


@dataclass(frozen=True)
class Job(ConvertJob[Config]):
    """Megatron to Hugging Face."""

    source_key: ClassVar[str] = SOURCE
    kinds: ClassVar[tuple[str, str]] = ("model", "checkpoint_hf")

    @property
    def source(self) -> Path:
        """The checkpoint."""
        return expanded(self.config.megatron_path)

    @property
    def given(self) -> Path | None:
        """The same model on Hugging Face, where it is on this machine."""
        name = self.config.hf_model
        return folder_of(name, self.place) if name is not None else None

    @property
    def made_of(self) -> tuple[str | None, str | None]:
        """The model that lends its config, or what lies beside the weights."""
        if self.config.hf_model is not None:
            return self.config.hf_model, None
        if self.place.promised_model(self.config.megatron_path) is not None:
            return self.config.megatron_path, None
        if not self.sees(self.config.megatron_path):
            return None, None
        kept = layout.beside(self.source)
        return (str(kept), str(layout.tokenizer_of(kept.parent) or kept)) if kept is not None else (None, None)

    def hf_models(self) -> Iterator[tuple[str, str]]:
        """The one that lends config and tokenizer."""
        if self.config.hf_model is not None:
            yield GIVEN, self.config.hf_model

    def convert_on_paper(self) -> None:
        """The checkpoint converts, and it is whole by its index.

        Raises:
            ArtifactError: as the conversion would.
        """
        from nemotron.checkpoints import hf
        from nemotron.checkpoints.megatron import families
        from nemotron.checkpoints.megatron.describe import describe

        # Where the checkpoint cannot be looked at, the model that lends its config says the family.
        if not self.sees(self.config.megatron_path):
            model = read_model(self.config.hf_model or self.config.megatron_path, self.place)
            if model is not None:
                families.from_hf(model.config, f"`{self.config.megatron_path}`")
            return
        given = self.given
        if self.config.hf_model is not None and given is None:
            # Without its config no more can be said than that a checkpoint is there.
            layout.resolve(self.source)
            return
        checkpoint = describe(self.source, hf.read_config(given) if given else None)
        lost = [name for name in sorted(checkpoint.index.files()) if not (checkpoint.folder / name).is_file()]
        if lost:
            raise ArtifactError(
                f"`{checkpoint.folder / lost[0]}` is missing: a shard of the checkpoint is lost", hint="copy it again"
            )

    def inputs(self) -> Iterator[FileRef]:
        """The checkpoint, and the model that lends to it."""
        yield FileRef("checkpoint", SOURCE, str(self.source), "checkpoint_megatron")
        if self.config.hf_model is not None:
            yield FileRef("model", GIVEN, str(self.given or self.config.hf_model), "checkpoint_hf")


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
    source = expanded(config.megatron_path)
    with shown_progress() as progress:
        conversion = megatron_to_hf(
            source,
            expanded(config.output_dir),
            hf_model=local_model(config.hf_model) if config.hf_model else None,
            dtype=None if config.dtype == "auto" else config.dtype,
            verify=config.verify,
            overwrite=config.overwrite,
            finish=recorder(attempt.job.step, "checkpoint_hf", source, details),
            progress=progress,
        )
    finish(run, conversion, started)


STEP = PlainStep(config=Config, job=Job, rules=STAGES, run="nemotron.steps.convert.megatron_to_hf.step:run")
