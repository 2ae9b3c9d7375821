"""What the rules know of a conversion."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import ClassVar, Protocol, TypeVar

from pydantic import BaseModel

from nemotron.compile.jobs.step import PlainJob
from nemotron.compile.plan import FileRef
from nemotron.disk.home import expanded
from nemotron.promises import ModelPromise, Promise
from nemotron.steps.convert.run import is_hub_name

OUTPUT = "output_dir"
M = TypeVar("M", bound=BaseModel, covariant=True)


class Settings(Protocol):
    """What both configs have."""

    @property
    def output_dir(self) -> str: ...
    @property
    def verify(self) -> str: ...
    @property
    def overwrite(self) -> bool: ...


@dataclass(frozen=True)
class ConvertJob(PlainJob[M]):
    """One checkpoint to another form."""

    reason: ClassVar[str] = "a conversion is plain Python in this process, on the CPU"
    who: ClassVar[str] = "a conversion"
    source_key: ClassVar[str] = ""
    """The key that names what is converted."""
    kinds: ClassVar[tuple[str, str]] = ("", "")
    """Role and type of what is written."""

    @property
    def settings(self) -> Settings:
        """The config, as far as both conversions have it."""
        return self.config  # type: ignore[return-value]

    @property
    def source_name(self) -> str:
        """What is converted, as the config names it."""
        return str(getattr(self.config, self.source_key))

    @property
    def source(self) -> Path | None:
        """The checkpoint to convert; None when it is not there, as far as that is known."""
        raise NotImplementedError

    def unseen(self, name: str) -> bool:
        """Whether a Hugging Face model lies in a folder that only the job can look at."""
        return not is_hub_name(name) and not self.sees(name)

    @property
    def reads_headers(self) -> bool:
        """Whether headers of weights can be read here, and the conversion could read them where it runs."""
        return not self.place.lacking(self.modules) and find_spec("safetensors") is not None

    def hf_models(self) -> Iterator[tuple[str, str]]:
        """Key and name of the Hugging Face models that are read."""
        raise NotImplementedError

    def convert_on_paper(self) -> None:
        """Read what can be read without torch, as the conversion would. Raises ArtifactError."""
        raise NotImplementedError

    @property
    def modules(self) -> tuple[str, ...]:
        """transformers only to compare logits and to reach the hub."""
        wanted = self.settings.verify == "logits" or any(is_hub_name(name) for _, name in self.hf_models())
        return ("torch", "safetensors", "numpy", *(("transformers",) if wanted else ()))

    def promises(self) -> Iterator[Promise]:
        """The target, which is the source in another form."""
        made_of, tokenizer = self.made_of
        if made_of is not None:
            yield ModelPromise(self.kinds[1], made_of, tokenizer or made_of)

    @property
    def made_of(self) -> tuple[str | None, str | None]:
        """The Hugging Face model whose config the target has, and the one whose tokenizer; None where neither is
        known here."""
        raise NotImplementedError

    def folders(self) -> dict[str, tuple[str, Path]]:
        """Run folder, and the one in which the target will appear."""
        target = expanded(self.settings.output_dir).absolute()
        return {**super().folders(), "target": (OUTPUT, target.parent)}

    def outputs(self) -> Iterator[FileRef]:
        """Run folder and target."""
        yield FileRef("run folder", None, str(self.runs_dir), "job.json, status.json")
        yield FileRef(self.kinds[0], OUTPUT, self.settings.output_dir, self.kinds[1])
