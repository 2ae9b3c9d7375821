"""What the critic server computes: rewards, values, and updates of the critic. One call at a time.

Legend: B responses, S longest prompt plus response (see ``wire.py``).
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from nemotron.checkpoints import hf
from nemotron.checkpoints.libraries import load_tokenizer
from nemotron.checkpoints.store import damaged_hint
from nemotron.config.schema.ppo import CriticConfig, RewardSourceConfig, ValueConfig, ValueLossConfig
from nemotron.contracts.samples import Group, split_rows
from nemotron.disk.faults import errors_of_rust
from nemotron.errors import ArtifactError, ConfigError, EngineError, OutputError
from nemotron.rl.critic.wire import WireError, check_tokens, grouped, in_place
from nemotron.rl.losses import merge_metrics
from nemotron.rl.offload import tensors_of
from nemotron.rl.optim import Optimization
from nemotron.rl.saving import of_own_checkpoint
from nemotron.rl.scalar_model import ScalarModel
from nemotron.rl.state_files import read_state
from nemotron.rl.value_loss import ValueBatch, explained_variance, value_loss

WEIGHTS = Path("value", "weights")
OPTIMIZER = Path("value", "optimizer", "optimizer.pt")
TOKENIZER = Path("value", "tokenizer")
PART = "value"
"""The folder of the critic in a checkpoint."""
_UNFINISHED = "value.tmp"


class CriticModels:
    """Reward model and critic. Not thread-safe: the server calls from one thread.

    Example::

        models = CriticModels.load(config.value, config.value_loss_fn, config.reward_model, config.critic, folder)
        models.begin(step=0)
        answer = models.infer(tensors)
    """

    def __init__(
        self,
        reward: ScalarModel,
        value: ValueConfig,
        loss: ValueLossConfig,
        source: RewardSourceConfig,
        server: CriticConfig,
        checkpoints: Path | None,
        *,
        with_critic: bool = True,
    ) -> None:
        """``checkpoints``: the run's checkpoint folder. ``with_critic`` false: only rewards, values are 0."""
        self._reward, self._value, self._loss, self._server = reward, value, loss, server
        self._checkpoints, self._with_critic = checkpoints, with_critic
        self._critic: ScalarModel | None = None
        self._optimization: Optimization | None = None
        self._last: tuple[int, dict[str, float]] | None = None
        self._home = torch.device("cpu")
        self._work = reward.device
        self._shift, self._scale = _standard(reward, source)
        if server.offload in ("reward_model", "both"):
            _move(reward, self._home)

    @classmethod
    def load(
        cls,
        value: ValueConfig,
        loss: ValueLossConfig,
        source: RewardSourceConfig,
        server: CriticConfig,
        checkpoints: Path | None,
        *,
        with_critic: bool = True,
    ) -> CriticModels:
        """Load the reward model; the critic follows with ``begin``. Raises ArtifactError, ConfigError."""
        reward = ScalarModel.load(source.model_name, precision=value.precision)
        if server.offload in ("reward_model", "both"):
            reward.model.requires_grad_(False)  # what is rearranged once stays on one device
        else:
            reward.freeze()
        return cls(reward, value, loss, source, server, checkpoints, with_critic=with_critic)

    @property
    def vocabulary(self) -> int:
        """Tokens that the reward model knows."""
        return int(self._reward.model.config.vocab_size)

    def begin(self, step: int) -> None:
        """Put the critic where checkpoint ``step`` left it; 0: where training starts.

        Raises:
            ArtifactError: it cannot be loaded. ConfigError: its optimizer cannot be built.
        """
        self._last = None
        if not self._with_critic:
            return
        folder = self._folder(f"step_{step}") if step else None
        source = folder / WEIGHTS if folder else self._value.model_name
        with of_own_checkpoint(folder) if folder else contextlib.nullcontext():
            critic = ScalarModel.load(source, precision=self._value.precision)
        critic.recompute = self._value.activation_checkpointing
        if int(critic.model.config.vocab_size) != self.vocabulary:
            raise ConfigError(
                f"the critic knows {critic.model.config.vocab_size} tokens, the reward model {self.vocabulary}",
                hint="start the critic from the reward model: `value.model_name=${reward_model.model_name}`",
            )
        settings = self._value
        if settings.optimizer is None:
            raise ConfigError("the critic needs `value.optimizer`", hint="for example `torch.optim.AdamW`")
        optimization = Optimization.build(
            critic.parameters(),
            optimizer=settings.optimizer.model_dump(),
            scheduler=[entry.model_dump(exclude_none=True) for entry in settings.scheduler or []] or None,
            max_grad_norm=settings.max_grad_norm,
        )
        if folder:
            optimization.load_state_dict(read_state(folder / OPTIMIZER, damaged_hint(folder)))
        self._critic, self._optimization = critic, optimization
        if self._server.offload in ("critic", "both"):
            self._move_critic(self._home)

    def infer(self, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        """``values`` [B,S] and ``rewards`` [B] of an infer request. Raises WireError."""
        tokens, ends = tensors["tokens"], tensors["lengths"]
        starts = tensors.get("prompt_lengths", torch.ones_like(ends))
        self._check(tokens)
        groups = grouped(tokens, starts, ends)
        rows = self._value.logprob_rows
        with torch.no_grad(), self._visiting_reward():
            rewards = torch.cat([self._reward.sequence_scores(part).cpu() for part in split_rows(groups, rows)])
        values = torch.zeros(tokens.shape)
        if self._critic is not None:
            with torch.no_grad(), self._visiting_critic():
                values = self._values(groups, starts, ends, tokens.shape[1], rows)
        return {"values": values, "rewards": (rewards - self._shift) / self._scale}

    def train(self, tensors: dict[str, Tensor]) -> dict[str, float]:
        """One pass over the rows, an optimizer step per global batch; NeMo-RL's metrics.

        A request with the number of the last one is a retry: it gets the same answer and changes nothing.

        Raises:
            WireError: the request makes no sense. EngineError: the loss or gradient is not finite.
        """
        number = int(tensors["number"])
        if self._last is not None and self._last[0] == number:
            return self._last[1]
        expected = 0 if self._last is None else self._last[0] + 1
        if number != expected:
            raise WireError(f"update {number} where update {expected} is next")
        if self._critic is None or self._optimization is None:
            raise WireError("there is no critic to train")
        self._check(tensors["tokens"])
        with self._visiting_critic():
            metrics = self._update(tensors, self._optimization)
        self._last = number, metrics
        return metrics

    def save(self, step: int) -> None:
        """Write the critic's part into the checkpoint that the actor is writing. Raises WireError, OutputError."""
        if not self._with_critic:
            return
        if self._critic is None or self._optimization is None:
            raise WireError("there is no critic to save")
        folder = self._folder(f"tmp_step_{step}")
        if not folder.is_dir():
            raise OutputError(
                f"the critic's server does not see `{folder}`, which the actor has made",
                hint="set `checkpointing.checkpoint_dir` to one folder on a file system that both machines share",
            )
        if (folder / PART).is_dir():  # a retry: the part appears under its name when it is complete
            return
        unfinished = folder / _UNFINISHED
        try:
            unfinished.mkdir(exist_ok=True)
            tokenizer = _tokenizer(self._value.tokenizer.name)
            for name in (WEIGHTS, TOKENIZER):
                (unfinished / name.relative_to(PART)).mkdir(exist_ok=True)
            self._critic.save(unfinished / WEIGHTS.relative_to(PART), tokenizer)
            for file, content in hf.side_files(hf.small_files(self._value.model_name)).items():
                (unfinished / WEIGHTS.relative_to(PART) / file).write_bytes(content)
            with errors_of_rust():
                tokenizer.save_pretrained(unfinished / TOKENIZER.relative_to(PART))
            optimizer = unfinished / OPTIMIZER.relative_to(PART)
            optimizer.parent.mkdir(exist_ok=True)
            torch.save(self._optimization.state_dict(), optimizer)
            unfinished.rename(folder / PART)
        except (OSError, RuntimeError) as error:
            raise OutputError(
                f"cannot write the critic's part of checkpoint {step}: {str(error).splitlines()[0]}",
                hint="free disk space, then go on with `--resume` from the checkpoint before",
            ) from error

    def _check(self, tokens: Tensor) -> None:
        check_tokens(tokens, self.vocabulary, self._reward.max_length)

    def _values(self, groups: list[Group], starts: Tensor, ends: Tensor, width: int, rows: int) -> Tensor:
        """Standardised values [B,S]."""
        if self._critic is None:
            raise RuntimeError("values without a critic")
        parts, first = [], 0
        for part in split_rows(groups, rows):
            count = sum(len(group.completions) for group in part)
            bounds = slice(first, first + count)
            raw = self._critic.token_values(part)
            standard = (raw - self._shift) / self._scale
            parts.append(in_place(standard, starts[bounds], ends[bounds], width).cpu())
            first += count
        return torch.cat(parts)

    def _update(self, tensors: dict[str, Tensor], optimization: Optimization) -> dict[str, float]:
        seen = tensors["mask"].gt(0).any(1)
        reports, grad_norm = [], 0.0
        size = self._value.train_global_batch_size
        # A row that is masked leaves its place empty, as in the policy's batches: closing ranks would give the few rows
        # of a last batch a whole step of their own. Without a single row there is no step, not even one of momentum.
        for first in range(0, len(seen), size):
            kept = first + seen[first : first + size].nonzero().flatten()
            if not len(kept):
                continue
            reports.append(self._accumulate({name: one[kept] for name, one in tensors.items() if name != "number"}))
            grad_norm = optimization.clip_and_step()
            if not math.isfinite(grad_norm):
                raise EngineError("the critic's gradient is not finite", hint="lower `value.optimizer.kwargs.lr`")
        if not reports:
            raise WireError("no row has a valid token")
        lr = optimization.learning_rate
        optimization.step_scheduler()
        merged = merge_metrics(reports)
        merged = {k: v if k.endswith(("_min", "_max")) else v / len(reports) for k, v in merged.items()}
        return {**merged, "explained_var": explained_variance(merged), "grad_norm": grad_norm, "lr": lr}

    def _accumulate(self, rows: dict[str, Tensor]) -> dict[str, float]:
        """Gradients of one global batch."""
        if self._critic is None:
            raise RuntimeError("an update without a critic")
        mask, tokens = rows["mask"], rows["tokens"]
        columns = torch.arange(tokens.shape[1])
        starts = torch.where(mask > 0, columns, tokens.shape[1]).amin(1)
        ends = torch.where(mask > 0, columns + 1, 0).amax(1)
        groups = grouped(tokens, starts, ends)
        reports, first = [], 0
        for part in split_rows(groups, self._value.train_micro_batch_size):
            at = slice(first, first + sum(len(group.completions) for group in part))
            first = at.stop
            raw = self._critic.token_values(part)
            values = in_place((raw - self._shift) / self._scale, starts[at], ends[at], tokens.shape[1])
            batch = ValueBatch(*(rows[name][at].to(values.device) for name in ("returns", "prev_values", "mask")))
            loss, metrics = value_loss(values, batch, self._loss, global_valid_toks=float(mask.sum()))
            if not torch.isfinite(loss):
                raise EngineError("the critic's loss is not finite", hint="lower `value.optimizer.kwargs.lr`")
            loss.backward()  # type: ignore[no-untyped-call]
            reports.append(metrics)
        return merge_metrics(reports)

    def _folder(self, name: str) -> Path:
        if self._checkpoints is None:
            raise OutputError("the critic was started without a checkpoint folder")
        return self._checkpoints / name

    @contextlib.contextmanager
    def _visiting_reward(self) -> Iterator[None]:
        """The reward model on the device that computes, meanwhile."""
        away = self._server.offload in ("reward_model", "both") and self._work.type != "cpu"
        if away:
            _move(self._reward, self._work)
        yield
        if away:
            _move(self._reward, self._home)

    @contextlib.contextmanager
    def _visiting_critic(self) -> Iterator[None]:
        """The critic and its optimizer state on the device that computes, meanwhile."""
        away = self._server.offload in ("critic", "both") and self._work.type != "cpu"
        if away:
            self._move_critic(self._work)
        yield
        if away:
            self._move_critic(self._home)

    def _move_critic(self, device: torch.device) -> None:
        if self._critic is None or self._optimization is None:
            return
        _move(self._critic, device)
        for _, state, name, entry in tensors_of(self._optimization.optimizer):
            state[name] = entry.to(device)


def _move(model: ScalarModel, device: torch.device) -> None:
    model.model.to(device)
    if model.fused is not None:
        model.fused.forget()


def _standard(reward: ScalarModel, source: RewardSourceConfig) -> tuple[float, float]:
    """Mean and standard deviation that scores are standardised with; 0 and 1 when they are not."""
    if not source.standardize:
        return 0.0, 1.0
    mean, std = reward.reward_mean, reward.reward_std
    if not isinstance(mean, int | float) or not isinstance(std, int | float) or not 0 < std < math.inf:
        raise ArtifactError(
            f"the reward model `{source.model_name}` has no stored mean and spread of its rewards",
            hint="train it with `rl/nemo_rl/rm`, which stores them, or set `reward_model.standardize=false`",
        )
    return mean, std


def _tokenizer(name: str) -> Any:
    hint = "give the folder of a model with its tokenizer"
    return load_tokenizer(name, lambda reason: ArtifactError(f"cannot load tokenizer `{name}`: {reason}", hint=hint))
