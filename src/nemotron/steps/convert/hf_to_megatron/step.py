"""Check and run the step: Hugging Face to Megatron."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from nemotron.compile.declaration import PlainStep
from nemotron.compile.plan import FileRef
from nemotron.compile.probes.model_files import folder_of, read_model
from nemotron.disk.home import expanded
from nemotron.engines.base import Attempt
from nemotron.errors import ArtifactError
from nemotron.steps.convert.hf_to_megatron.config import Config
from nemotron.steps.convert.job import ConvertJob
from nemotron.steps.convert.rules import STAGES
from nemotron.steps.convert.run import finish, is_hub_name, local_model, recorder, shown_progress

SOURCE = "hf_model"


@dataclass(frozen=True)
class Job(ConvertJob[Config]):
    """Hugging Face to Megatron."""

    source_key: ClassVar[str] = SOURCE
    kinds: ClassVar[tuple[str, str]] = ("checkpoint", "checkpoint_megatron")

    @property
    def source(self) -> Path | None:
        """The model's folder; None where it has to be fetched, or is not there."""
        name = self.config.hf_model
        folder = expanded(name)
        if self.place.promised_model(name) is not None or is_hub_name(name):
            return folder_of(name, self.place)
        return folder if self.unseen(name) or folder.is_dir() else None

    @property
    def made_of(self) -> tuple[str | None, str | None]:
        """The source."""
        return self.config.hf_model, None

    def hf_models(self) -> Iterator[tuple[str, str]]:
        """The one that is converted."""
        yield SOURCE, self.config.hf_model

    def convert_on_paper(self) -> None:
        """The model converts, and its files are whole by their headers (which needs safetensors).

        Raises:
            ArtifactError: as the conversion would.
        """
        from nemotron.checkpoints import hf
        from nemotron.checkpoints.megatron import families
        from nemotron.checkpoints.megatron.layout import find_iteration

        source = self.source
        if source is None or (self.place.promise(self.config.hf_model) is None and self.unseen(self.config.hf_model)):
            return
        if not (source / "config.json").is_file() and find_iteration(source) is not None:
            message = f"`{self.config.hf_model}` is a Megatron checkpoint already, so there is nothing to convert"
            raise ArtifactError(message, hint="use it as it is; `convert/megatron_to_hf` converts the other way")
        model = read_model(self.config.hf_model, self.place)
        config = model.config if model is not None else hf.read_config(source)
        families.from_hf(config, f"`{self.config.hf_model}`")
        kinds = config.get("architectures")
        if isinstance(kinds, list) and kinds and not any(str(kind).endswith("ForCausalLM") for kind in kinds):
            message = f"`{self.config.hf_model}` is a `{kinds[0]}`: only language models convert"
            raise ArtifactError(message, hint="a reward model stays in Hugging Face form: use it as it is")
        # Of a hub model the cache may hold a part; the rest is fetched when the run starts.
        if not is_hub_name(self.config.hf_model) and self.reads_headers:
            hf.check_numbers(source, config, hf.headers(source))
            if model is not None and model.doubts.misfit:
                hint = "the config belongs to another model, or a file is missing"
                raise ArtifactError(f"`{self.config.hf_model}` {model.doubts.misfit}", hint=hint)

    def inputs(self) -> Iterator[FileRef]:
        """The model."""
        yield FileRef("model", SOURCE, str(self.source or self.config.hf_model), "checkpoint_hf")


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
            expanded(config.output_dir),
            dtype=None if config.dtype == "auto" else config.dtype,
            verify=config.verify,
            overwrite=config.overwrite,
            hf_model_id=config.hf_model if is_hub_name(config.hf_model) else None,
            finish=recorder(attempt.job.step, "checkpoint_megatron", source, details),
            progress=progress,
        )
    finish(run, conversion, started)


STEP = PlainStep(config=Config, job=Job, rules=STAGES, run="nemotron.steps.convert.hf_to_megatron.step:run")
