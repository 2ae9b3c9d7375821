"""What a training checkpoint holds, and how a run continues from one to the same bits."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors import SafetensorError

from nemotron.artifacts.fingerprint import fingerprint
from nemotron.artifacts.record import write_record
from nemotron.checkpoints.megatron import families, layout
from nemotron.checkpoints.policy import write_root
from nemotron.checkpoints.store import read_info
from nemotron.errors import ArtifactError, OutputError

if TYPE_CHECKING:
    from nemotron.rl.loops.grpo import Grpo

WEIGHTS = Path("policy", "weights")
"""The root of a Megatron-Core checkpoint: ``iter_0000000`` and the files that name it."""
HF_WEIGHTS = WEIGHTS / "hf"
"""Beside it the same weights as Hugging Face safetensors, when asked for or when the family does not convert."""
OPTIMIZER = Path("policy", "optimizer", "optimizer.pt")
TOKENIZER = Path("policy", "tokenizer")
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


def save_checkpoint(job: Grpo, progress: Progress, metrics: Mapping[str, float]) -> Path:
    """Write ``step_N`` with everything the next step depends on. Raises OutputError."""

    def write(folder: Path) -> None:
        try:
            job.chat.tokenizer.save_pretrained(folder / TOKENIZER)
            _write_weights(job, folder)
            for name, state in (
                (OPTIMIZER, job.optimization.state_dict()),
                (DATALOADER, job.stream.state_dict()),
                (RNG, {"torch": torch.get_rng_state()}),
            ):
                (folder / name).parent.mkdir(parents=True, exist_ok=True)
                torch.save(state, folder / name)
        except (RuntimeError, SafetensorError) as error:
            # The writers of torch and safetensors do not raise OSError when the disk is full.
            reason = str(error).splitlines()[0]
            raise OutputError(
                f"cannot write checkpoint of step {progress.step}: {reason}",
                hint="free disk space, then go on with `--resume` from the checkpoint before",
            ) from error
        (folder / "config.yaml").write_text(job.config_yaml)

    return job.store.save(progress.step, {**asdict(progress), **_monitored(metrics)}, write)


def megatron_family(model_config: Mapping[str, Any]) -> bool:
    """Whether weights of this model (its ``config.json``) have a place in Megatron-Core's format."""
    try:
        families.from_hf(model_config, "the model")
    except ArtifactError:
        return False
    return True


def weights_of(checkpoint: Path) -> Path:
    """Where ``Policy.load_checkpoint`` finds the weights of a ``step_N``."""
    hf = checkpoint / HF_WEIGHTS
    return checkpoint if layout.find_iteration(checkpoint) else hf


def _write_weights(job: Grpo, folder: Path) -> None:
    """Float32 masters as a Megatron-Core checkpoint with its record; as safetensors too where that is wanted."""
    model = job.policy.model
    hf_config = json.loads(model.config.to_json_string())
    converts = megatron_family(hf_config)
    root = folder / WEIGHTS
    root.mkdir(parents=True)
    if converts:
        write_root(root, model.state_dict(), hf_config, folder / TOKENIZER, None, None, None, None)
        write_record(
            root,
            kind="checkpoint_megatron",
            step=job.step_id,
            fingerprint=fingerprint(root, "checkpoint_megatron"),
            inputs=list(job.inputs),
            details={"config_fingerprint": job.config_fingerprint},
        )
    if job.save_hf or not converts:
        model.save_pretrained(folder / HF_WEIGHTS)
        job.chat.tokenizer.save_pretrained(folder / HF_WEIGHTS)


def load_checkpoint(job: Grpo, checkpoint: Path) -> Progress:
    """Put optimizer, data position and random state back (weights are loaded with the policy).

    Raises:
        ArtifactError: a file of the checkpoint is missing or damaged.
    """
    info = read_info(checkpoint)
    try:
        job.optimization.load_state_dict(_load(checkpoint / OPTIMIZER))
        job.stream.load_state_dict(_load(checkpoint / DATALOADER))
        torch.set_rng_state(_load(checkpoint / RNG)["torch"])
        return Progress(**{field.name: info[field.name] for field in fields(Progress)})
    except (KeyError, ValueError) as error:
        raise ArtifactError(f"checkpoint `{checkpoint}` does not fit this job: {error}", hint=_DAMAGED_HINT) from error


_DAMAGED_HINT = "remove that folder; the run then resumes from the checkpoint before it"


def _load(path: Path) -> Any:
    import pickle

    try:
        return torch.load(path, weights_only=True)
    except (OSError, RuntimeError, EOFError, pickle.UnpicklingError) as error:
        raise ArtifactError(f"`{path}` cannot be read: {error}", hint=_DAMAGED_HINT) from error


def _monitored(metrics: Mapping[str, float]) -> dict[str, float]:
    """Metrics under the names that `checkpointing.metric_name` uses: ``val:accuracy``, ``train:reward``."""
    renamed = {name.replace("validation/", "val:", 1).replace("train/", "train:", 1): v for name, v in metrics.items()}
    kept = {name: value for name, value in renamed.items() if name.startswith(("val:", "train:"))}
    # JSON has no NaN; a metric without value ranks worst, as one that is not there.
    return {name: value for name, value in kept.items() if json.dumps(value) not in ("NaN", "Infinity", "-Infinity")}
