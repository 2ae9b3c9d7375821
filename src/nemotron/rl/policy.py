"""A causal language model as GRPO needs it: log-probabilities of responses, each prompt computed once per group.

Legend: N rows (prompt-major), T longest response in tokens, V vocabulary.

The weights are float32 masters on one device. ``precision`` is that of the matrix products; log-probabilities are
always computed in float32. Dropout is never active: the policy that is trained is the policy that was sampled.
"""

from __future__ import annotations

import copy
import inspect
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from nemotron.checkpoints import hf
from nemotron.checkpoints.adapter_files import not_a_model
from nemotron.checkpoints.kinds import WRITER_HINT, no_writer
from nemotron.checkpoints.libraries import refusing_damage
from nemotron.checkpoints.policy import load_policy_weights
from nemotron.checkpoints.surplus import beyond_layers
from nemotron.contracts.samples import Group
from nemotron.errors import ArtifactError, NotAvailableError
from nemotron.rl.frozen import freeze
from nemotron.rl.fused_llama import FusedLlama, shape_of
from nemotron.rl.generic import generic_logprobs, shares_prompts
from nemotron.rl.llama_head import reading
from nemotron.rl.llama_logprobs import llama_logprobs

Precision = Literal["float32", "bfloat16", "float16"]
DTYPES: dict[str, torch.dtype] = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}

# Longer sequences go through torch's attention, which does not keep the scores.
LONGEST_WRITTEN_OUT = 1024


class Policy:
    """A causal LM with float32 weights.

    Example::

        policy = Policy.load("checkpoints/step_10/policy/hf", precision="bfloat16", device="cpu")
        logprobs = policy.response_logprobs(groups)   # [N,T], differentiable unless grad is off
    """

    def __init__(self, model: nn.Module, *, precision: Precision = "float32") -> None:
        """Wrap a transformers causal LM whose weights are float32 already."""
        self.model: Any = model.eval()
        self.precision: Precision = precision
        self.dtype = DTYPES[precision]
        self.device: torch.device = next(model.parameters()).device
        shape = shape_of(model)
        self.fused = None if shape is None else FusedLlama(model, shape)
        self.shares_prompts = shares_prompts(model)
        self.recompute = False
        """Activations are computed anew in the backward pass in the place of being kept."""

    @classmethod
    def load(cls, path: str | Path, *, precision: Precision = "float32", device: str = "auto") -> Policy:
        """Read a Hugging Face checkpoint: a local folder, or a hub name that is cached or can be fetched.

        Args:
            precision: of the matrix products; the weights are float32 in any case.
            device: ``cpu``, ``cuda``, or ``auto`` (CUDA when there is one).

        Raises:
            ArtifactError: missing, corrupt, incomplete, or not a causal LM.
            NotAvailableError: ``cuda`` on a machine without.
        """
        return cls(
            read_model(str(path), "AutoModelForCausalLM", "causal language model").to(resolve_device(device)),
            precision=precision,
        )

    @classmethod
    def load_checkpoint(cls, path: Path, *, precision: Precision = "float32", device: str = "auto") -> Policy:
        """Read a Megatron-Core checkpoint (iteration, root, or NeMo-RL ``step_N``) or a Hugging Face folder.

        Nothing in it is executed. Weights are copied one at a time into a Hugging Face model.

        Raises:
            ArtifactError: missing, corrupt, hostile, or of a family that does not convert.
            NotAvailableError: as ``load``.
        """
        import transformers

        found = load_policy_weights(path)
        auto: Any = transformers.AutoModelForCausalLM
        message = f"the config in `{path}` makes no model"
        with refusing_damage(lambda reason: ArtifactError(f"{message}: {reason}", hint="copy the checkpoint again")):
            config = transformers.AutoConfig.for_model(**found.hf_config)
            model = auto.from_config(config, dtype=torch.float32)
        found.copy_into(model)
        check_values(model, str(path))
        return cls(model.to(resolve_device(device)), precision=precision)

    def frozen_copy(self) -> Policy:
        """A copy that is frozen: the reference policy."""
        return Policy(copy.deepcopy(self.model), precision=self.precision).freeze()

    def freeze(self) -> Policy:
        """Let the weights never change; see ``nemotron.rl.frozen.freeze``."""
        freeze(self.model, self.fused, self.dtype)
        return self

    def parameters(self) -> Iterator[nn.Parameter]:
        """The weights an optimizer may change; tied ones once."""
        return (p for p in self.model.parameters() if p.requires_grad)

    @property
    def max_length(self) -> int | None:
        """Longest sequence the model was built for, in tokens; None when its config does not say."""
        length = getattr(self.model.config, "max_position_embeddings", None)
        return None if length is None else int(length)

    def autocast(self) -> AbstractContextManager[Any]:
        """Context in which a plain forward of ``model`` computes in ``precision``."""
        if self.dtype == torch.float32:
            return nullcontext()
        return torch.autocast(self.device.type, dtype=self.dtype)

    def forward(self, ids: Tensor, cache: Any, *, last_only: bool) -> tuple[Tensor, Any]:
        """Logits of ``ids`` [n,t] after ``cache`` through the model's own forward; see ``generic.Model``."""
        kwargs: dict[str, Any] = {} if cache is None else {"past_key_values": cache}
        if last_only and "logits_to_keep" in inspect.signature(self.model.forward).parameters:
            kwargs["logits_to_keep"] = 1
        if self.shares_prompts:
            kwargs["use_cache"] = True
        with self.autocast():
            out = self.model(input_ids=ids, **kwargs)
        return out.logits, out.past_key_values if self.shares_prompts else None

    @property
    def vocabulary(self) -> int:
        """Words that a logit is computed for."""
        return int(self.model.get_output_embeddings().weight.shape[0])

    def body(self, ids: Tensor, cache: Any) -> Tensor:
        """Hidden states behind the last layer; see ``generic.Model``."""
        found: list[Tensor] = []
        handle = self.model.get_decoder().register_forward_hook(lambda *call: found.append(call[-1][0]))
        try:
            self.forward(ids, cache, last_only=True)
        finally:
            handle.remove()
        return found[-1]

    def head(self, hidden: Tensor) -> Tensor:
        """Logits of hidden states; see ``generic.Model``."""
        # Families scale and cap their logits behind the output layer, in the forward of the whole model: it runs with a
        # body that has its result already.
        body, result = self.model.get_decoder(), _Result(hidden[None])
        body.forward = lambda *args, **kwargs: result
        try:
            with self.autocast():
                logits: Tensor = self.model(input_ids=hidden.new_zeros(1, len(hidden), dtype=torch.int64)).logits[0]
        finally:
            del body.forward
        return logits

    def response_logprobs(
        self, groups: Sequence[Group], *, temperature: float = 1.0, top_k: int | None = None, top_p: float = 1.0
    ) -> Tensor:
        """Log-probability of every response token given what stands before it.

        The prompt of a group is computed once and shared by its responses, with exact gradients. Where grad is
        enabled the result is differentiable.

        Args:
            groups: each with at least one response; a prompt may occur in several groups.
            temperature: divides the logits; 0 (greedy sampling) counts as 1.
            top_k, top_p: the filters the responses were sampled with; a token outside them gets ``-inf``.

        Returns:
            [N,T] float32 on ``device``, rows prompt-major, 0.0 beyond the end of a response.
        """
        longest = max(len(g.prompt_ids) + len(c.token_ids) for g in groups for c in g.completions)
        if self.fused is not None and longest <= min(LONGEST_WRITTEN_OUT, self.max_length or longest):
            how = reading(temperature, top_k, top_p, self.fused.shape.logit_cap)
            return llama_logprobs(self.fused, groups, how, self.dtype, recompute=self.recompute)
        return generic_logprobs(self, groups, temperature=temperature, top_k=top_k, top_p=top_p)


class _Result:
    """What a body gives, for the forward of the whole model: hidden states, and None for whatever else it looks at."""

    def __init__(self, hidden: Tensor) -> None:
        self.last_hidden_state = hidden

    def __getitem__(self, index: int) -> Tensor:
        return (self.last_hidden_state,)[index]

    def __getattr__(self, name: str) -> None:
        return None


def resolve_device(name: str) -> torch.device:
    """``auto`` | ``cpu`` | ``cuda`` -> a torch device; NotAvailableError when there is no such device."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if name.startswith("cuda") and not torch.cuda.is_available():
        raise NotAvailableError("no CUDA device is available", hint="use the device `cpu` or `auto`")
    return torch.device(name)


def read_model(path: str, loader: str, kind: str) -> nn.Module:
    """The model at ``path`` in float32, every weight present.

    Args:
        path: a Hugging Face folder or a hub name.
        loader: name of the transformers class that reads it.
        kind: what that class reads, as messages call it.

    Raises:
        ArtifactError: missing, corrupt, incomplete, or not of that kind.
    """
    import transformers

    folder = Path(path)
    if (problem := not_a_model(folder)) is not None:
        raise ArtifactError(f"`{path}` {problem[0]}", hint=problem[1])
    if folder.is_dir() and not (folder / "config.json").is_file():
        raise ArtifactError(f"`{path}` has no `config.json`", hint="give the folder of a Hugging Face checkpoint")
    if (fault := hf.layout_fault(folder)) is not None:
        raise fault
    transformers.logging.disable_progress_bar()  # type: ignore[no-untyped-call]

    def refusal(reason: str) -> ArtifactError:
        if folder.exists():
            message = f"`{path}` cannot be read as a {kind}: {reason}"
            return ArtifactError(message, hint=_remedy(folder))
        return ArtifactError(
            f"`{path}` is neither a folder nor a model that can be fetched: {reason}",
            hint="check the name, or download the model first when there is no network",
        )

    auto: Any = getattr(transformers, loader)
    with refusing_damage(refusal):
        loaded: Any = auto.from_pretrained(path, dtype=torch.float32, output_loading_info=True)
    model, report = loaded
    if model.can_generate():
        # We sample ourselves, and the model's own file is kept as it is (`hf.SIDE_FILES`). One with settings that
        # transformers calls contradictory would end the run at its first checkpoint.
        empty: Any = transformers.GenerationConfig
        model.generation_config = empty()
    missing = sorted(report["missing_keys"]) + sorted(str(key) for key in report["mismatched_keys"])
    if missing:
        raise ArtifactError(
            f"`{path}` lacks weights the model needs: {', '.join(missing[:3])}" + (" ..." if len(missing) > 3 else ""),
            hint="restore or re-export the checkpoint",
        )
    beyond = beyond_layers(model.config.get_text_config().to_dict(), map(str, report["unexpected_keys"]))
    if beyond:
        raise ArtifactError(
            f"`{path}` has the weight `{beyond[0]}`, and its `config.json` means no such layer",
            hint="the config belongs to another model: copy or download it again",
        )
    _refuse_whole_numbers(folder)
    check_values(model, path)
    _say_untied(model)
    checked: nn.Module = model
    return checked


def _remedy(folder: Path) -> str:
    """What to do with a folder that transformers does not read: of quantised weights it asks for other libraries."""
    try:
        config = hf.read_config(folder)
    except ArtifactError:
        config = {}
    if "quantization_config" in config:
        return hf.UNQUANTISED
    return WRITER_HINT if no_writer(config) else "restore or re-export the checkpoint"


def _refuse_whole_numbers(folder: Path) -> None:
    """transformers turns them into floating point without a word, and without their scale they mean nothing."""
    if (folder / hf.SINGLE).is_file():
        stored = hf.headers_of(folder / hf.SINGLE)
    else:
        stored = hf.headers(folder) if (folder / hf.INDEX).is_file() else {}
    for name, header in stored.items():
        if (problem := hf.whole_numbers(name, header.dtype)) is not None:
            raise ArtifactError(f"`{folder}` {problem}", hint=hf.UNQUANTISED)


def check_values(model: nn.Module, path: str) -> None:
    """One pass over all weights: training on numbers that are none would end at its first loss, and blame the rate.

    Raises:
        ArtifactError: a weight is NaN or infinite, or of a type that is not trained.
    """
    for name, weight in model.named_parameters():
        if weight.dtype != torch.float32:
            kind = str(weight.dtype).removeprefix("torch.")
            raise ArtifactError(f"`{path}` holds `{name}` as {kind}, so its weights are quantised", hint=hf.UNQUANTISED)
        # The sum needs no second tensor; that of large numbers may overflow.
        if not (torch.isfinite(weight.detach().sum()) or torch.isfinite(weight).all()):
            raise ArtifactError(
                f"`{path}` holds numbers in `{name}` that are not finite (NaN or infinite)",
                hint="use a checkpoint from before that, or copy or download it again",
            )


def _say_untied(model: Any) -> None:
    """Correct the config of a model that came with an output layer of its own although the config ties it.

    transformers then trains that layer; whoever reads a checkpoint of the model by its config would drop it.
    """
    head = model.get_output_embeddings()
    if head is None or head.weight is model.get_input_embeddings().weight:
        return
    for config in (model.config, model.config.get_text_config()):
        if getattr(config, "tie_word_embeddings", False):
            config.tie_word_embeddings = False
