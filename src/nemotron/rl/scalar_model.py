"""A causal model with one scalar head: a reward model (the scalar after a whole response) or a critic (one per token).

It is Hugging Face's ``AutoModelForSequenceClassification`` with ``num_labels`` 1 in both roles, so that a folder
written here is read by everything that reads such models.

Legend: N rows (prompt-major), T longest response in tokens. Weights are float32 masters; ``precision`` is that of the
matrix products, the head always computes in float32. Dropout is never active.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from nemotron.checkpoints import hf
from nemotron.checkpoints.kinds import SCORER_HINT, START_HINT
from nemotron.contracts.samples import Group
from nemotron.disk.faults import errors_of_rust
from nemotron.errors import ArtifactError, ConfigError
from nemotron.rl.frozen import freeze
from nemotron.rl.fused_llama import FusedLlama, shape_of
from nemotron.rl.generic import generic_scores, generic_values, shares_prompts
from nemotron.rl.llama_logprobs import llama_scores, llama_values
from nemotron.rl.policy import DTYPES, LONGEST_WRITTEN_OUT, Policy, Precision, read_model, resolve_device

_HEAD = "score"


class ScalarModel:
    """A sequence classifier with one output.

    Example::

        rewards = ScalarModel.load("reward_model").sequence_scores(groups)            # [N]
        critic = ScalarModel.from_policy(policy, seed=1)
        values = critic.token_values(groups)                                          # [N,T], differentiable
    """

    def __init__(self, model: Any, *, precision: Precision = "float32") -> None:
        """Wrap a sequence classifier of transformers whose weights are float32 already.

        Raises:
            ArtifactError: more than one output, or no decoder below a linear head.
        """
        self.model: Any = model.eval()
        if self.model.config.num_labels != 1:
            raise ArtifactError(
                f"the classifier has {self.model.config.num_labels} outputs, a reward model has one",
                hint="give a model that was trained with `num_labels: 1`",
            )
        _head_of(model)
        self.precision: Precision = precision
        self.dtype = DTYPES[precision]
        self.device: torch.device = next(model.parameters()).device
        shape = shape_of(model)
        self.fused = None if shape is None else FusedLlama(model, shape)
        self.shares_prompts = shares_prompts(model.base_model)
        self.recompute = False
        """Activations are computed anew in the backward pass in the place of being kept."""

    @classmethod
    def load(cls, path: str | Path, *, precision: Precision = "float32", device: str = "auto") -> ScalarModel:
        """Read a Hugging Face sequence-classification checkpoint: a local folder, or a hub name.

        Raises:
            ArtifactError: missing, corrupt, incomplete, without a head, or with more than one output.
            NotAvailableError: ``cuda`` on a machine without.
        """
        _refuse_language_model(Path(path))
        model = read_model(str(path), "AutoModelForSequenceClassification", "reward model")
        return cls(model.to(resolve_device(device)), precision=precision)

    @classmethod
    def from_policy(
        cls, policy: str | Path | Policy, *, seed: int, precision: Precision | None = None, device: str = "auto"
    ) -> ScalarModel:
        """The body of a causal LM with a fresh head, normal with the standard deviation the model was initialised with.

        Args:
            policy: a checkpoint that ``Policy.load_checkpoint`` reads, or a policy, whose weights are copied.
            precision: that of the policy when not given.

        Raises:
            ArtifactError: as ``Policy.load_checkpoint``, or a family without a sequence classifier.
        """
        if not isinstance(policy, Policy):
            policy = Policy.load_checkpoint(Path(policy), device=device)
        body = copy.deepcopy(policy.model.base_model)
        return cls(_classifier(body, seed), precision=precision or policy.precision)

    def parameters(self) -> Iterator[nn.Parameter]:
        """The weights an optimizer may change."""
        return (p for p in self.model.parameters() if p.requires_grad)

    def frozen_copy(self) -> ScalarModel:
        """A copy that is frozen."""
        return ScalarModel(copy.deepcopy(self.model), precision=self.precision).freeze()

    def freeze(self) -> ScalarModel:
        """As ``Policy.freeze``; the head stays in float32."""
        freeze(self.model, self.fused, self.dtype, keep=getattr(self.model, _HEAD))
        return self

    @property
    def max_length(self) -> int | None:
        """Longest sequence the model was built for, in tokens; None when its config does not say."""
        length = getattr(self.model.config, "max_position_embeddings", None)
        return None if length is None else int(length)

    @property
    def reward_mean(self) -> float | None:
        """Mean reward on the training set, kept in ``config.json``; None before it was measured."""
        return getattr(self.model.config, "reward_mean", None)

    @property
    def reward_std(self) -> float | None:
        """Standard deviation of the rewards on the training set, as ``reward_mean``."""
        return getattr(self.model.config, "reward_std", None)

    def set_reward_statistics(self, mean: float, std: float) -> None:
        """Keep mean and standard deviation of the training set's rewards with the model."""
        self.model.config.reward_mean, self.model.config.reward_std = float(mean), float(std)

    def sequence_scores(self, groups: Sequence[Group]) -> Tensor:
        """The head at the last token of each completion, the prompt of a group computed once.

        Returns:
            [N] float32 on ``device``; differentiable where grad is enabled.
        """
        if self._written_out(groups):
            return llama_scores(self.fused, groups, self.dtype, recompute=self.recompute)  # type: ignore[arg-type]
        return generic_scores(self, groups)

    def token_values(self, groups: Sequence[Group]) -> Tensor:
        """Column t: the head at the token before response token t, i.e. the value before that token is drawn.

        Returns:
            [N,T] float32 on ``device``, 0.0 beyond the end of a response; differentiable where grad is enabled.
        """
        if self._written_out(groups):
            return llama_values(self.fused, groups, self.dtype, recompute=self.recompute)  # type: ignore[arg-type]
        return generic_values(self, groups)

    def forward(self, ids: Tensor, cache: Any, *, last_only: bool) -> tuple[Tensor, Any]:
        """Scalars [n,t,1] through the model's own forward; see ``generic.Model``."""
        kwargs: dict[str, Any] = {} if cache is None else {"past_key_values": cache}
        if self.shares_prompts:
            kwargs["use_cache"] = True
        with torch.autocast(self.device.type, dtype=self.dtype, enabled=self.dtype != torch.float32):
            out = self.model.base_model(input_ids=ids, **kwargs)
        hidden = out.last_hidden_state
        outputs = self.model.score((hidden[:, -1:] if last_only else hidden).float())
        return outputs, out.past_key_values if self.shares_prompts else None

    @property
    def vocabulary(self) -> int:
        """One number a token."""
        return 1

    def body(self, ids: Tensor, cache: Any) -> Tensor:
        """Hidden states behind the last layer; see ``generic.Model``."""
        kwargs: dict[str, Any] = {} if cache is None else {"past_key_values": cache, "use_cache": True}
        with torch.autocast(self.device.type, dtype=self.dtype, enabled=self.dtype != torch.float32):
            hidden: Tensor = self.model.base_model(input_ids=ids, **kwargs)[0]
        return hidden

    def head(self, hidden: Tensor) -> Tensor:
        """The scalar of hidden states; see ``generic.Model``."""
        found: Tensor = self.model.score(hidden.float())
        return found

    def save(self, folder: Path, tokenizer: Any) -> None:
        """Write a folder that ``AutoModelForSequenceClassification`` and ``AutoTokenizer`` load.

        ``tokenizer`` has a padding token (see ``padding_token``): Hugging Face finds the end of a padded row by it.
        """
        self.model.config.pad_token_id = tokenizer.pad_token_id
        self.model.save_pretrained(folder)
        with errors_of_rust():
            tokenizer.save_pretrained(folder)

    def _written_out(self, groups: Sequence[Group]) -> bool:
        longest = max(len(g.prompt_ids) + len(c.token_ids) for g in groups for c in g.completions)
        return self.fused is not None and longest <= min(LONGEST_WRITTEN_OUT, self.max_length or longest)


def padding_token(tokenizer: Any) -> str:
    """A token that can pad rows of a sequence classifier: not the end of sequence, after which the score is read.

    Hugging Face takes the score at the last token that is not padding. With the end-of-sequence token as padding it
    would read it one token early.

    Raises:
        ConfigError: the tokenizer has none.
    """
    specials = list(tokenizer.added_tokens_encoder)
    named = [token for token in specials if "pad" in token.lower()]
    reserved = [token for token in specials if "reserved" in token.lower()]
    for token in [tokenizer.pad_token, *named, tokenizer.unk_token, *reserved]:
        if token is not None and token not in (tokenizer.eos_token, tokenizer.bos_token):
            return str(token)
    raise ConfigError(
        "the tokenizer has no padding token that differs from its end-of-sequence token",
        hint="set `pad_token` in its `tokenizer_config.json` to another special token",
    )


def _refuse_language_model(folder: Path) -> None:
    """Say it plainly before transformers draws a random head."""
    if not hf.is_hf(folder):
        return
    architectures = hf.read_config(folder).get("architectures") or []
    if any(str(name).endswith("ForCausalLM") for name in architectures):
        raise ArtifactError(
            f"`{folder}` is a language model without a reward head",
            hint="train a reward model from it with `nemotron steps run rl/nemo_rl/rm`",
        )


def _head_of(model: nn.Module) -> nn.Linear:
    head = getattr(model, _HEAD, None)
    if type(head) is not nn.Linear:
        raise ArtifactError(f"`{type(model).__name__}` is not a decoder with a linear head `{_HEAD}`", hint=SCORER_HINT)
    return head


def _classifier(body: Any, seed: int) -> nn.Module:
    """A sequence classifier around ``body``, which it takes over."""
    import transformers

    config = copy.deepcopy(body.config)
    config.num_labels = 1
    auto: Any = transformers.AutoModelForSequenceClassification
    try:
        with torch.random.fork_rng(devices=[]), torch.device("meta"):
            model: Any = auto.from_config(config, dtype=torch.float32)
    except ValueError as error:
        raise ArtifactError(
            f"models of type `{config.model_type}` have no sequence classifier in transformers",
            hint=START_HINT,
        ) from error
    weight, head = next(body.parameters()), _head_of(model)
    std = float(getattr(config.get_text_config(), "initializer_range", 0.02))
    drawn = torch.empty(head.weight.shape).normal_(0.0, std, generator=torch.Generator().manual_seed(seed))
    head.weight = nn.Parameter(drawn.to(weight.device))
    setattr(model, model.base_model_prefix, body.requires_grad_(True))
    return model  # type: ignore[no-any-return]
