"""What both conversions check before they start. Nothing is written, no connection is opened, torch is not loaded."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from nemotron.compile.plan import FileRef, Preflight
from nemotron.compile.probes.folders import existing
from nemotron.compile.probes.model_files import folder_of
from nemotron.config.layers import Resolved
from nemotron.errors import ArtifactError, Finding, NemotronError, NotAvailableError, OutputError
from nemotron.install import install_extra
from nemotron.place import Place
from nemotron.steps.convert.run import is_hub_name

OUTPUT = "output_dir"
_ENGINE_REASON = "a conversion is plain Python in this process, on the CPU"


@dataclass(frozen=True)
class Checks:
    """Findings of one conversion, in the order in which they are made."""

    resolved: Resolved
    place: Place
    found: list[Finding] = field(default_factory=list)

    def error(self, name: str, key: str | None, error: NemotronError) -> None:
        """Take up an error; its class decides the exit code."""
        origin = self.resolved.origin(key) if key else None
        self.found.append(Finding("error", name, error.message, key, origin, error.hint, exit_code=error.exit_code))

    @contextmanager
    def model_files(self, key: str) -> Iterator[None]:
        """Take up what the block finds wrong with the files that ``key`` names."""
        try:
            yield
        except ArtifactError as error:
            self.error("model-files", key, error)

    def has_modules(self, names: Iterable[str]) -> bool:
        """Whether the libraries that do the work are installed."""
        missing = self.place.lacking(names)
        if missing:
            noun = "module" if len(missing) == 1 else "modules"
            message = f"a conversion needs the {noun} {', '.join(f'`{name}`' for name in missing)}"
            self.error("engine-not-installed", None, NotAvailableError(message, hint=install_extra("local")))
        return not missing

    def output(self, output_dir: str, source: Path | None, runs_dir: Path, *, overwrite: bool) -> None:
        """The target is free or may be replaced, does not hold the source, and its parent takes a new folder."""
        target = Path(output_dir).expanduser().absolute()
        if source is not None and source.resolve().is_relative_to(target.resolve()):
            message = f"`{output_dir}` holds the checkpoint to convert, which would be lost"
            self.error("output-folder", OUTPUT, OutputError(message, hint="choose another `output_dir`"))
        elif not overwrite and (target.is_file() or (target.is_dir() and any(target.iterdir()))):
            hint = "choose an empty `output_dir`, or set `overwrite=true`"
            self.error("output-folder", OUTPUT, OutputError(f"`{output_dir}` exists already", hint=hint))
        for key, path, hint in (
            (None, runs_dir, "choose another place with `--runs-dir`"),
            (OUTPUT, target.parent, "set `output_dir`"),
        ):
            place = existing(path)
            reason = "is not a folder" if not place.is_dir() else "is not writable"
            if not place.is_dir() or not os.access(place, os.W_OK | os.X_OK):
                message = f"`{path if key is None else output_dir}` cannot be made: `{place}` {reason}"
                self.error("output-folder", key, OutputError(message, hint=hint))

    def hf_folder(self, key: str, name: str) -> Path | None:
        """Where a Hugging Face model lies on this machine; None when it has to be fetched, or cannot be."""
        if not is_hub_name(name):
            folder = Path(name).expanduser()
            if folder.is_dir():
                return folder
            message = f"`{name}` is a file, not a model folder" if folder.exists() else f"there is no folder `{name}`"
            hint = "give a folder with `config.json` and safetensors, or a hub name `owner/name`"
            self.error("model-files", key, ArtifactError(message, hint=hint))
            return None
        cached = folder_of(name, self.place)
        if cached is None and self.place.offline:
            message = f"the model `{name}` is not on this machine and downloads are switched off"
            hint = "unset `HF_HUB_OFFLINE`, or give a folder"
            self.error("model-files", key, ArtifactError(message, hint=hint))
        elif cached is None:
            message = f"the model `{name}` is not on this machine and will be downloaded"
            self.found.append(Finding("note", "model-files", message, key, self.resolved.origin(key)))
        return cached

    def result(self, *, inputs: Iterable[FileRef], output: FileRef, runs_dir: Path) -> Preflight:
        """Everything together."""
        run_folder = FileRef("run folder", None, str(runs_dir), "job.json, status.json")
        return Preflight(
            engine="plain",
            engine_reason=_ENGINE_REASON,
            findings=tuple(self.found),
            inputs=tuple(inputs),
            outputs=(run_folder, output),
        )


def needed_modules(verify: str, *model_names: str | None) -> list[str]:
    """The libraries that a conversion uses; transformers only to compare logits and to reach the hub."""
    names = ["torch", "safetensors", "numpy"]
    if verify == "logits" or any(name and is_hub_name(name) for name in model_names):
        names.append("transformers")
    return names
