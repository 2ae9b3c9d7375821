"""How much memory a job holds: an estimate, from files and numbers alone.

Legend: P parameters, L those of the layers, E those of the embedding; D hidden size, H query heads, K key/value heads,
d head size, I MLP width, V vocabulary. ``benchmarks/memory.py`` holds it against the peak of real runs.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace

from nemotron.compile.jobs.base import AnyJob
from nemotron.compile.plan import Memory
from nemotron.compile.probes.fast_path import slow_path
from nemotron.compile.probes.model_files import ModelFiles, read_model
from nemotron.config.schema.grpo import GrpoConfig
from nemotron.contracts.samples import cuts
from nemotron.out_of_memory import OFFLOAD

FLOAT = 4
"""Bytes of a float32: the embedded engine's weights, gradients and optimizer moments."""
SMALL_JUDGE = 50_000_000
"""Below this many parameters our judge server computes in float64 (``judge.dtype: auto``)."""
LIBRARIES = 420 * 2**20
"""What a process holds that has imported torch and transformers and read nothing yet, measured."""
BATCH_TOKENS = 1024
"""Tokens that the passes of a CPU compute at once."""
AUTOGRAD = 1.4
"""What autograd's tensors take, beside what they hold: the heap keeps room between them. Measured, two shapes."""
RANK = 16
"""Of adapters that a config says nothing of."""
PIECE = 2**25
"""Logits that exist at once on a CPU (``rl/pieces.py``)."""
BLOCK = 2**21
"""The same where whole distributions are read block by block (``rl/llama_head.py``)."""
PACKED_ROWS = (4, 128)
"""Fewest and most responses at once whose sampler packs the matrices (``rl/packed.py``)."""
PACKED = (2**24, 2**29)
"""Fewest and most weights of such a model beside adapters."""


@dataclass(frozen=True)
class Settings:
    """What of a config decides its memory, so that it can be asked what another value would save."""

    micro_rows: int
    logprob_rows: int
    rows: int
    """Responses that are sampled at once."""
    anew: bool
    """Activations are computed again in the backward pass."""
    adapters: int
    """Rank of the adapters; 0: all weights are trained."""
    reference: bool
    moments_away: bool
    """The optimizer's moments are in the host's memory, beside a GPU."""


@dataclass(frozen=True)
class Sizes:
    """Of a model, from its config."""

    parameters: int
    hidden: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    width: int
    vocabulary: int
    tied: bool
    by_hand: bool
    """Its passes are those of ``rl/llama_logprobs.py``."""

    @classmethod
    def of(cls, model: ModelFiles) -> Sizes | None:
        """None where the config does not say enough."""
        config, heads = model.config, model.heads
        hidden, layers = config.get("hidden_size"), config.get("num_hidden_layers")
        if not (isinstance(hidden, int) and isinstance(layers, int) and heads and model.kv_heads and model.parameters):
            return None
        head_dim, width = config.get("head_dim"), config.get("intermediate_size")
        return cls(
            parameters=model.parameters,
            hidden=hidden,
            layers=layers,
            heads=heads,
            kv_heads=model.kv_heads,
            head_dim=head_dim if isinstance(head_dim, int) else hidden // heads,
            width=width if isinstance(width, int) else 4 * hidden,
            vocabulary=model.vocabulary or 0,
            tied=bool(config.get("tie_word_embeddings", True)) and not model.own_head,
            by_hand=slow_path(model) is None,
        )

    @property
    def embedding(self) -> int:
        """E."""
        return self.vocabulary * self.hidden

    @property
    def in_layers(self) -> int:
        """L."""
        return max(0, self.parameters - self.embedding * (1 if self.tied else 2))

    @property
    def copied(self) -> int:
        """Parameters that are rearranged in a copy of float32: all but the last matrices of attention and MLP."""
        queries = self.hidden * (self.heads + 2 * self.kv_heads) * self.head_dim
        return self.layers * (queries + 2 * self.hidden * self.width) + self.embedding

    def adapted(self, rank: int) -> int:
        """Parameters of adapters on every matrix of the layers."""
        attention = 2 * (self.hidden + self.heads * self.head_dim) + 2 * (self.hidden + self.kv_heads * self.head_dim)
        return self.layers * rank * (attention + 3 * (self.hidden + self.width))


def memory(job: AnyJob) -> Memory | None:
    """Peak memory of the embedded engine; None when the policy is not on this machine."""
    return _memory(job, settings_of(job))


def settings_of(job: AnyJob) -> Settings:
    """As the config has them."""
    policy = job.config.policy
    return Settings(
        micro_rows=min(policy.train_micro_batch_size, job.rows_at_once or policy.train_micro_batch_size)
        * (2 if job.row_kind == "preference" else 1),
        logprob_rows=policy.logprob_rows,
        rows=job.rows_at_once,
        anew=policy.activation_checkpointing,
        adapters=policy.lora.dim if policy.lora is not None else 0,
        reference=job.has_reference,
        # On a CPU the key has nothing to do.
        moments_away=job.place.has_cuda and bool(policy.offload_optimizer_for_logprob),
    )


def savings(job: AnyJob) -> list[tuple[str, int]]:
    """What one other value would save, the most first: (the words of the command line, bytes)."""
    now, here = settings_of(job), memory(job)
    if here is None:
        return []
    found = [
        (words, here.total - other.total) for words, changed in _changes(job, now) if (other := _memory(job, changed))
    ]
    return sorted(((words, saved) for words, saved in found if saved > 0.01 * here.total), key=lambda item: -item[1])


def _changes(job: AnyJob, now: Settings) -> Iterator[tuple[str, Settings]]:
    policy = job.config.policy
    section = "policy.megatron_cfg" if policy.megatron else "policy.dtensor_cfg"
    if not now.anew:
        yield f"{section}.activation_checkpointing=true", replace(now, anew=True)
    if job.place.has_cuda and not now.moments_away:
        yield f"{OFFLOAD}=true", replace(now, moments_away=True)
    if policy.train_micro_batch_size > 1:
        fewer = max(1, policy.train_micro_batch_size // 4)
        rows = max(1, now.micro_rows * fewer // policy.train_micro_batch_size)
        yield f"policy.train_micro_batch_size={fewer}", replace(now, micro_rows=rows)
    if now.reference and not now.adapters:
        bound = getattr(getattr(job.config, "limits", None), "max_kl", None) is not None
        limit = " limits.max_kl=null" if bound else ""
        yield f"loss_fn.reference_policy_kl_penalty=0{limit}", replace(now, reference=False)
    if not now.adapters:
        both = "policy.megatron_cfg.enabled=false " if policy.megatron else ""
        both += "" if policy.dtensor else "policy.dtensor_cfg.enabled=true "
        rank = getattr(getattr(policy.dtensor_cfg, "lora_cfg", None), "dim", None) or RANK
        yield f"{both}policy.dtensor_cfg.lora_cfg.enabled=true", replace(now, adapters=rank)


def _memory(job: AnyJob, settings: Settings) -> Memory | None:
    policy = read_model(job.config.policy.model_name, job.place)
    if policy is None or policy.parameters is None:
        return None
    others = {"judge": 0, "critic": 0, "reward model": 0}
    for ref in job.models():
        found = read_model(ref.name, job.place)
        if ref.role in others and found and found.parameters:
            others[ref.role] = found.parameters * _bytes_per_parameter(ref.role, found.parameters)
    sizes = Sizes.of(policy)
    if sizes is None:  # a config in other words: only what is sure
        held = policy.parameters * FLOAT * (1 if settings.adapters else 4)
        moments = 0 if settings.adapters else 2 * FLOAT * policy.parameters
        reference = policy.parameters * FLOAT if settings.reference and not settings.adapters else 0
        activations = 0
    else:
        half = job.config.policy.precision in ("bfloat16", "bf16", "float16", "fp16")
        held, reference = _held(sizes, settings, half), _reference(sizes, settings, half)
        moments = 2 * FLOAT * (sizes.adapted(settings.adapters) if settings.adapters else sizes.parameters)
        activations = max(_rollout(job, sizes, settings, half), _training(job, sizes, settings, half))
    if settings.moments_away:
        # What a pass needs is free again when they come for the step.
        held, activations = held - moments, max(activations, moments)
    processes = 1 + sum(1 for size in (others["judge"], others["critic"] + others["reward model"]) if size)
    return Memory(
        policy=held,
        reference=reference,
        judge=others["judge"],
        critic=others["critic"] + others["reward model"],
        activations=activations,
        host=moments if settings.moments_away else 0,
        libraries=processes * LIBRARIES,
        parameters=policy.parameters,
    )


def _bytes_per_parameter(role: str, parameters: int) -> int:
    """A judge computes in float64 while that is cheap; a critic is trained; a reward model only answers."""
    if role == "judge":
        return 2 * FLOAT if parameters < SMALL_JUDGE else FLOAT
    return 4 * FLOAT if role == "critic" else FLOAT


def _held(sizes: Sizes, settings: Settings, half: bool) -> int:
    """What the policy holds between steps: weights, their rearranged copies, gradients and two moments."""
    if settings.adapters:
        base = 2 * sizes.in_layers + FLOAT * (sizes.parameters - sizes.in_layers) if half else FLOAT * sizes.parameters
        return base + _copies(sizes, half) + 4 * FLOAT * sizes.adapted(settings.adapters)
    return 4 * FLOAT * sizes.parameters + _copies(sizes, half)


def _copies(sizes: Sizes, half: bool) -> int:
    if not sizes.by_hand:
        return 0
    return 2 * (sizes.in_layers + sizes.embedding) if half else FLOAT * sizes.copied


def _reference(sizes: Sizes, settings: Settings, half: bool) -> int:
    """The frozen copy: adapters that are off need none."""
    if settings.adapters or not settings.reference:
        return 0
    weights = 2 * sizes.in_layers + FLOAT * (sizes.parameters - sizes.in_layers) if half else FLOAT * sizes.parameters
    return weights + _copies(sizes, half)


def _rollout(job: AnyJob, sizes: Sizes, settings: Settings, half: bool) -> int:
    """Keys and values of all responses of a step, and the tables from which a token of each is drawn."""
    if not settings.rows:
        return 0
    cache = settings.rows * job.config.policy.max_total_sequence_length * sizes.layers
    logits = settings.rows * sizes.vocabulary
    held = cache * 2 * sizes.kv_heads * sizes.head_dim * FLOAT + 2 * logits * FLOAT + min(logits, PIECE) * 16
    return held + _packed(job, sizes, settings, half) + _kept(job, sizes, settings, half)


def _kept(job: AnyJob, sizes: Sizes, settings: Settings, half: bool) -> int:
    """What a rollout leaves for training (``rl/kept_pass.py``): all that training would keep but the scores."""
    course, sampler = job.course, getattr(job.config, "sampler", None)
    if not isinstance(course, GrpoConfig) or sampler is None or sampler.server != "embedded" or job.place.has_cuda:
        return 0
    at_once = settings.rows <= min(settings.micro_rows, job.config.policy.train_global_batch_size)
    again = course.use_dynamic_sampling or course.seq_logprob_error_threshold is not None or settings.anew
    if half or again or not (sizes.by_hand and at_once) or sizes.in_layers + sizes.embedding < PACKED[0]:
        return 0
    tokens, length, response = _tokens(job, settings)
    return tokens * _of_a_token(sizes, length, response, scores=False) * sizes.layers * FLOAT


def _packed(job: AnyJob, sizes: Sizes, settings: Settings, half: bool) -> int:
    """The sampler's second copy of the matrices (``rl/packed.py``) where it stands beside adapters. Of a model that is
    trained whole it is where the gradients, which ``_held`` counts, will be."""
    weights = sizes.in_layers + sizes.embedding
    fits = _within(settings.rows, PACKED_ROWS) and _within(weights, PACKED)
    by_cpu = sizes.by_hand and not half and not job.place.has_cuda
    return FLOAT * weights if settings.adapters and by_cpu and fits else 0


def _within(value: int, bounds: tuple[int, int]) -> bool:
    return bounds[0] <= value <= bounds[1]


def _training(job: AnyJob, sizes: Sizes, settings: Settings, half: bool) -> int:
    """What a micro-batch keeps for its backward pass, and what that needs for itself."""
    size = 2 if half else FLOAT
    tokens, length, response = _tokens(job, settings)
    at_once = min(tokens, BATCH_TOKENS)
    by_hand, hidden = sizes.by_hand, sizes.hidden
    queries, keys = sizes.heads * sizes.head_dim, sizes.kv_heads * sizes.head_dim
    token = (
        _of_a_token(sizes, length, response, scores=True)
        if by_hand
        else int(AUTOGRAD * (8 * hidden + 6 * queries + 4 * keys + 4 * sizes.width))
    )
    kept = (at_once if settings.anew else tokens) * token * sizes.layers * size
    passing = at_once * 4 * (sizes.width + hidden) * FLOAT
    # Logits, their log-softmax, and the gradients of both and of the choice of a token; autograd over the whole batch
    # copies those that are asked about, and puts their gradient back among the others.
    whole = not by_hand and not settings.anew and tokens * sizes.vocabulary <= PIECE
    table = min((tokens if whole else at_once) * sizes.vocabulary, PIECE)
    logits = table * (7 if whole else 5) * FLOAT
    if by_hand and not (job.generation and cuts(job.generation.top_k, job.generation.top_p)):
        # A block, and its exponentials.
        logits = 2 * min(at_once * sizes.vocabulary, BLOCK) * FLOAT
    gradients = 0
    if by_hand and not settings.adapters:
        # Accumulators of the rearranged weights. With one micro-batch they become the gradients, which `_held` counts.
        gradients = FLOAT * (sizes.in_layers + 2 * sizes.embedding)
        several = settings.micro_rows < job.config.policy.train_global_batch_size
        gradients -= 0 if several else FLOAT * sizes.parameters
    return int(kept + passing + logits + gradients)


def _tokens(job: AnyJob, settings: Settings) -> tuple[int, int, int]:
    """Of a micro-batch, of its longest sequence, and of what is answered of that."""
    length = job.config.policy.max_total_sequence_length
    response = min(job.generation.max_new_tokens, length) if job.generation and settings.rows else length
    # Prompts of one group are computed once; how large a group is only policies that sample say.
    group = getattr(job.course, "num_generations_per_prompt", 1) if settings.rows else 1
    prompts = math.ceil(settings.micro_rows / group) * (length - response)
    return settings.micro_rows * response + prompts, length, response


def _of_a_token(sizes: Sizes, length: int, response: int, *, scores: bool) -> int:
    """Numbers of a layer that passes by hand keep of a token: what goes into its products, the gate's two halves, keys
    and values with those before it, and its scores."""
    queries, keys = sizes.heads * sizes.head_dim, sizes.kv_heads * sizes.head_dim
    kept = 2 * sizes.hidden + 2 * queries + 2 * keys * length // max(response, 1) + 2 * sizes.width
    return kept + (sizes.heads * length if scores else 0)
