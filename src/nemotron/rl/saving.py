"""What a training checkpoint holds, and how a run continues from one to the same bits."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any, Literal, Protocol

import torch
from safetensors import SafetensorError

from nemotron.artifacts.fingerprint import fingerprint
from nemotron.artifacts.kinds import Kind
from nemotron.artifacts.record import write_record
from nemotron.checkpoints import hf
from nemotron.checkpoints.megatron import families, layout
from nemotron.checkpoints.policy import write_root
from nemotron.checkpoints.store import CheckpointStore, damaged_hint, read_info
from nemotron.disk.faults import errors_of_rust
from nemotron.errors import ArtifactError, OutputError
from nemotron.rl.optim import Optimization
from nemotron.rl.state_files import read_state

POLICY = "policy"
"""Folder of the policy in a checkpoint; a critic's is ``value``."""
WEIGHTS = "weights"
"""In it the root of a Megatron-Core checkpoint: ``iter_0000000`` and the files that name it."""
HF = "hf"
"""In that the same weights as Hugging Face safetensors, when asked for or when the family does not convert."""
OPTIMIZER = Path("optimizer", "optimizer.pt")
TOKENIZER = "tokenizer"
DATALOADER = Path("train_dataloader.pt")
RNG = Path("rng_state.pt")


@dataclass(frozen=True, slots=True)
class Progress:
    """Counters of ``training_info.json``, NeMo-RL's names."""

    total_steps: int = 0
    """Finished steps over all epochs."""
    current_step: int = 0
    """Finished steps in this epoch."""
    current_epoch: int = 0
    consumed_samples: int = 0
    """Responses trained on."""
    total_valid_tokens: int = 0

    @property
    def step(self) -> int:
        """Finished steps."""
        return self.total_steps

    def after_step(self, next_epoch: int, samples: int, tokens: float) -> Progress:
        """The counters one step later; ``next_epoch`` is the epoch of the batch that follows."""
        same_epoch = next_epoch == self.current_epoch
        return replace(
            self,
            total_steps=self.total_steps + 1,
            current_step=self.current_step + 1 if same_epoch else 0,
            current_epoch=next_epoch,
            consumed_samples=self.consumed_samples + samples,
            total_valid_tokens=self.total_valid_tokens + int(tokens),
        )


class Stateful(Protocol):
    """Something with a position that a resumed run goes on from."""

    def state_dict(self) -> Any:
        """What ``load_state_dict`` needs."""
        ...

    def load_state_dict(self, state: Any) -> None:
        """Go back to ``state``."""
        ...


@dataclass(frozen=True, slots=True)
class Provenance:
    """What made a checkpoint."""

    step_id: str
    config_yaml: str
    """The resolved config."""
    config_fingerprint: str
    inputs: Sequence[Mapping[str, Any]]
    """Key, path and content hash of data and models."""


Layout = Literal["megatron", "hf"]


@dataclass(frozen=True, slots=True)
class Trained:
    """A model and its optimizer."""

    model: Any
    """Hugging Face model with float32 weights."""
    optimization: Optimization
    layout: Layout = "megatron"
    """``megatron``: as a Megatron-Core checkpoint where the family has a place there. ``hf``: only as safetensors."""


@dataclass(frozen=True)
class Saver:
    """Writes ``step_N`` folders and goes on from one."""

    store: CheckpointStore
    tokenizer: Any
    trained: Mapping[str, Trained]
    """By the name of their folder in a checkpoint: ``policy``, ``value``."""
    stream: Stateful
    """The training data."""
    provenance: Callable[[], Provenance]
    """Asked at the first save: the hashes of large inputs take a while."""
    save_hf: bool
    """Write Hugging Face weights beside Megatron's."""
    side_files: Mapping[str, bytes] = field(default_factory=dict)
    """What the model had beside its weights (`hf.side_files`); every checkpoint keeps it."""
    more: Callable[[Path], None] | None = None
    """Writes further files into a checkpoint before it appears."""

    def save(self, progress: Progress, metrics: Mapping[str, float]) -> Path:
        """Write ``step_N`` with everything the next step depends on. Raises OutputError."""

        with ThreadPoolExecutor(1, "hash-weights") as hashing:
            hashed: list[_Hashed] = []

            def write(folder: Path) -> None:
                try:
                    for name, trained in self.trained.items():
                        hashed.extend(self._write_model(folder / name, trained, hashing))
                    torch.save(self.stream.state_dict(), folder / DATALOADER)
                    torch.save({"torch": torch.get_rng_state()}, folder / RNG)
                except (RuntimeError, SafetensorError) as error:
                    # The writers of torch and safetensors do not raise OSError when the disk is full.
                    reason = str(error).splitlines()[0]
                    raise OutputError(
                        f"cannot write checkpoint of step {progress.step}: {reason}",
                        hint="free disk space, then go on with `--resume` from the checkpoint before",
                    ) from error
                if self.more is not None:
                    self.more(folder)
                (folder / "config.yaml").write_text(self.provenance().config_yaml)

            def write_records(folder: Path) -> None:
                for one in hashed:
                    self._record(one)

            info = {**asdict(progress), **_monitored(metrics)}
            return self.store.save(progress.step, info, write, write_records)

    def load(self, checkpoint: Path) -> Progress:
        """Put optimizers, data position and random state back (weights are loaded with their models).

        Raises:
            ArtifactError: a file of the checkpoint is missing or damaged.
        """
        info, hint = read_info(checkpoint), damaged_hint(checkpoint)
        try:
            for name, trained in self.trained.items():
                trained.optimization.load_state_dict(read_state(checkpoint / name / OPTIMIZER, hint))
            self.stream.load_state_dict(read_state(checkpoint / DATALOADER, hint))
            torch.set_rng_state(read_state(checkpoint / RNG, hint)["torch"])
            return Progress(**{field.name: info[field.name] for field in fields(Progress)})
        except (KeyError, ValueError) as error:
            raise ArtifactError(f"checkpoint `{checkpoint}` does not fit this job: {error}", hint=hint) from error

    def _write_model(self, folder: Path, trained: Trained, hashing: Executor) -> list[_Hashed]:
        """Weights (float32 masters), optimizer and tokenizer.

        The weights are hashed beside what is written and synced after them, which is more than they are; their records
        are still to be written.
        """
        model = trained.model
        tokenizer, root, optimizer = folder / TOKENIZER, folder / WEIGHTS, folder / OPTIMIZER
        with errors_of_rust():
            self.tokenizer.save_pretrained(tokenizer)
        root.mkdir(parents=True)
        hf_config = json.loads(model.config.to_json_string())
        hashed = []

        def finished(root: Path, kind: Kind) -> None:
            hashed.append(_Hashed(root, kind, hashing.submit(fingerprint, root, kind)))

        megatron = trained.layout == "megatron" and megatron_family(hf_config)
        if megatron:
            write_root(root, model.state_dict(), hf_config, tokenizer, None, None, self.side_files, None)
            finished(root, "checkpoint_megatron")
        if self.save_hf or not megatron:
            model.save_pretrained(root / HF)
            with errors_of_rust():
                self.tokenizer.save_pretrained(root / HF)
            # transformers writes one of its own making; what the model brought along counts.
            (root / HF / hf.GENERATION_CONFIG).unlink(missing_ok=True)
            for name, content in self.side_files.items():
                (root / HF / name).write_bytes(content)
            finished(root / HF, "checkpoint_hf")
        optimizer.parent.mkdir(parents=True)
        torch.save(trained.optimization.state_dict(), optimizer)
        return hashed

    def _record(self, weights: _Hashed) -> None:
        made_by = self.provenance()
        write_record(
            weights.root,
            kind=weights.kind,
            step=made_by.step_id,
            fingerprint=weights.fingerprint.result(),
            inputs=list(made_by.inputs),
            details={"config_fingerprint": made_by.config_fingerprint},
        )


@dataclass(frozen=True, slots=True)
class _Hashed:
    """Weights of an unfinished checkpoint that are being hashed."""

    root: Path
    kind: Kind
    fingerprint: Future[str]


def megatron_family(model_config: Mapping[str, Any]) -> bool:
    """Whether weights of this model (its ``config.json``) have a place in Megatron-Core's format."""
    try:
        families.from_hf(model_config, "the model")
    except ArtifactError:
        return False
    return True


def weights_of(checkpoint: Path) -> Path:
    """Where ``Policy.load_checkpoint`` finds the weights of a ``step_N``."""
    return checkpoint if layout.find_iteration(checkpoint) else checkpoint / POLICY / WEIGHTS / HF


@contextmanager
def of_own_checkpoint(checkpoint: Path) -> Iterator[None]:
    """What is wrong with a checkpoint (``step_N``) of the run itself, said so that the run can go on: of it there is no
    other copy.

    Raises:
        ArtifactError: as the block does, with that fix.
    """
    try:
        yield
    except ArtifactError as error:
        raise ArtifactError(error.message, hint=damaged_hint(checkpoint), origin=error.origin) from error


def _monitored(metrics: Mapping[str, float]) -> dict[str, float]:
    """Metrics under the names that `checkpointing.metric_name` uses: ``val:accuracy``, ``train:reward``."""
    renamed = {name.replace("validation/", "val:", 1).replace("train/", "train:", 1): v for name, v in metrics.items()}
    kept = {name: value for name, value in renamed.items() if name.startswith(("val:", "train:"))}
    # JSON has no NaN; a metric without value ranks worst, as one that is not there.
    return {name: value for name, value in kept.items() if json.dumps(value) not in ("NaN", "Infinity", "-Infinity")}
