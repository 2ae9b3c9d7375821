"""Response log-probabilities, values and scores of Llama-like models, forward and backward by hand.

Legend: P distinct prompts, N rows (responses), T longest response, D hidden size, V vocabulary; n sequences of t
tokens in a batch.

Order of work: the prompts run once and leave their keys and values; then the responses run in batches of similar
length, each row over the keys and values of its prompt. The backward pass goes the other way and collects what all
rows want from a prompt before the prompt's own backward. A response's last token is fed
only where a score is asked after it.

Batches hold about ``_BATCH_TOKENS`` tokens so that their activations stay in the processor's cache, and nothing is
recorded by autograd inside: at 1M parameters the record-keeping and the page faults of large activations cost as much
as the arithmetic.

What needs memory: every batch keeps its activations for the backward pass, unless ``recompute`` runs it anew there
(one more forward pass in exchange for all batches but one). Logits never exist all at once (llama_head.py).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, Protocol, TypeVar

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from nemotron.contracts.samples import Group
from nemotron.rl import attention
from nemotron.rl.attention import Mask, Rotary
from nemotron.rl.fused_llama import FusedLlama
from nemotron.rl.llama_arithmetic import (
    Normed,
    add_normed_,
    add_normed_backward,
    gated,
    linear_backward,
    mlp_backward,
    norm,
    norm_backward_,
)
from nemotron.rl.llama_gradients import Gradients, to_parameters
from nemotron.rl.llama_head import Question, Reading, Rows
from nemotron.rl.llama_parts import Weights

_BATCH_TOKENS = {"cpu": 1024, "cuda": 16384}


@dataclass(frozen=True, slots=True)
class Batch:
    """Sequences of similar length that run together, padded on the right."""

    ids: Tensor
    """[n,t]"""
    prompts: Tensor
    """[n] which prompt each sequence is (a batch of prompts) or continues (a batch of responses)"""
    prefix_lengths: Tensor | None
    """[n] tokens before each sequence, None where all have ``prefix`` of them"""
    prefix: int
    """longest prefix, 0 for prompts"""
    asked: Tensor | None
    """[R] positions in the flattened [n*t] whose next token is asked about; None: all"""
    question: Question
    """of the R positions"""
    places: Tensor
    """[R'] where their log-probabilities belong in the flattened result [N*T]"""
    trim: bool = False
    """so few positions are asked that the last layer leaves the others out as soon as they were attended to"""
    rows: tuple[int, ...] = ()
    """the responses of a batch of responses"""


@dataclass(frozen=True, slots=True)
class Plan:
    """All batches of a call."""

    batches: list[Batch]
    """those of prompts first"""
    prompt_batches: int
    prompt_lengths: list[int]
    rows: int
    width: int

    @property
    def longest(self) -> int:
        """Tokens of the longest sequence of a batch, what stands before it left out."""
        return max(batch.ids.shape[1] for batch in self.batches)


def make_plan(groups: Sequence[Group], device: torch.device, *, ends: bool = False, distinct: bool = True) -> Plan:
    """Cut ``groups`` into batches.

    Every response token is asked about; with ``ends`` only what follows a whole response, one result per row. Without
    ``distinct`` a prompt that occurs in several groups is computed for each of them, as ``prompt_plan`` does.
    """
    budget = _budget(device)
    width = 1 if ends else max(len(c.token_ids) for group in groups for c in group.completions)
    prompts: list[list[int]] = []
    numbers: dict[tuple[int, ...], int] = {}
    rows: list[tuple[int, int, list[int]]] = []  # place, prompt, tokens
    for group in groups:
        prompt = numbers.setdefault(tuple(group.prompt_ids), len(prompts)) if distinct else len(prompts)
        if prompt == len(prompts):
            prompts.append(group.prompt_ids)
        for c in group.completions:
            # A response's last token is fed only where something is asked after it.
            rows.append((len(rows) * width, prompt, [*c.token_ids, 0] if ends else c.token_ids))
    # The longest first: `_cut` pads every row of a run to its first.
    order = sorted(range(len(prompts)), key=lambda i: -len(prompts[i]))
    # A response's first token follows its prompt's last position, so the prompt's batch is where it is asked about.
    followers: list[list[int]] = [[] for _ in prompts]
    for index, (_, prompt, _) in enumerate([] if ends else rows):
        followers[prompt].append(index)
    batches = []
    for chosen in _cut([len(prompts[i]) for i in order], budget):
        members = [order[i] for i in chosen]
        batches.append(
            _prompt_batch([list(prompts[i]) for i in members], members, [followers[i] for i in members], rows)
        )
    prompt_batches = len(batches)
    # A response of one token is answered by its prompt alone.
    longer = sorted((row for row in rows if len(row[2]) > 1), key=lambda row: -len(row[2]))
    lengths = [len(prompt) for prompt in prompts]
    runs = _cut([len(row[2]) - 1 for row in longer], budget)
    batches += [_response_batch([longer[i] for i in run], lengths, width, ends) for run in runs]
    moved = [_to(batch, device) for batch in batches]
    return Plan(moved, prompt_batches, lengths, len(rows), width)


def prompt_plan(prompts: Sequence[Sequence[int]], device: torch.device) -> Plan:
    """Only the prompts, each row's next token unasked: what a sampler computes before its first step."""
    order = sorted(range(len(prompts)), key=lambda i: -len(prompts[i]))
    lengths = [len(prompt) for prompt in prompts]
    batches = []
    for chosen in _cut([lengths[i] for i in order], _budget(device)):
        members = [order[i] for i in chosen]
        batches.append(_to(_prompt_batch([list(prompts[i]) for i in members], members, [], []), device))
    return Plan(batches, len(batches), lengths, 0, 0)


def _budget(device: torch.device) -> int:
    return _BATCH_TOKENS.get(device.type, _BATCH_TOKENS["cuda"])


def _cut(lengths: list[int], budget: int) -> list[range]:
    """Cut a falling list of lengths into runs of about ``budget`` tokens and at most a quarter of padding in any
    row."""
    runs, start = [], 0
    for i, length in enumerate(lengths):
        full = (i - start + 1) * lengths[start] > budget
        # A run worth less than half a batch may pad more: a product of few rows costs as much as one of many.
        uneven = length * 4 < lengths[start] * 3 and (i - start) * lengths[start] * 2 > budget
        if i > start and (full or uneven):
            runs.append(range(start, i))
            start = i
    if lengths:
        runs.append(range(start, len(lengths)))
    return runs


def _prompt_batch(
    prompts: list[list[int]],
    members: list[int],
    followers: list[list[int]],
    rows: list[tuple[int, int, list[int]]],
) -> Batch:
    t = len(prompts[0])
    pairs = [(i, rows[index]) for i, followed in enumerate(followers) for index in followed]
    return Batch(
        ids=_padded(prompts, t),
        prompts=torch.tensor(members),
        prefix_lengths=None,
        prefix=0,
        asked=torch.tensor([i * t + len(prompt) - 1 for i, prompt in enumerate(prompts)]),
        question=Question(
            tokens=torch.tensor([row[2][0] for _, row in pairs], dtype=torch.int64),
            source=torch.tensor([i for i, _ in pairs], dtype=torch.int64),
        ),
        places=torch.tensor([row[0] for _, row in pairs], dtype=torch.int64),
        trim=True,  # of a prompt's tokens only the last has something to say; the others leave keys and values
    )


def _response_batch(rows: list[tuple[int, int, list[int]]], prompt_lengths: list[int], width: int, ends: bool) -> Batch:
    fed = [tokens[:-1] for _, _, tokens in rows]
    t = len(fed[0])
    before = [prompt_lengths[prompt] for _, prompt, _ in rows]
    # Which of a row's positions are asked, and their places.
    asked = [range(len(tokens) - 1 if ends else 0, len(tokens)) for tokens in fed]
    every = all(len(positions) == t for positions in asked)
    return Batch(
        ids=_padded(fed, t),
        prompts=torch.tensor([prompt for _, prompt, _ in rows]),
        prefix_lengths=None if len(set(before)) == 1 else torch.tensor(before),
        prefix=max(before),
        asked=None if every else torch.tensor([i * t + j for i, positions in enumerate(asked) for j in positions]),
        question=Question(
            tokens=torch.tensor([row[2][j + 1] for row, positions in zip(rows, asked, strict=True) for j in positions]),
            source=None,
        ),
        places=torch.tensor(
            [row[0] + (0 if ends else j + 1) for row, positions in zip(rows, asked, strict=True) for j in positions]
        ),
        trim=ends and not every,
        rows=tuple(place // width for place, _, _ in rows),
    )


def _padded(sequences: list[list[int]], t: int) -> Tensor:
    return torch.tensor([tokens + [0] * (t - len(tokens)) for tokens in sequences])


def _to(batch: Batch, device: torch.device) -> Batch:
    if device.type == "cpu":
        return batch
    return replace(_moved(batch, device), question=_moved(batch.question, device))


_Parts = TypeVar("_Parts", Batch, Question)


def _moved(parts: _Parts, device: torch.device) -> _Parts:
    """The same dataclass with its tensors on ``device``."""
    tensors = {f.name: v.to(device) for f in fields(parts) if isinstance(v := getattr(parts, f.name), Tensor)}
    return replace(parts, **tensors)  # type: ignore[arg-type]


@dataclass(slots=True)
class LayerTrace:
    """What the backward pass of one layer needs of the forward pass; token-wise tensors are [n*t, ...]."""

    normed: Tensor
    rstd: Tensor
    attended: Tensor
    saved: attention.Saved
    mlp_normed: Tensor
    mlp_rstd: Tensor
    gate_up: Tensor
    out_normed: Normed | None
    down_normed: Normed | None


class LayerTraces(Protocol):
    """Those of all layers; the backward pass takes the last one off."""

    def __len__(self) -> int: ...
    def pop(self) -> LayerTrace: ...


@dataclass(slots=True)
class Trace:
    """What the backward pass of one batch needs."""

    rotaries: list[Rotary]
    """by kind of layer"""
    layers: LayerTraces
    normed: Tensor
    """[R,D] the final hidden states that were asked"""
    rstd: Tensor


class LlamaPass:
    """One forward pass over a plan, and its backward pass."""

    def __init__(
        self,
        weights: Weights,
        plan: Plan,
        *,
        keep: bool,
        recompute: bool = False,
        prefixes: list[Tensor] | None = None,
    ) -> None:
        """``keep`` stores what ``backward`` needs, or with ``recompute`` lets it be computed anew there.

        ``prefixes`` are keys and values of the plan's prompts that were computed already.
        """
        self.weights, self.plan, self.keep, self.recompute = weights, plan, keep, recompute
        # Keys and values of all prompts, one tensor per layer: [2,P,K,longest,d].
        self.prefixes = self._no_prefixes() if prefixes is None else prefixes
        self.traces: list[Trace] = []
        self.read: list[Tensor | None] = []
        """what the reading of each batch keeps"""

    def _no_prefixes(self) -> list[Tensor]:
        weights, lengths = self.weights, self.plan.prompt_lengths
        size = (2, len(lengths), weights.shape.kv_heads, max(lengths), weights.shape.head_dim)
        return [torch.zeros(size, dtype=weights.dtype, device=weights.embedding.device) for _ in weights.layers]

    def forward(self, reading: Reading) -> Tensor:
        """What ``reading`` makes of the final hidden states, [N*T] float32; 0.0 where there is no token."""
        result = torch.zeros(self.plan.rows * self.plan.width, device=self.weights.embedding.device)
        for number, batch in enumerate(self.plan.batches):
            hidden, trace = self.hidden(batch, is_prompt=number < self.plan.prompt_batches)
            result[batch.places], kept = reading.forward(self.weights.head.weight, hidden, batch.question)
            self.read.append(kept)
            if self.keep and not self.recompute:
                self.traces.append(trace)
        return result

    def hidden(self, batch: Batch, *, is_prompt: bool) -> tuple[Tensor, Trace]:
        """Final normed hidden states [R,D] at the asked positions; a batch of prompts fills ``prefixes``."""
        weights, shape, dtype = self.weights, self.weights.shape, self.weights.dtype
        n, t = batch.ids.shape
        rotaries, masks = self.geometry(batch)
        hidden = weights.embedding[batch.ids.flatten()]
        if shape.embedding_scale != 1.0:
            hidden.mul_(shape.embedding_scale)
        traces: list[LayerTrace] = []
        for number, layer in enumerate(weights.layers):
            normed, rstd = norm(hidden, shape.eps, dtype)
            prefix = None if is_prompt else self.prefix_of(number, batch)
            qkv = layer.qkv(normed).view(n, t, -1)
            rotary, mask = rotaries[layer.kind], masks[layer.kind]
            attended, saved = attention.forward(
                qkv, prefix, rotary, mask, shape, head_norm=layer.head_norm, keep=self.keep
            )
            attended = attended.view(n * t, -1)
            if is_prompt:
                self.prefixes[number][:, batch.prompts, :, :t] = saved.kv
            if batch.trim and number == len(weights.layers) - 1:
                # Nobody looks at the other positions any more; their keys and values are kept already.
                hidden, attended = hidden[batch.asked], attended[batch.asked]
            # The residual stream is changed in place: of a layer the backward pass needs what went into its products,
            # and the norm's result with 1/rms, never the stream itself.
            out_normed = add_normed_(hidden, layer.out(attended), layer.out_norm, shape.eps)
            mlp_normed, mlp_rstd = norm(hidden, shape.eps, dtype)
            gate_up = layer.gate_up(mlp_normed)
            down_normed = add_normed_(hidden, layer.down(gated(gate_up, shape.gate)), layer.down_norm, shape.eps)
            if self.keep:
                traces.append(
                    LayerTrace(normed, rstd, attended, saved, mlp_normed, mlp_rstd, gate_up, out_normed, down_normed)
                )
        if batch.asked is not None and not batch.trim:
            hidden = hidden[batch.asked]
        normed, rstd = norm(hidden, shape.eps, weights.head.weight.dtype)
        return normed, Trace(rotaries, traces, normed, rstd)

    def geometry(self, batch: Batch) -> tuple[list[Rotary], list[Mask]]:
        """The turns of a batch's positions and what they see, by kind of layer."""
        weights, t, device = self.weights, batch.ids.shape[1], batch.ids.device
        positions = torch.arange(t, device=device)
        if batch.prefix_lengths is not None:
            positions = positions + batch.prefix_lengths[:, None]
        else:
            positions = positions + batch.prefix
        # A batch is as wide as its longest prompt and longest answer, which need not be of one row: padding may lie
        # behind the end of the table though every row fits. Nobody looks at it, so any angle will do.
        positions = positions.clamp(max=len(weights.kinds[0].turns) - 1)
        rotaries = [Rotary.at(kind.turns, positions, weights.shape) for kind in weights.kinds]
        masks = [
            Mask.of(t, batch.prefix_lengths, batch.prefix, weights.dtype, device, kind.window) for kind in weights.kinds
        ]
        return rotaries, masks

    def prefix_of(self, number: int, batch: Batch) -> Tensor:
        """[2,n,K,p,d] keys and values of layer ``number`` before each response of a batch."""
        return self.prefixes[number][:, :, :, : batch.prefix].index_select(1, batch.prompts)

    def backward(self, grad: Tensor, reading: Reading) -> Gradients:
        """Gradients of the rearranged weights from that of the result [N*T] of ``forward`` with the same ``reading``.

        Frees what was kept, batch by batch."""
        grads = Gradients.zeros(self.weights)
        # What the responses want from the prompts' keys and values: float32, as many rows add to the same prompt.
        # Batches of responses come first here (they ran last), so it is complete when the prompt's own backward
        # begins.
        wanted = [torch.zeros_like(prefix, dtype=torch.float32) for prefix in self.prefixes]
        for number in reversed(range(len(self.plan.batches))):
            batch, is_prompt = self.plan.batches[number], number < self.plan.prompt_batches
            trace = self.hidden(batch, is_prompt=is_prompt)[1] if self.recompute else self.traces.pop()
            hidden_grad = self._head_backward(number, trace, grad, grads, reading)
            self._batch_backward(batch, trace, hidden_grad, grads, wanted, is_prompt)
        return grads

    def _head_backward(self, number: int, trace: Trace, grad: Tensor, grads: Gradients, reading: Reading) -> Tensor:
        """Gradient [n*t,D] float32 of the last layer's output, [R,D] of a trimmed one."""
        batch = self.plan.batches[number]
        normed_grad = reading.backward(
            self.weights.head.weight, trace.normed, batch.question, grad[batch.places], self.read[number], grads.head
        )
        asked_grad = torch.zeros(trace.normed.shape, device=grad.device)
        norm_backward_(asked_grad, normed_grad, trace.normed, trace.rstd)
        return asked_grad if batch.asked is None or batch.trim else _spread(asked_grad, batch.asked, batch.ids.numel())

    def _batch_backward(
        self, batch: Batch, trace: Trace, hidden_grad: Tensor, grads: Gradients, wanted: list[Tensor], is_prompt: bool
    ) -> None:
        shape, dtype = self.weights.shape, self.weights.dtype
        n, t = batch.ids.shape
        back = [rotary.back() for rotary in trace.rotaries]
        while len(trace.layers):
            kept = trace.layers.pop()
            number = len(trace.layers)
            layer, into = self.weights.layers[number], grads.layers[number]
            # h2 = h1 + mlp(norm(h1)): `hidden_grad` is dh2 and stays as the residual's share of dh1; the norm's share
            # is added to it in place. The same again for h1 = h0 + attention(norm(h0)).
            down_grad = add_normed_backward(hidden_grad, kept.down_normed, layer.down_norm, into.down_norm)
            gate_up_grad = mlp_backward(layer.down, into.down, kept.gate_up, down_grad.to(dtype), shape.gate)
            normed_grad = linear_backward(layer.gate_up, into.gate_up, kept.mlp_normed, gate_up_grad)
            norm_backward_(hidden_grad, normed_grad, kept.mlp_normed, kept.mlp_rstd)
            out_grad = add_normed_backward(hidden_grad, kept.out_normed, layer.out_norm, into.out_norm)
            attended_grad = linear_backward(layer.out, into.out, kept.attended, out_grad.to(dtype))
            if batch.trim and number == len(self.weights.layers) - 1 and batch.asked is not None:
                # Only the asked positions went through the rest of this layer: the others have no gradient from above,
                # but attention below them does.
                attended_grad = _spread(attended_grad, batch.asked, n * t)
                hidden_grad = _spread(hidden_grad, batch.asked, n * t)
            more = wanted[number][:, batch.prompts, :, :t] if is_prompt else None
            qkv_grad, prefix_grad = attention.backward(
                attended_grad.view(n, t, -1),
                kept.saved,
                back[layer.kind],
                shape,
                more,
                head_norm=layer.head_norm,
                head_norm_grad=into.head_norm,
            )
            if not is_prompt:
                # Several rows continue one prompt: their wishes add up. Beyond a shorter prompt's end they are 0, as
                # their probabilities are.
                wanted[number][:, :, :, : batch.prefix].index_add_(1, batch.prompts, prefix_grad.float())
            normed_grad = linear_backward(layer.qkv, into.qkv, kept.normed, qkv_grad.view(n * t, -1))
            norm_backward_(hidden_grad, normed_grad, kept.normed, kept.rstd)
        if grads.embedding is None:
            return
        if shape.embedding_scale != 1.0:
            hidden_grad.mul_(shape.embedding_scale)
        grads.embedding.index_add_(0, batch.ids.flatten(), hidden_grad)


def _spread(rows: Tensor, places: Tensor, total: int) -> Tensor:
    """[R,*] -> [total,*] with the rows at ``places`` and 0 elsewhere."""
    return rows.new_zeros(total, *rows.shape[1:]).index_copy_(0, places, rows)


class _Pass(torch.autograd.Function):
    """The pass as one node of the autograd graph, with the parameters that are trained as inputs."""

    @staticmethod
    def forward(ctx: Any, fused: FusedLlama, run: LlamaPass, reading: Reading, *parameters: Tensor) -> Tensor:
        ctx.fused, ctx.run, ctx.reading = fused, run, reading
        ctx.save_for_backward(*parameters)
        return run.forward(reading)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
        parameters = ctx.saved_tensors  # torch raises when the weights have changed since, or on a second backward pass
        return None, None, None, *to_parameters(ctx.fused, ctx.run.backward(grad, ctx.reading), parameters)


def llama_logprobs(
    fused: FusedLlama, groups: Sequence[Group], reading: Reading, dtype: torch.dtype, *, recompute: bool = False
) -> Tensor:
    """``Policy.response_logprobs`` for a model that ``fused`` has rearranged; see there."""
    return _run(fused, make_plan(groups, fused.device), reading, dtype, recompute)


def llama_values(fused: FusedLlama, groups: Sequence[Group], dtype: torch.dtype, *, recompute: bool = False) -> Tensor:
    """``ScalarModel.token_values`` for a model that ``fused`` has rearranged: one scalar where a log-prob would be."""
    return _run(fused, make_plan(groups, fused.device), _SCALARS, dtype, recompute)


def llama_scores(fused: FusedLlama, groups: Sequence[Group], dtype: torch.dtype, *, recompute: bool = False) -> Tensor:
    """``ScalarModel.sequence_scores`` for a model that ``fused`` has rearranged: [N] scalars at the last tokens."""
    return _run(fused, make_plan(groups, fused.device, ends=True), _SCALARS, dtype, recompute)[:, 0]


def _scalar(outputs: Tensor, tokens: Tensor) -> Tensor:
    """The one output [R] of a head with one row; what comes next does not matter."""
    return outputs[:, 0]


_SCALARS = Rows(_scalar, None)


def _run(fused: FusedLlama, plan: Plan, reading: Reading, dtype: torch.dtype, recompute: bool) -> Tensor:
    """Forward, with the backward pass ready where grad is wanted: [N,width] float32."""
    weights = fused.weights(dtype, max(plan.prompt_lengths) + plan.longest)
    wants_grad = torch.is_grad_enabled() and bool(fused.trained)
    with torch.no_grad():
        run = LlamaPass(weights, plan, keep=wants_grad, recompute=recompute)
        if not wants_grad:
            return run.forward(reading).view(plan.rows, plan.width)
    return differentiable(fused, run, reading)


def differentiable(fused: FusedLlama, run: LlamaPass, reading: Reading) -> Tensor:
    """The results of a pass, [N,width] float32, whose gradients reach the parameters that are trained."""
    result: Tensor = _Pass.apply(fused, run, reading, *fused.trained)  # type: ignore[no-untyped-call]
    return result.view(run.plan.rows, run.plan.width)
