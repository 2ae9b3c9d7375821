"""Training on the activations that sampling computed: a policy gradient without a forward pass of its own.

Legend: N responses, P prompts, A responses that a step of the sampler feeds, T longest response, D hidden size.

Where one optimizer step uses a whole rollout, its log-probabilities are those that the sampler drew with: the weights
are the same, and so is every number that the backward pass needs. The sampler leaves them here, token by token; the
backward pass asks for those of a batch of responses, layer by layer. A fifth of the arithmetic of a step is not done,
at the price of holding while the rewards are waited for what training would hold anyway.

What is kept is what goes into products (see ``LayerTrace``), queries, keys and values behind their turn. Probabilities
of attention are computed anew: they are a few percent of the arithmetic, and grow with the length.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from nemotron.contracts.samples import Group, SamplingParams, cuts
from nemotron.rl import attention
from nemotron.rl.attention import Mask, NormedHeads
from nemotron.rl.fused_llama import FusedLlama
from nemotron.rl.llama_arithmetic import Normed
from nemotron.rl.llama_head import Logprobs, Reading
from nemotron.rl.llama_logprobs import Batch, LayerTrace, LlamaPass, Plan, Trace, differentiable, make_plan
from nemotron.rl.llama_parts import Weights
from nemotron.rl.policy import LONGEST_WRITTEN_OUT, Policy
from nemotron.rl.products import LARGE

_STEPS = 64
"""Most steps of the sampler for which room is made at once."""


def can_keep(policy: Policy, prompts: Sequence[Sequence[int]], params: SamplingParams) -> bool:
    """Whether a rollout can leave its activations for training.

    Of small models the copies would cost what the forward pass does, on a GPU nobody has tried, half precision attends
    in another type while it samples.
    """
    longest = max(map(len, prompts)) + params.max_new_tokens
    return (
        policy.fused is not None
        and policy.fused.size >= LARGE
        and bool(policy.fused.trained)
        and policy.dtype == torch.float32
        and policy.device.type == "cpu"
        and not policy.recompute
        and longest <= LONGEST_WRITTEN_OUT
        and params.temperature != 0
        and not cuts(params.top_k, params.top_p)
    )


@dataclass(slots=True)
class _Column:
    """One tensor of the pass, a row for every token that was fed."""

    steps: int
    """for which room is made at once"""
    parts: list[Tensor] = field(default_factory=list)
    used: int = 0
    """rows of the last part"""

    def add(self, rows: Tensor) -> None:
        """[A,*]; copied, so that the memory of a step is that of the step before."""
        if not self.parts or self.used + len(rows) > len(self.parts[-1]):
            self._cut()
            self.parts.append(rows.new_empty(self.steps * len(rows), *rows.shape[1:]))
            self.used = 0
        self.parts[-1][self.used : self.used + len(rows)] = rows
        self.used += len(rows)

    def take(self, places: Tensor) -> Tensor:
        """Rows at ``places``, counted over all that were added."""
        if len(self.parts) > 1:
            self._cut()
            self.parts = [torch.cat(self.parts)]
            self.used = len(self.parts[0])
        return self.parts[0].index_select(0, places)

    def _cut(self) -> None:
        """Nothing more comes into the last part."""
        self.parts[-1:] = [part[: self.used] for part in self.parts[-1:]]


class LayerColumns:
    """What one layer leaves of every token that was fed."""

    def __init__(self, steps: int) -> None:
        """``steps``: for which room is made at once."""
        self._steps, self._of = steps, dict[str, _Column]()

    def add(self, tensors: Mapping[str, Tensor], norms: Mapping[str, Normed | NormedHeads | None]) -> None:
        """[A,*] of a step, by the names of ``LayerTrace``; ``norms`` that this family does not have are None."""
        of_norms = {
            f"{name}_{part}": getattr(norm, part) for name, norm in norms.items() if norm for part in ("normed", "rstd")
        }
        for name, tensor in {**tensors, **of_norms}.items():
            self._of.setdefault(name, _Column(self._steps)).add(tensor)

    def trace(self, places: Tensor, t: int, prefix: Tensor, mask: Mask, weights: Weights) -> LayerTrace:
        """Of the tokens at ``places`` [n*t], responses of ``t`` tokens after a ``prefix`` [2,n,K,p,d]."""
        shape, found = weights.shape, {name: column.take(places) for name, column in self._of.items()}
        heads = None
        if "heads_normed" in found:
            normed = found["heads_normed"].view(-1, t, shape.heads + shape.kv_heads, shape.head_dim)
            heads = NormedHeads(normed, found["heads_rstd"].view(*normed.shape[:3], 1))
        turned = found["turned"].view(-1, t, shape.all_heads, shape.head_dim)
        out, down = (
            Normed(found[f"{name}_normed"], found[f"{name}_rstd"]) if f"{name}_normed" in found else None
            for name in ("out", "down")
        )
        return LayerTrace(
            normed=found["normed"],
            rstd=found["rstd"],
            attended=found["attended"],
            saved=attention.recall(turned, prefix, mask, shape, heads),
            mlp_normed=found["mlp_normed"],
            mlp_rstd=found["mlp_rstd"],
            gate_up=found["gate_up"],
            out_normed=out,
            down_normed=down,
        )


@dataclass(slots=True)
class Kept:
    """What a rollout leaves."""

    prompts: list[Trace]
    """of the batches of prompts"""
    prefixes: list[Tensor]
    """[2,P,K,longest,d] keys and values of the prompts, by layer"""
    layers: list[LayerColumns]
    last: _Column
    """[*,D] the final hidden states"""
    last_rstd: _Column
    fed: list[Tensor] = field(default_factory=list)
    """[A] of every step, which responses it fed"""

    @classmethod
    def of(cls, run: LlamaPass, prompts: list[Trace], most: int) -> Kept:
        """Of prompts, before any response of at most ``most`` tokens."""
        steps = min(_STEPS, most)
        return cls(prompts, run.prefixes, [LayerColumns(steps) for _ in run.prefixes], _Column(steps), _Column(steps))

    def end_step(self, rows: Tensor, normed: Tensor, rstd: Tensor) -> None:
        """The final hidden states [A,D] of a step that fed the responses ``rows`` [A]."""
        self.last.add(normed)
        self.last_rstd.add(rstd)
        self.fed.append(rows)

    def places(self, rows: int) -> Tensor:
        """[N,T-1] where the columns have each response's tokens; anywhere behind its end."""
        table = torch.zeros(rows, len(self.fed), dtype=torch.int64)
        start = 0
        for step, fed in enumerate(self.fed):
            table[fed, step] = torch.arange(start, start + len(fed))
            start += len(fed)
        return table


class _Recalled:
    """The traces of a batch of responses, made when they are asked for."""

    def __init__(self, run: KeptPass, batch: Batch, masks: list[Mask], places: Tensor, *, final: bool) -> None:
        """``final``: no other batch will ask, so that a layer is let go of with its trace."""
        self._run, self._batch, self._masks, self._places, self._final = run, batch, masks, places, final
        self._left = len(run.weights.layers)

    def __len__(self) -> int:
        return self._left

    def pop(self) -> LayerTrace:
        self._left -= 1
        number, run, batch = self._left, self._run, self._batch
        columns = run.kept.layers.pop() if self._final else run.kept.layers[number]
        mask = self._masks[run.weights.layers[number].kind]
        return columns.trace(self._places, batch.ids.shape[1], run.prefix_of(number, batch), mask, run.weights)


class KeptPass(LlamaPass):
    """A ``LlamaPass`` whose forward pass was the sampler's."""

    def __init__(self, weights: Weights, plan: Plan, kept: Kept, logprobs: Sequence[Sequence[float]]) -> None:
        """``plan`` is of all responses, prompts not distinct; ``logprobs`` are what the sampler said of each."""
        super().__init__(weights, plan, keep=True, prefixes=kept.prefixes)
        self.kept, self.logprobs = kept, logprobs

    def forward(self, reading: Reading) -> Tensor:
        """See LlamaPass; ``reading`` is of whole distributions."""
        assert isinstance(reading, Logprobs)
        plan, head = self.plan, self.weights.head.weight
        rows = [torch.tensor(values) for values in self.logprobs]
        result = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True).flatten()
        places = self.kept.places(plan.rows)
        for number, batch in enumerate(plan.batches):
            if number < plan.prompt_batches:
                trace = self.kept.prompts[number]
            else:
                trace = self._recalled(batch, places, final=number == plan.prompt_batches)
            self.traces.append(trace)
            self.read.append(reading.recall(head, trace.normed, batch.question, result[batch.places]))
        return result

    def _recalled(self, batch: Batch, places: Tensor, *, final: bool) -> Trace:
        t = batch.ids.shape[1]
        fed = places[list(batch.rows), :t].flatten()
        asked = fed if batch.asked is None else fed[batch.asked]
        rotaries, masks = self.geometry(batch)
        layers = _Recalled(self, batch, masks, fed, final=final)
        return Trace(rotaries, layers, self.kept.last.take(asked), self.kept.last_rstd.take(asked))


def kept_logprobs(fused: FusedLlama, kept: Kept, groups: Sequence[Group], params: SamplingParams) -> Tensor:
    """Log-probabilities [N,T] of sampled ``groups``, differentiable, from what their rollout left; once.

    The same as ``Policy.response_logprobs`` of these groups, but for rounding.
    """
    plan = make_plan(groups, fused.device, distinct=False)
    weights = fused.weights(torch.float32, max(plan.prompt_lengths) + plan.longest)
    run = KeptPass(weights, plan, kept, [c.logprobs for group in groups for c in group.completions])
    return differentiable(fused, run, Logprobs(params.temperature, fused.shape.logit_cap))
