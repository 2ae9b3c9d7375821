"""Check and run the step: an adapter and its base model to one whole model."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from nemotron.checkpoints.adapter_files import check_fit, pairs, read_adapter_config, weights_file
from nemotron.compile.declaration import PlainStep
from nemotron.compile.plan import FileRef
from nemotron.compile.probes.model_files import folder_of
from nemotron.disk.home import expanded
from nemotron.engines.base import Attempt
from nemotron.errors import ArtifactError
from nemotron.steps.convert.job import ConvertJob
from nemotron.steps.convert.merge_lora.config import Config
from nemotron.steps.convert.rules import STAGES
from nemotron.steps.convert.run import finish, is_hub_name, local_model, recorder, shown_progress

ADAPTER = "adapter"


def base_of(config: Config) -> str:
    """The base model by the name that the config or the adapter has for it. Raises ArtifactError: neither has one."""
    named = read_adapter_config(expanded(config.adapter))
    base = config.base or named.get("base_model_name_or_path")
    if not base:
        raise ArtifactError(
            f"the adapter `{config.adapter}` does not name the model that it was trained on", hint="name it as `base`"
        )
    return str(base)


@dataclass(frozen=True)
class Job(ConvertJob[Config]):
    """An adapter and its base model to one whole model."""

    source_key: ClassVar[str] = ADAPTER
    kinds: ClassVar[tuple[str, str]] = ("model", "checkpoint_hf")

    @property
    def source(self) -> Path | None:
        """The adapter's folder; None where there is none."""
        folder = expanded(self.config.adapter)
        return folder if not self.sees(self.config.adapter) or folder.is_dir() else None

    @property
    def made_of(self) -> tuple[str | None, str | None]:
        """The base model, where it is named."""
        return self.config.base, None

    def hf_models(self) -> Iterator[tuple[str, str]]:
        """The base model, where it is known."""
        if self.config.base is not None:
            yield "base", self.config.base

    def convert_on_paper(self) -> None:
        """The adapter is one that is merged, and of the base model, by the headers of both.

        Raises:
            ArtifactError: as the conversion would.
        """
        from nemotron.checkpoints import hf

        # Of an adapter that cannot be looked at, the base model is known where the config names it.
        name = base_of(self.config) if self.sees(self.config.adapter) else self.config.base
        if name is None:
            return
        folder = folder_of(name, self.place)
        if not self.reads_headers:
            return
        base = None
        if folder is not None and not is_hub_name(name):
            base = hf.headers(folder)
            hf.check_numbers(folder, hf.read_config(folder), base)
        if self.sees(self.config.adapter):
            adapter = expanded(self.config.adapter)
            shapes = {name: header.shape for name, header in hf.headers_of(weights_file(adapter)).items()}
            found = pairs(adapter, read_adapter_config(adapter), shapes)
            if base is not None:
                check_fit(adapter, found, shapes, {name: header.shape for name, header in base.items()})

    def inputs(self) -> Iterator[FileRef]:
        """The adapter, and the model."""
        yield FileRef("adapter", ADAPTER, self.config.adapter, "checkpoint_lora")
        if self.config.base is not None:
            yield FileRef("model", "base", self.config.base, "checkpoint_hf")


def run(attempt: Attempt) -> None:
    """Merge, verify, record. Needs no secrets.

    Raises:
        ArtifactError: the adapter is not of this model, or not merged here (by name). OutputError: the target cannot be
            written.
    """
    from nemotron.checkpoints.lora import merge_lora

    started = time.monotonic()
    run, config = attempt.run, attempt.settings(Config)
    base = base_of(config)
    details = {"verified": config.verify, "dtype": config.dtype, "run": run.id, "base": base}
    run.write_status(state="running", phase="merging", error=None, exit_code=None)
    source, adapter = local_model(base), expanded(config.adapter)
    with shown_progress() as progress:
        conversion = merge_lora(
            adapter,
            source,
            expanded(config.output_dir),
            dtype=None if config.dtype == "auto" else config.dtype,
            verify=config.verify == "weights",
            overwrite=config.overwrite,
            finish=recorder(attempt.job.step, "checkpoint_hf", adapter, details),
            progress=progress,
        )
    finish(run, conversion, started)


STEP = PlainStep(config=Config, job=Job, rules=STAGES, run="nemotron.steps.convert.merge_lora.step:run")
